"""The lane and its fences: order, ownership, threads, failures; with the extension and with the fallback."""

import threading
import time
import weakref
from collections.abc import Iterator

import pytest
import torch

from overlap_recompute import ops
from overlap_recompute.ops import backend as backend_module
from overlap_recompute.ops import lane as lane_module
from tests.unit.ops.support import BUILD, needs_extension

CPU = torch.device("cpu")
IMPLEMENTATIONS = [
    pytest.param("extension", marks=needs_extension),
    "fallback",
]
WAIT_S = 20


class Token:
    """Something whose death can be seen."""


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fallback":
        monkeypatch.setattr(backend_module, "extension", None)
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["inline", "threaded"])
def lane(request: pytest.FixtureRequest, implementation: str) -> Iterator[ops.Lane]:
    with ops.Lane(CPU, threaded=request.param) as lane:
        yield lane


def test_launches_run_in_order_and_a_wait_means_done(lane: ops.Lane) -> None:
    journal: list[str] = []
    lane.open_window()
    fences = [lane.launch(lambda name=name: journal.append(name)) for name in ("fc1", "activation", "qkv")]
    lane.close_window()
    fences[1].wait(ops.current_stream(CPU))
    assert journal[:2] == ["fc1", "activation"]
    fences[2].wait(0)
    fences[0].wait(0)
    assert journal == ["fc1", "activation", "qkv"]
    counts = lane.counts()
    assert (counts.windows, counts.launched, counts.waited) == (1, 3, 3)
    assert (counts.abandoned, counts.open_fences, counts.guards_held) == (0, 0, 0)


def test_a_fence_owns_what_it_guards_until_it_is_waited_for(lane: ops.Lane) -> None:
    token, results = Token(), [Token()]
    alive = [weakref.ref(token), weakref.ref(results[0])]
    fence = lane.launch(results.pop, [token])  # what the work returns is guarded, too
    del token
    fence.host_wait()
    assert fence.passed()
    assert all(reference() is not None for reference in alive)  # done, but nobody's stream has waited yet
    fence.wait(0, keep=True)
    assert all(reference() is not None for reference in alive)
    fence.wait(0)
    assert all(reference() is None for reference in alive)


def test_a_fence_is_waited_for_once(lane: ops.Lane) -> None:
    fence = lane.launch(lambda: None)
    fence.wait(0)
    with pytest.raises(RuntimeError, match="already waited for"):
        fence.wait(0)


def test_an_abandoned_fence_is_counted_and_lets_go_once_the_lane_has_passed(lane: ops.Lane) -> None:
    token = Token()
    alive = weakref.ref(token)
    lane.launch(lambda: None, [token])
    del token
    lane.launch(lambda: None).host_wait()
    lane.collect()
    assert alive() is None
    assert lane.counts().abandoned == 2
    assert lane.counts().open_fences == 0


def test_a_failure_surfaces_once(implementation: str) -> None:
    def fail() -> None:
        raise ZeroDivisionError("unit L3.fc1, microbatch 2")

    with ops.Lane(CPU) as lane:
        with pytest.raises(ZeroDivisionError, match="L3.fc1"):
            lane.launch(fail)
        lane.launch(lambda: None).wait(0)
    with ops.Lane(CPU, threaded=True) as lane:
        fence = lane.launch(fail)
        with pytest.raises(ZeroDivisionError, match="L3.fc1"):
            fence.wait(0)
        lane.launch(lambda: None).wait(0)
    lane = ops.Lane(CPU, threaded=True)
    fence = lane.launch(fail)
    del fence
    with pytest.raises(ZeroDivisionError, match="L3.fc1"):
        lane.close()
    lane.close()


def test_a_closed_lane_refuses_launches(implementation: str) -> None:
    lane = ops.Lane(CPU)
    lane.close()
    with pytest.raises(RuntimeError, match="closed lane"):
        lane.launch(lambda: None)


def test_close_waits_for_what_was_launched(implementation: str) -> None:
    done = threading.Event()
    lane = ops.Lane(CPU, threaded=True)
    fence = lane.launch(lambda: threading.Event().wait(0.05) or done.set())
    assert not fence.passed()
    lane.close()
    assert done.is_set()
    fence.wait(0)  # still legal


def test_a_lane_that_is_dropped_joins_its_thread(implementation: str) -> None:
    before = threading.active_count()
    done = threading.Event()
    lane = ops.Lane(CPU, threaded=True)
    lane.launch(lambda: threading.Event().wait(0.02) or done.set()).wait(0, keep=True)
    del lane
    assert done.is_set()
    assert threading.active_count() <= before


def test_a_lane_on_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="a lane on device meta; expected cpu or cuda"):
        ops.Lane(torch.device("meta"))


@needs_extension
def test_a_lane_runs_beside_the_calling_thread() -> None:
    """Two lanes that wait for each other's signal: impossible unless launches return before they are done."""
    first, second = threading.Event(), threading.Event()
    with ops.Lane(CPU, threaded=True) as one, ops.Lane(CPU, threaded=True) as other:
        fences = [
            one.launch(lambda: first.set() or second.wait(WAIT_S)),
            other.launch(lambda: first.wait(WAIT_S) and second.set()),
        ]
        for fence in fences:
            fence.wait(0)
    assert first.is_set()
    assert second.is_set()


