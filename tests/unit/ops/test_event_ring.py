"""The event ring: order, wrap-around, threads, names; with the extension and in Python."""

import threading
import time

import numpy as np
import pytest

from overlap_recompute import ops
from overlap_recompute.ops import marks as marks_module
from tests.unit.ops.support import needs_extension

BEGIN, END = int(ops.MarkKind.BEGIN), int(ops.MarkKind.END)


@pytest.fixture(params=[pytest.param("extension", marks=needs_extension), "python"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(marks_module, "extension", None)
    return str(request.param)


def test_a_mark_has_time_thread_name_kind_and_value() -> None:
    ring = ops.event_ring()
    name = ring.intern("F.L3")
    assert (ring.intern("F.L3"), ring.intern("B.L3"), list(ring.names)) == (name, name + 1, ["", "F.L3", "B.L3"])
    before = time.monotonic_ns()
    ring.mark(name, BEGIN, 7)
    ring.mark(name, END, -(2**62))
    after = time.monotonic_ns()
    marks = ring.drain()
    assert marks.dtype == ops.MARK
    assert marks["kind"].tolist() == [BEGIN, END]
    assert marks["value"].tolist() == [7, -(2**62)]
    assert marks["name"].tolist() == [name, name]
    assert before <= marks["time_ns"][0] <= marks["time_ns"][1] <= after
    assert [ring.threads[index] for index in marks["thread"]] == [threading.get_native_id()] * 2
    assert len(ring.drain()) == 0


def test_a_full_ring_keeps_the_newest_and_counts_the_rest() -> None:
    ring = ops.event_ring(100)
    assert ring.capacity == 128
    for value in range(300):
        ring.mark(0, BEGIN, value)
    assert ring.drain()["value"].tolist() == list(range(172, 300))
    assert ring.overwritten == 172
    for value in range(50):
        ring.mark(0, BEGIN, value)
    assert ring.drain()["value"].tolist() == list(range(50))
    assert ring.overwritten == 172


def test_what_is_no_mark_is_refused_and_leaves_none(implementation: str) -> None:
    if implementation == "python":
        pytest.skip("the ring in Python looks at a mark when it is drained")
    ring = ops.event_ring()
    wrong: list[tuple[tuple[object, ...], type[Exception]]] = [
        ((), TypeError), ((1,), TypeError), ((1, 0, 0, 0), TypeError), (("F", BEGIN), TypeError),
        ((1, 0, 0.5), TypeError), ((-1, BEGIN), OverflowError), ((1 << 32, BEGIN), OverflowError),
        ((1, -1), OverflowError), ((1, BEGIN, 1 << 63), OverflowError),
    ]  # fmt: skip
    for arguments, error in wrong:
        with pytest.raises(error):
            ring.mark(*arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not initialized"):
        type(ring).mark(type(ring).__new__(type(ring)), 1, BEGIN)
    assert len(ring.drain()) == 0
    ring.mark(1, BEGIN, -1)
    ring.mark(1, ops.MarkKind.END)
    assert ring.drain()["value"].tolist() == [-1, 0]


def test_threads_mark_while_another_drains() -> None:
    ring = ops.event_ring(256)
    threads, each = 4, 3000
    start = threading.Barrier(threads + 1)

    def produce(producer: int) -> None:
        start.wait()
        for value in range(each):
            ring.mark(producer, BEGIN, value)

    workers = [threading.Thread(target=produce, args=(producer,)) for producer in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    parts = []
    while any(worker.is_alive() for worker in workers):
        parts.append(ring.drain())
    parts.append(ring.drain())
    marks = np.concatenate(parts)
    assert len(marks) + ring.overwritten == threads * each
    assert len(set(ring.threads)) >= 1
    for producer in range(threads):
        values = marks["value"][marks["name"] == producer]
        assert (np.diff(values) > 0).all()  # none twice, none out of order
        assert values[-1] == each - 1  # the newest survives
        assert len(set(marks["thread"][marks["name"] == producer])) == 1


def test_threads_that_come_and_go_do_not_pile_up_memory(implementation: str) -> None:
    ring = ops.event_ring(1 << 16)
    for turn in range(40):
        thread = threading.Thread(target=ring.mark, args=(0, BEGIN, turn))
        thread.start()
        thread.join()
        if turn % 4 == 3:
            assert ring.drain()["value"].tolist() == list(range(turn - 3, turn + 1))
    assert len(ring.threads) == 40


def test_rings_do_not_mix() -> None:
    one, other = ops.event_ring(8), ops.event_ring(8)
    one.mark(0, BEGIN, 1)
    other.mark(0, BEGIN, 2)
    one.mark(0, BEGIN, 3)
    assert one.drain()["value"].tolist() == [1, 3]
    assert other.drain()["value"].tolist() == [2]
    del one
    again = ops.event_ring(8)
    again.mark(0, BEGIN, 4)
    assert again.drain()["value"].tolist() == [4]


@pytest.mark.parametrize("capacity", [0, 2**63 + 1])
def test_a_ring_of_no_size_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match=f"an event ring of {capacity} marks; expected 1 to "):
        ops.event_ring(capacity)


def test_a_mark_is_cheap_enough_to_stay_on() -> None:
    """A generous bound against gross faults (a lock, an allocation); benchmarks/event_ring.py measures the cost."""
    ring = ops.event_ring()
    mark, best_ns = ring.mark, float("inf")
    for _ in range(20):
        start = time.perf_counter_ns()
        for value in range(1000):
            mark(1, 0, value)
        best_ns = min(best_ns, (time.perf_counter_ns() - start) / 1000)
    assert best_ns < 5000
