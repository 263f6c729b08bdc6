"""One pipeline stage on one device, its communication emulated (docs/gpu_stage_bench.md).

Reading order: `options`, `link` (how long a transfer takes), `collectives` (where it hooks in), `stage` (the model of
one rank and its passes), `arms`, `alone`, `costs` (a profile of the stage), `compose` (the pipeline, simulated), `room`
(does it fit), `bench` (all of it in order), `record` and `page`.
"""
