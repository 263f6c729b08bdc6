"""The event ring of a session is always on: traces are made of it, and a step that fails leaves its last marks."""

import json
import logging
import pathlib
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from megatron.overlap import flight
from megatron.overlap.errors import BackwardError
from megatron.overlap.flight import FLIGHT_EVENT, LAST_MARKS
from megatron.overlap.session import OverlapSession
from megatron.overlap.settings import OverlapSettings
from megatron.overlap.trace import LANES, LOST_EVENT
from megatron.overlap.trace_files import merge_traces
from megatron.pretrain.training.overlap import _flight_folder
from overlap_recompute.ops import EventRing, event_ring
from overlap_recompute.ops import marks as marks_module
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.runtime import Journal, Kind, ReplayError
from tests.unit.model.support import batch, config_of
from tests.unit.ops.support import needs_extension
from tests.unit.overlap.support import Chunks, forward_backward, model_of, session_of, settings_of
from tests.unit.overlap.test_faults import boom
from tests.unit.overlap.test_units import fails_in_replay, layers_of
from tests.unit.overlap.test_windows import FakeWork

POLICY = "all:linear_fc1+activation"
Events = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that does much else may need longer for a file than an error waits for it."""
    monkeypatch.setattr(flight, "MOST_S", 60.0)


def spans(events: Events) -> Events:
    return [event for event in events if event["ph"] == "X"]


def about(events: Events, name: str) -> list[dict[str, Any]]:
    return [event["args"] for event in events if event["ph"] == "M" and event["name"] == name]


def step_with_a_window(session: OverlapSession, chunks: Chunks) -> None:
    """Forward of two microbatches, a window that takes three units, backward."""
    chunks[0].zero_grad_buffer()
    step = session.forward_step(lambda iterator, model: (model(**batch()), None))
    with session.step():
        outputs = [step(None, chunks[0])[0] for _ in range(2)]
        session.windows.finish(WindowKind.PP_WAIT, FakeWork(polls=3), pollable=True)
        session.windows.measure(WindowKind.TP_FORWARD, FakeWork())
        while outputs:
            outputs.pop(0).sum().backward()


@pytest.fixture(params=[pytest.param("extension", marks=needs_extension), "python"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(marks_module, "extension", None)


def test_the_spans_of_a_trace_are_the_marks_of_the_steps(
    rank: None, implementation: None, tmp_path: pathlib.Path
) -> None:
    chunks, ring, journal = model_of(), event_ring(), Journal()
    marked: list[tuple[int, int]] = []
    drain = ring.drain

    class Watched:
        """The ring, with a look at what is drained."""

        intern, mark, capacity = ring.intern, ring.mark, ring.capacity

        def drain(self) -> Any:
            marks = drain()
            marked.extend(zip(marks["time_ns"].tolist(), marks["kind"].tolist(), strict=True))
            return marks

        def __getattr__(self, name: str) -> Any:
            return getattr(ring, name)

    watched: EventRing = Watched()  # type: ignore[assignment]
    with OverlapSession(settings_of(POLICY, trace_folder=tmp_path), chunks, journal, watched) as session:
        begin_ns = time.time_ns()
        for _ in range(2):
            step_with_a_window(session, chunks)
            names = len(ring.names)
        end_ns = time.time_ns()
        assert len(journal.events) > 0, "it is left to whoever asked for it"
    found = spans(json.loads((tmp_path / "rank-00000.json").read_text()))
    assert len(found) == len(marked) / 2 == 2 * (2 + 2 + 2 + 8)
    assert names == 1 + 2 + len(WindowKind) + 4, "no name is numbered twice"
    replays = [event for event in found if LANES[event["tid"]] in ("hidden", "exposed")]
    assert [(event["name"], LANES[event["tid"]]) for event in replays] == [
        (f"R(L{e.layer}.{e.unit}) 0.{e.microbatch.number}", "hidden" if e.hidden else "exposed")  # type: ignore[attr-defined]
        for e in journal.of(Kind.REPLAY_END)
    ]
    assert [event["args"]["units"] for event in found if event["name"] == "pp_wait"] == [3, 3]
    filled = next(event for event in found if event["name"] == "pp_wait")
    assert 0 < filled["args"]["filled_us"] <= filled["dur"]
    assert next(event for event in found if event["name"] == "tp_forward")["args"] == {"units": 0, "filled_us": 0}
    first, last = min(event["ts"] for event in found), max(event["ts"] + event["dur"] for event in found)
    assert begin_ns / 1000 - 1e7 < first < last < end_ns / 1000 + 1e7, "in the time of the world"


def test_a_ring_that_is_too_small_for_a_step_says_so_once(
    rank: None, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    chunks = model_of()
    settings = settings_of(POLICY, trace_folder=tmp_path)
    with caplog.at_level(logging.WARNING), OverlapSession(settings, chunks, ring=event_ring(8)) as session:
        for _ in range(2):
            step_with_a_window(session, chunks)
    assert caplog.text.count("makes more marks than the event ring holds") == 1
    events = json.loads((tmp_path / "rank-00000.json").read_text())
    marks = 2 * 2 * (2 + 2 + 2 + 8)
    assert about(events, LOST_EVENT)[-1] == {"overwritten": marks - 2 * 8}
    assert len(spans(events)) == 2 * 3, "the last replays of each step; the begin of the pass around them is gone"


def failing_step(session: OverlapSession, chunks: Chunks) -> None:
    """A replay in a window fails."""
    step = session.forward_step(lambda iterator, model: (model(**batch()), None))
    with session.step():
        output, _ = step(None, chunks[0])
        session.windows.finish(WindowKind.PP_WAIT, FakeWork(polls=100), pollable=True)
        del output


def after_a_failure(
    settings: OverlapSettings, monkeypatch: pytest.MonkeyPatch, ring: EventRing | None = None
) -> tuple[float, Chunks]:
    """A step that works, then one whose replay fails; returns how long that one took."""
    chunks = model_of()
    with OverlapSession(settings, chunks, ring=ring) as session:
        forward_backward(session, chunks[0])
        fails_in_replay(session, layers_of(chunks)[1].mlp.linear_fc1, monkeypatch)
        begin_s = time.monotonic()
        with pytest.raises(ReplayError, match="a bad day"):
            failing_step(session, chunks)
        length_s = time.monotonic() - begin_s
        assert not session.runtime.queue.microbatches()
    return length_s, chunks


def test_a_failing_replay_leaves_the_last_marks(
    rank: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        after_a_failure(settings_of(POLICY, flight_folder=folder), monkeypatch)
    path = folder / "flight-rank-00000.json"
    assert [file.name for file in folder.iterdir()] == [path.name]
    assert [record.message for record in caplog.records] == [f"the last marks of this rank are in {path}"]
    events = json.loads(path.read_text())
    (said,) = about(events, FLIGHT_EVENT)
    assert said["error"].startswith("ReplayError: found unit 'linear_fc1' of layer 1, microbatch 0")
    assert "a bad day" in said["error"] and said["overwritten"] == 0
    found = spans(events)
    assert [event["name"] for event in found if event["tid"] == 0] == ["0F0", "0B0", "0F0"], "the step before, too"
    failed, waits = found[-2:]
    assert (failed["name"], failed["args"]) == ("R(L1.linear_fc1) 0.0", {"failed": True})
    assert waits["name"] == "pp_wait" and waits["args"]["unfinished"]
    assert waits["ts"] <= failed["ts"] and failed["ts"] + failed["dur"] <= waits["ts"] + waits["dur"]
    assert merge_traces([path], tmp_path / "all.json") == len(events)


def test_an_error_in_backward_leaves_the_pass_unfinished(rank: None, tmp_path: pathlib.Path) -> None:
    chunks = model_of()
    with session_of(chunks, settings_of(POLICY, flight_folder=tmp_path, rank=3)) as session:
        layers_of(chunks)[1].self_attention.linear_proj.weight.register_hook(boom)
        with pytest.raises(BackwardError):
            forward_backward(session, chunks[0])
    events = json.loads((tmp_path / "flight-rank-00003.json").read_text())
    assert (
        "BackwardError: backward failed after it had read a tensor of unit" in about(events, FLIGHT_EVENT)[0]["error"]
    )
    assert [event["name"] for event in spans(events) if event["args"].get("unfinished")] == ["0B0"]
    assert {event["pid"] for event in events} == {3}


def test_a_traced_run_has_the_failed_step_in_both_files(
    rank: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_a_failure(settings_of(POLICY, trace_folder=tmp_path, flight_folder=tmp_path / "other"), monkeypatch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flight-rank-00000.json", "rank-00000.json"]
    trace, last = (json.loads((tmp_path / name).read_text()) for name in ("rank-00000.json", "flight-rank-00000.json"))
    for events in (trace, last):
        assert [event["name"] for event in spans(events)][-1 if events is trace else -2] == "R(L1.linear_fc1) 0.0"
    schedule = [[event["name"] for event in spans(events) if event["tid"] == 0] for events in (trace, last)]
    assert schedule == [["0F0", "0B0", "0F0"], ["0F0"]], "the flight record holds what the trace does not have yet"


def test_the_file_is_bounded(rank: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = event_ring()
    for value in range(3 * LAST_MARKS):
        ring.mark(1, value % 2, value // 2)
    after_a_failure(settings_of(POLICY, flight_folder=tmp_path), monkeypatch, ring)
    path = tmp_path / "flight-rank-00000.json"
    assert about(json.loads(path.read_text()), FLIGHT_EVENT)[0]["marks"] == LAST_MARKS
    assert path.stat().st_size < 1 << 20


def test_a_folder_that_cannot_be_made_hides_nothing(
    rank: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        after_a_failure(settings_of(POLICY, flight_folder=tmp_path / "file" / "run"), monkeypatch)
    (record,) = caplog.records
    assert "the last marks of this rank are not in" in record.message and "NotADirectoryError" in record.message


def test_a_disk_that_hangs_does_not_hold_the_error_back(
    rank: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(flight, "MOST_S", 0.05)
    monkeypatch.setattr(flight.os, "replace", lambda *paths: released.wait(120))
    with caplog.at_level(logging.WARNING):
        length_s, _ = after_a_failure(settings_of(POLICY, flight_folder=tmp_path), monkeypatch)
    assert length_s < 60
    assert [record.message for record in caplog.records if "is not written after 0.05 s" in record.message]
    assert not (tmp_path / "flight-rank-00000.json").exists()
    released.set()
    for thread in threading.enumerate():
        if thread.name == "overlap-recompute-flight":
            thread.join(5)


def test_a_stuck_step_leaves_what_had_begun(rank: None, tmp_path: pathlib.Path) -> None:
    """As the watch does it: on another thread, while the step goes on."""
    chunks = model_of()
    with session_of(chunks, settings_of(POLICY, flight_folder=tmp_path)) as session:

        def stuck(gradient: object) -> None:
            watch = threading.Thread(target=session.leave_last_marks, args=("stopped because rank 1 fell silent",))
            watch.start()
            watch.join(10)

        layers_of(chunks)[1].self_attention.linear_proj.weight.register_hook(stuck)
        forward_backward(session, chunks[0])
        failing_of_the_main_thread = session._flight.write(RuntimeError("came back too late"))
    assert failing_of_the_main_thread is None, "the file of the watch stays"
    events = json.loads((tmp_path / "flight-rank-00000.json").read_text())
    assert about(events, FLIGHT_EVENT)[0]["error"] == "stopped because rank 1 fell silent"
    assert [event["name"] for event in spans(events) if event["args"].get("unfinished")] == ["0B0"]


def test_a_failure_is_not_replaced_when_the_process_is_ended(
    rank: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks, path = model_of(), tmp_path / "flight-rank-00000.json"
    with session_of(chunks, settings_of(POLICY, flight_folder=tmp_path)) as session:
        fails_in_replay(session, layers_of(chunks)[1].mlp.linear_fc1, monkeypatch)
        with pytest.raises(ReplayError, match="a bad day"):
            failing_step(session, chunks)
        before = path.read_bytes()
        session.leave_last_marks("stopped because rank 1 fell silent")
    assert path.read_bytes() == before and b"a bad day" in before


def test_where_a_run_leaves_it(tmp_path: pathlib.Path) -> None:
    save, metrics, board = (
        f"--save {tmp_path}/s",
        f"--metrics-file {tmp_path}/m/x.jsonl",
        f"--tensorboard-dir {tmp_path}/t",
    )
    folders = {(save, metrics, board): "s", (metrics, board): "m", (board,): "t"}
    for flags, folder in folders.items():
        assert _flight_folder(config_of(*flags)) == tmp_path / folder
    assert _flight_folder(config_of()) is None
    settings = replace(settings_of(POLICY), trace_folder=tmp_path / "traces", flight_folder=tmp_path / "s")
    assert flight.FlightRecorder(settings, None).path == tmp_path / "traces" / "flight-rank-00000.json"  # type: ignore[arg-type]
