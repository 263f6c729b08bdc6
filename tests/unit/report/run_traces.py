"""Traces of a made-up run of the sample plan: four ranks in two stages, as files."""

import dataclasses
import json
import pathlib
from typing import Any

from overlap_recompute.plan.digest import plan_digest
from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.run_trace import LANES, RUN_EVENT, TRACE_VERSION, TraceOrigin
from tests.unit.plan.samples import sample_plan, sample_profile

MICROBATCHES = 4
BEGIN_US = 1.7e15
"""Wall clock of the first step; later ones begin a second after the one before."""
BETWEEN_US = 1e6
Event = dict[str, Any]


def origin_of(plan: Plan | None = None, **changes: Any) -> TraceOrigin:
    """Of rank 0 of a run of the sample profile's model."""
    plan = plan or sample_plan(sample_profile())
    origin = TraceOrigin(
        version=TRACE_VERSION, rank=0, ranks=4, stage=0, stages=2, chunks=1, microbatches=MICROBATCHES,
        model_fingerprint=plan.model_fingerprint, plan_digest=plan_digest(plan), planner=plan.planner, policy=None,
        window_kinds=("pp_wait", "tp_backward"), prefetch_cap_bytes=400, device="cpu",
        taken="2026-01-02T03:04:05+00:00",
    )  # fmt: skip
    return dataclasses.replace(origin, **changes)


def events_of(origin: TraceOrigin, stretches: tuple[float, ...]) -> list[Event]:
    """All events of a rank.

    A pass takes 100 us times the step's stretch. Backward passes have a window from 20 to 50 us with a hidden replay
    from 25 to 40 us, and an exposed replay from 60 to 70 us. Stage 1 waits for 100 us before its first pass.
    """
    events: list[Event] = [{"ph": "M", "name": "process_name", "pid": origin.rank, "args": {"name": "a rank"}}]
    events.append({"ph": "M", "name": RUN_EVENT, "pid": origin.rank, "args": dataclasses.asdict(origin)})
    for number, stretch in enumerate(stretches):
        at_us = BEGIN_US + number * BETWEEN_US

        def add(
            lane: str, name: str, begin_us: float, end_us: float, at_us: float = at_us, by: float = stretch
        ) -> None:
            place = {"pid": origin.rank, "tid": LANES.index(lane)}
            events.append(
                {"ph": "X", "name": name, **place, "ts": at_us + begin_us * by, "dur": (end_us - begin_us) * by}
            )

        begin_us = 100.0 * origin.stage
        if origin.stage:
            add("windows", "pp_wait", -50.0, 100.0)
        for microbatch in range(MICROBATCHES):
            add("schedule", f"0F{microbatch}", begin_us, begin_us + 100)
            add("schedule", f"0B{microbatch}", begin_us + 100, begin_us + 200)
            add("windows", "tp_backward", begin_us + 120, begin_us + 150)
            add("hidden", f"R(L1.fc) 0.{microbatch}", begin_us + 125, begin_us + 140)
            add("exposed", f"R(L0.fc) 0.{microbatch}", begin_us + 160, begin_us + 170)
            begin_us += 200
    return events


def write_run(
    folder: pathlib.Path, stretches: tuple[float, ...] = (9.0, 1.0, 3.0, 2.0), **changes: Any
) -> pathlib.Path:
    """The folder with a file for each rank; `changes` are made to what every rank tells."""
    folder.mkdir()
    for rank in range(4):
        origin = origin_of(**{"rank": rank, "stage": rank // 2, **changes})
        (folder / f"rank-{rank:05d}.json").write_text(json.dumps(events_of(origin, stretches)))
    return folder
