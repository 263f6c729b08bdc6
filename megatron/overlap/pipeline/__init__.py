"""Runs pipeline schedules that are lists of actions, in the place of Megatron-Core's schedules (docs/pipeline.md).

Reading order: `program` (the lists of a run), `interpreter` (one small handler for each kind of action), `passes` and
`transfers` (what the handlers call), `schedule` (everything around the actions of a step). It does not import the
recompute runtime: who wants to fill waits passes an object (`waits`).
"""
