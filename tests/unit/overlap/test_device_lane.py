"""The lane and the marks of a session on a device with streams, on the extension's streams of the CPU."""

import json
import logging
import pathlib

import pytest
import torch

from megatron.overlap import device_lane
from megatron.overlap.session import OverlapSession
from megatron.overlap.spans import LaneTimes, Span
from megatron.overlap.trace import LANES
from overlap_recompute import ops
from overlap_recompute.ops import lane as lane_module
from overlap_recompute.runtime import InlineLane, Journal, Kind, StreamLane
from tests.unit.ops.support import needs_extension
from tests.unit.overlap.support import forward_backward, model_of, settings_of
from tests.unit.overlap.test_flight import POLICY, spans, step_with_a_window

CPU = torch.device("cpu")


def test_times_of_lanes_tell_how_much_of_a_wait_was_filled() -> None:
    times = LaneTimes()
    times.add(
        [
            Span("hidden", "b", 95, 130, {}),
            Span("windows", "tp_backward", 100, 120, {}),
            Span("hidden", "a", 40, 60, {}),
            Span("exposed", "c", 150, 157, {}),
            Span("windows", "tp_backward", 50, 80, {}),
            Span("windows", "pp_wait", 125, 145, {}),
            Span("schedule", "0B0", 0, 500, {}),
        ]
    )
    assert (times.hidden_ns, times.exposed_ns) == (35 + 20, 7)
    assert times.waits_ns == {"tp_backward": 30 + 20, "pp_wait": 20}
    assert times.filled_ns == {"tp_backward": 10 + 20, "pp_wait": 5}


@needs_extension
def test_a_session_replays_on_the_lane_of_the_extension_and_traces_what_its_stream_did(
    rank: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes: list[ops.Lane] = []

    class Watched(lane_module.Lane):
        def __init__(self, device: torch.device, marks: ops.StreamMarks | None) -> None:
            super().__init__(device, marks=marks)
            lanes.append(self)

    monkeypatch.setattr(ops, "Lane", Watched)
    chunks, journal = model_of(), Journal()
    with OverlapSession(settings_of(POLICY, trace_folder=tmp_path), chunks, journal, ops.StreamMarks(CPU)) as session:
        for _ in range(2):
            step_with_a_window(session, chunks)
        figures = session.figures.take()
    (lane,) = lanes
    lane.collect()
    counts, replays = lane.counts(), [*journal.of(Kind.REPLAY_END)]
    assert counts.launched == sum(event.hidden for event in replays) == 2 * 3
    assert counts.launched == counts.waited + counts.abandoned
    assert (counts.open_fences, counts.guards_held) == (0, 0)
    found = spans(json.loads((tmp_path / "rank-00000.json").read_text()))
    traced = [(event["name"], LANES[event["tid"]]) for event in found if LANES[event["tid"]] in ("hidden", "exposed")]
    assert sorted(traced) == sorted(
        (f"R(L{e.layer}.{e.unit}) 0.{e.microbatch.number}", "hidden" if e.hidden else "exposed")  # type: ignore[attr-defined]
        for e in replays
    ), "each replay once"
    for window in (event for event in found if event["name"] == "pp_wait"):
        inside = [
            event
            for event in found
            if LANES[event["tid"]] == "hidden" and window["ts"] <= event["ts"] <= window["ts"] + window["dur"]
        ]
        assert len(inside) == 3
    # Figures are those of the streams: the sums of the trace, a step.
    for lane_name, figure in (("hidden", "hidden_recompute_ms"), ("exposed", "exposed_recompute_ms")):
        sums_us = sum(event["dur"] for event in found if LANES[event["tid"]] == lane_name)
        assert figures[f"overlap/{figure}"] == pytest.approx(sums_us / 1000 / 2, rel=1e-3)
    waits_us = sum(event["dur"] for event in found if event["name"] == "pp_wait")
    assert figures["overlap/window_ms/pp_wait"] == pytest.approx(waits_us / 1000 / 2, rel=1e-3)
    assert figures["overlap/filled_ms/pp_wait"] == pytest.approx(figures["overlap/hidden_recompute_ms"], rel=1e-3)


@needs_extension
def test_gradients_on_the_lane_of_the_extension_equal_those_without_recompute(rank: None) -> None:
    found = []
    for policy, ring in (("none", None), (POLICY, ops.StreamMarks(CPU))):
        chunks = model_of()
        with OverlapSession(settings_of(policy), chunks, None, ring) as session:
            if ring is None:
                forward_backward(session, chunks[0], microbatches=2)
            else:
                step_with_a_window(session, chunks)
        found.append([parameter.main_grad.clone() for parameter in chunks[0].module.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_cpu_replays_inline_and_marks_in_the_time_of_the_host(rank: None, tmp_path: pathlib.Path) -> None:
    ring = device_lane.ring_of(settings_of(POLICY, trace_folder=tmp_path))
    assert not isinstance(ring, ops.StreamMarks)
    assert isinstance(device_lane.lane_of(CPU, ring), InlineLane)


def test_a_gpu_without_the_extensions_part_says_what_its_trace_shows(
    rank: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device_lane, "make_backend", lambda device: None)
    settings = settings_of(POLICY, trace_folder=tmp_path, device=torch.device("cuda", 0))
    with caplog.at_level(logging.WARNING):
        ring = device_lane.ring_of(settings)
    assert not isinstance(ring, ops.StreamMarks)
    assert "when the host launched, not when cuda:0 computed" in caplog.text
    caplog.clear()
    device_lane.ring_of(settings_of(POLICY, device=torch.device("cuda", 0)))
    assert not caplog.text, "nobody reads the marks"


def test_a_gpu_replays_on_a_side_stream(rank: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(ops, "Lane", lambda device, marks: made.append((device, marks)) or object())
    device = torch.device("cuda", 0)
    assert isinstance(device_lane.lane_of(device, ops.event_ring()), StreamLane)
    assert made == [(device, None)]
