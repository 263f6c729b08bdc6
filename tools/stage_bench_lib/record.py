"""The figures as one JSON object, whose every part says what it is."""

import dataclasses
import os
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from megatron.overlap.measuring.memory import hardware_of
from overlap_recompute.plan.software import software_versions
from tools.stage_bench_lib.alone import Alone
from tools.stage_bench_lib.arms import NONE, ON_DEMAND, OVERLAPPED, Samples, middle_us
from tools.stage_bench_lib.bench import Bench
from tools.stage_bench_lib.compose import Composed
from tools.stage_bench_lib.energy import as_data as energy_data
from tools.stage_bench_lib.link import Rate, rate_of
from tools.stage_bench_lib.options import Options

SCHEMA = "stage-bench/1"
CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
ROOT = Path(__file__).resolve().parents[2]


def label_of(options: Options, rate: Rate) -> str:
    """What every figure is."""
    what = "one GPU" if options.device == "cuda" else "one CPU process, no GPU"
    return (
        f"{what}, one stage at TP-shard shapes, communication emulated with alpha={rate.alpha_us:g} us, "
        f"beta=1/({rate.gbyte_per_s:g} GB/s), pipeline composed by simulation; not a multi-GPU measurement"
    )


def commit_of(root: Path = ROOT) -> str:
    """Of the working tree; `unknown` where git does not say."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(git, cwd=root, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def record_of(bench: Bench, device: torch.device, command: str) -> dict[str, Any]:
    """All of it."""
    options = bench.options
    label = label_of(options, rate_of(options))
    given = dataclasses.asdict(options) | {"output": str(options.output) if options.output else None}
    return {
        "schema": SCHEMA,
        "label": label,
        "taken": {
            "commit": commit_of(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": hardware_of(device),
            CONNECTIONS: os.environ.get(CONNECTIONS, "unset"),
            "software": dict(software_versions()),
            "command": command,
        },
        "options": given,
        "model": bench.model,
        "stage": {
            "label": label,
            "number": options.stage,
            "stages": options.pipeline_parallel,
            "layers": bench.layers,
            "layers_of_the_model": options.model.layers,
            "microbatches": bench.microbatches,
            "in_flight": bench.in_flight,
            "link": bench.link,
        },
        "arms": {name: {"label": label, **arm_record(samples)} for name, samples in bench.arms.items()},
        "do_not_fit": dict(bench.refused),
        "hidden": {"label": label, **hidden_record(bench.arms, bench.alone)},
        "energy": {"label": label, **energy_record(bench)},
        "gradients_equal": len({samples.digest for samples in bench.arms.values()}) == 1,
        "alone": alone_record(bench.alone, label) if bench.alone else {"label": label, "reason": bench.alone_reason},
        "composed": {name: {"label": label, **composed_record(found)} for name, found in bench.composed.items()},
    }


def arm_record(samples: Samples) -> dict[str, Any]:
    """Medians of one arm."""
    steps = [times.step_us for times in samples.times]
    reports = [figures.report for figures in samples.figures]
    quarters = statistics.quantiles(steps, n=4, method="inclusive") if len(steps) > 1 else [0.0, 0.0, 0.0]
    return {
        "steps": len(steps),
        "step_us": middle_us(steps),
        "step_spread_us": quarters[2] - quarters[0],
        "forward_us": middle_us([us for times in samples.times for us in times.forward_us]),
        "backward_us": middle_us([us for times in samples.times for us in times.backward_us]),
        "steady_us": middle_us([us for times in samples.times for us in times.steady_us]),
        "peak_bytes": samples.peak_bytes,
        "peak_above_weights_bytes": samples.peak_bytes - samples.before_bytes,
        "held_peak_bytes": max((report.held_peak_bytes for report in reports), default=None),
        "hidden_replays": middle_us([report.hidden_replays for report in reports]) if reports else None,
        "exposed_replays": middle_us([report.exposed_replays for report in reports]) if reports else None,
        "host_hidden_us": middle_us([report.hidden_us for report in reports]) if reports else None,
        "host_exposed_us": middle_us([report.exposed_us for report in reports]) if reports else None,
        "gradients": samples.digest,
    }


def hidden_record(arms: dict[str, Samples], alone: Alone | None) -> dict[str, Any]:
    """How much of the recompute the windows hide: by times of steps, not by what the host believes.

    The fraction is (on demand - overlapped) / recompute, where recompute is what `on demand` takes longer than `none`;
    where `none` does not fit, the units' time alone.
    """
    steps = {name: [times.step_us for times in samples.times] for name, samples in arms.items()}
    if ON_DEMAND not in steps or OVERLAPPED not in steps:
        return {"fraction": None, "of": None, "recompute_us": None, "hidden_us": None}
    hidden_us = middle_us(steps[ON_DEMAND]) - middle_us(steps[OVERLAPPED])
    if NONE in steps:
        of, recompute_us = "on demand minus none", middle_us(steps[ON_DEMAND]) - middle_us(steps[NONE])
    else:
        microbatches = len(arms[ON_DEMAND].times[0].forward_us)
        of, recompute_us = "recompute alone", alone.recompute_us * microbatches if alone else 0.0
    fraction = hidden_us / recompute_us if recompute_us > 0 else None
    return {"fraction": fraction, "of": of, "recompute_us": recompute_us, "hidden_us": hidden_us}


def energy_record(bench: Bench) -> dict[str, Any]:
    """Whether the device's own counter was read, and of each arm what it said."""
    measured = not bench.energy_reason
    return {
        "measured": measured,
        "source": "NVML, the GPU's total energy counter" if measured else None,
        "reason": bench.energy_reason,
        "arms": {name: energy_data(samples.energy) for name, samples in bench.arms.items()} if measured else {},
    }


def alone_record(alone: Alone, label: str) -> dict[str, Any]:
    """Communication and recompute alone and at a time."""
    return {
        "label": label,
        **dataclasses.asdict(alone),
        "recompute_slowdown": alone.recompute_slowdown,
        "communication_slowdown": alone.communication_slowdown,
    }


def composed_record(found: Composed) -> dict[str, Any]:
    """An iteration of the pipeline."""
    result = found.result
    return {
        "iteration_us": result.iteration_us,
        "bubble_fraction": result.bubble_fraction,
        "tokens_per_s": result.tokens_per_s,
        "tflops_per_gpu": result.tflops_per_gpu,
        "hidden_us": sum(stage.hidden_us for stage in result.stages),
        "exposed_us": sum(stage.exposed_us for stage in result.stages),
        "peak_bytes": [stage.peak_bytes for stage in result.stages],
        "stage_forward_us": found.stage.forward_us,
        "stage_backward_us": found.stage.backward_us + found.stage.exposed_us,
    }


def words_of(words: Sequence[str]) -> str:
    """The command line, without the folders of this machine."""
    return " ".join(["tools/gpu_stage_bench.py", *words])