@needs_extension
def test_one_lane_waits_for_another_and_the_guard_lives_until_it_passed() -> None:
    """Consumer = the other lane's stream: `wait` returns at once, and the guard dies when that stream has passed."""
    journal: list[str] = []
    gate = threading.Event()
    backend = backend_module.make_backend(CPU)
    producer = lane_module.extension.Lane(backend, own_stream=True, high_priority=False, marks=None)
    consumer = lane_module.extension.Lane(backend, own_stream=True, high_priority=False, marks=None)
    token = Token()
    alive = weakref.ref(token)
    fence = producer.launch(lambda: gate.wait(WAIT_S) and journal.append("recompute"), (token,), 0, 0)
    del token
    fence.wait(consumer.stream)
    behind = consumer.launch(lambda: journal.append("backward"), (), 0, 0)
    producer.collect()
    assert alive() is not None
    assert journal == []
    gate.set()
    behind.wait(0)
    assert journal == ["recompute", "backward"]
    assert producer.collect() == 1
    assert alive() is None
    for lane in (consumer, producer):
        lane.close()
        counts = lane.counts()
        assert (counts.guards_held, counts.open_fences, counts.events_alive) == (0, 0, 0)


@needs_extension
def test_events_are_pooled_and_freed() -> None:
    lane = ops.Lane(CPU, threaded=True)
    for _ in range(50):
        lane.open_window()
        lane.launch(lambda: None).wait(0)
    assert lane.counts().events_alive <= 3
    assert lane.counts().events_in_use == 0
    lane.close()
    assert lane.counts().events_alive == 0


@needs_extension
def test_marks_tell_the_order_of_windows_and_launches() -> None:
    marks = ops.StreamMarks(CPU)
    window, unit = marks.intern("tp_forward"), marks.intern("R.fc1")
    with ops.Lane(CPU, threaded=True, marks=marks) as lane:
        lane.open_window(window)
        fence = lane.launch(lambda: threading.Event().wait(0.02), name=unit, value=3)
        lane.close_window(window)
        found = [*marks.drain()]
        assert len(found) <= 3  # the end of the launch is not yet known
        fence.host_wait()
        found += [*marks.drain()]
        fence.wait(0)
        lane.launch(lambda: None, name=unit, value=4).wait(0)
        found += [*marks.drain()]
        stream = lane.stream
    kinds = {name: [int(mark["kind"]) for mark in found if mark["name"] == name] for name in (window, unit)}
    assert kinds == {window: [0, 1], unit: [0, 1, 0, 1]}
    launches = [mark for mark in found if mark["name"] == unit]
    assert [int(mark["value"]) for mark in launches] == [3, 3, 4, 4]
    assert all(mark["stream"] == (stream if mark["name"] == unit else 0) for mark in found)
    times = [int(mark["time_ns"]) for mark in launches]
    assert times == sorted(times)
    assert times[1] - times[0] >= 15_000_000


@needs_extension
def test_a_window_without_a_name_leaves_no_mark() -> None:
    marks = ops.StreamMarks(CPU)
    with ops.Lane(CPU, marks=marks) as lane:
        lane.open_window()
        lane.close_window()
    assert len(marks.drain()) == 0


@needs_extension
def test_stream_marks_are_a_ring_whose_marks_lie_on_the_current_stream() -> None:
    marks = ops.StreamMarks(CPU, capacity=4)
    name = marks.intern("F")
    before_ns = time.monotonic_ns()
    for value in range(6):
        marks.mark(name, ops.MarkKind.INSTANT, value)
    assert marks.overwritten == 2
    found = marks.drain()
    assert found["value"].tolist() == [0, 1, 2, 3]
    assert marks.names[name] == "F"
    assert before_ns <= found["time_ns"][0] <= found["time_ns"][-1] <= time.monotonic_ns()
    assert len(marks.threads) == 1


def test_stream_marks_without_the_extension_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "extension", None)
    with pytest.raises(ValueError, match="marks in the time of streams of cpu; expected an extension"):
        ops.StreamMarks(CPU)


@needs_extension
def test_a_bad_handle_is_named() -> None:
    backend = backend_module.make_backend(CPU)
    with pytest.raises(ValueError, match="CPU event handle 12345; expected one that this backend created"):
        backend.record(12345, 0)
    with pytest.raises(ValueError, match="CUDA device 99; expected one below"):
        lane_module.extension.Backend.cuda(99)


@needs_extension
def test_raw_events_follow_the_rules_of_cuda() -> None:
    backend = backend_module.make_backend(CPU)
    event, stream = backend.create_event(), backend.create_stream()
    assert backend.passed(event)  # never recorded: holds nobody up
    backend.stream_wait(0, event)
    backend.record(event, stream)
    backend.stream_wait(0, event)
    assert backend.passed(event)
    backend.destroy_event(event)
    backend.destroy_stream(stream)
    assert not backend.memory_is_stream_ordered()


def test_build_info_agrees_with_what_the_lane_uses() -> None:
    assert (backend_module.make_backend(CPU) is not None) == BUILD.extension
