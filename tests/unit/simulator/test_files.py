"""A simulation as trace, tables and picture."""

import csv
import json
import pathlib

import pytest

from overlap_recompute.plan.actions import parse_action
from overlap_recompute.plan.errors import DataError
from overlap_recompute.plan.files import save_text
from overlap_recompute.simulator import SimulationResult, simulate
from overlap_recompute.simulator.chrome import THREADS, spans_csv, stages_csv, trace_text
from overlap_recompute.simulator.pictures import draw
from tests.unit.plan.samples import sample_profile
from tests.unit.simulator.models import plan_of


@pytest.fixture(scope="module")
def result() -> SimulationResult:
    profile = sample_profile(((2,), (2,)))
    return simulate(profile, plan_of(profile, 6, ("fc", "act"), prefetch_cap_bytes=400), timeline=True)


def test_a_trace_holds_every_span_on_its_lane(result: SimulationResult) -> None:
    events = json.loads(trace_text(result))
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == len(result.spans)
    assert {THREADS[event["tid"]] for event in spans} == set(THREADS)
    passes = {event["name"] for event in spans if THREADS[event["tid"]] == "schedule"}
    assert passes == {f"0{kind}{number}" for kind in "FB" for number in range(6)}
    assert all(parse_action(event["name"]) for event in spans if THREADS[event["tid"]] == "pp")
    hidden_us = sum(event["dur"] for event in spans if THREADS[event["tid"]] == "hidden")
    assert hidden_us == pytest.approx(sum(stage.hidden_us for stage in result.stages))
    counters = [event for event in events if event["ph"] == "C"]
    assert max(event["args"]["bytes"] for event in counters) == max(stage.held_peak_bytes for stage in result.stages)


def test_tables_hold_the_figures(result: SimulationResult) -> None:
    spans = list(csv.DictReader(spans_csv(result).splitlines()))
    assert [(row["name"], float(row["end_us"])) for row in spans] == [(span.name, span.end_us) for span in result.spans]
    stages = list(csv.DictReader(stages_csv(result).splitlines()))
    assert [float(row["exposed_us"]) for row in stages] == [stage.exposed_us for stage in result.stages]
    assert float(stages[0]["tp_backward_filled_us"]) == next(
        window.filled_us for window in result.stages[0].windows if window.kind == "tp_backward"
    )


def test_a_picture_shows_who_does_what(result: SimulationResult) -> None:
    first, second, legend = draw(result, 100).splitlines()
    assert len(first) == len(second) == 100
    assert first.startswith("stage 0 00") and second.startswith("stage 1 ..")
    assert second[8:].index("a") < first[8:].index("a") and first.rstrip(".").endswith("f")
    assert "!" in first + second and "forward pass" in legend


def test_a_file_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        save_text(tmp_path / "missing" / "trace.json", "")
