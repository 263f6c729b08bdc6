"""The order of launches, events and waits of the side-stream lane, on streams that only write down what they do."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overlap_recompute import ops
from overlap_recompute.runtime import Policy, ReplayError, ReplayMarks, Runtime, StreamLane
from tests.unit.ops.support import needs_extension
from tests.unit.runtime.models import MlpBlock, Stack
from tests.unit.runtime.support import limited, never, plain_step, runtime_step, same_bits

CPU = torch.device("cpu")


class FakeEvent:
    """Passed when the streams say so."""

    def __init__(self, streams: "FakeStreams", name: str) -> None:
        self.streams, self.name, self.mark = streams, name, -1

    def query(self) -> bool:
        return self.streams.passed


class FakeStreams:
    """A log of what each stream is told, and which stream has seen what."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, str]] = []
        self.stack = ["comp"]
        self.events = 0
        self.passed = False
        self.seen: dict[str, int] = {"comp": -1, "lane": -1}

    def current(self) -> str:
        return self.stack[-1]

    def create(self, *, high_priority: bool) -> str:
        assert not high_priority
        return "lane"

    def event(self) -> FakeEvent:
        self.events += 1
        return FakeEvent(self, f"e{self.events}")

    def record(self, event: FakeEvent, stream: str) -> None:
        event.mark = len(self.log)
        self.log.append(("record", stream, event.name))

    def wait(self, stream: str, event: Any) -> None:
        assert event.mark >= 0, "waiting for an event that was never recorded"
        self.seen[stream] = max(self.seen[stream], event.mark)
        self.log.append(("wait", stream, event.name))

    def finish(self, stream: str) -> None:
        self.passed = True

    @contextmanager
    def use(self, stream: str) -> Iterator[None]:
        self.stack.append(stream)
        try:
            yield
        finally:
            self.stack.pop()

    def run(self, name: str) -> None:
        self.log.append(("run", self.current(), name))


class Step(nn.Module):
    """A unit that tells the streams that it runs."""

    def __init__(self, streams: FakeStreams, name: str) -> None:
        super().__init__()
        self.streams, self.name, self.weight = streams, name, nn.Parameter(torch.ones(4))
        self.adds = False

    def forward(self, x: Tensor) -> Tensor:
        self.streams.run(self.name)
        return x + self.weight if self.adds else x * self.weight


def lane_on(streams: FakeStreams) -> StreamLane:
    return StreamLane(ops.Lane(CPU, streams=streams))


def chain(streams: FakeStreams, names: str) -> tuple[nn.ModuleDict, Runtime]:
    model = nn.ModuleDict({name: Step(streams, name) for name in names})
    runtime = Runtime(Policy.recompute_all(), lane=lane_on(streams))
    runtime.attach(model, list(names))
    return model, runtime


def forward(model: nn.ModuleDict, runtime: Runtime, x: Tensor) -> Tensor:
    with runtime.microbatch(0):
        for unit in model.values():
            x = unit(x)
        return (x**2).sum()


def test_a_fill_waits_for_compute_and_compute_waits_for_each_fence() -> None:
    streams = FakeStreams()
    model, runtime = chain(streams, "ab")
    loss = forward(model, runtime, torch.ones(1, 4))
    streams.log.clear()
    assert runtime.queue.fill(never).units == 2
    assert streams.log == [
        ("record", "comp", "e1"),
        ("wait", "lane", "e1"),
        ("run", "lane", "a"),
        ("record", "lane", "e1"),
        ("run", "lane", "b"),
        ("record", "lane", "e2"),
    ], "the lane waits for all compute so far, and its own order is all it needs between its replays"
    streams.log.clear()
    loss.backward()
    assert streams.log == [("wait", "comp", "e2"), ("wait", "comp", "e1")], "b is used first, each is waited for once"
    runtime.step_end()


def test_each_fill_waits_anew_and_events_are_used_again() -> None:
    streams = FakeStreams()
    model, runtime = chain(streams, "abc")
    for _ in range(5):
        loss = forward(model, runtime, torch.ones(1, 4))
        streams.log.clear()
        while runtime.queue.fill(limited(1)).units:
            pass
        assert streams.log.count(("wait", "lane", "e1")) >= 1
        records = [entry for entry in streams.log if entry[:2] == ("record", "comp")]
        assert len(records) == 3, "one for each fill that had something to do"
        loss.backward()
        runtime.step_end()
    assert streams.events <= 4


def test_an_exposed_replay_waits_for_the_fence_of_what_it_reads() -> None:
    streams = FakeStreams()
    model, runtime = chain(streams, "ab")
    loss = forward(model, runtime, torch.ones(1, 4))
    runtime.queue.fill(limited(1))
    streams.log.clear()
    loss.backward()
    assert streams.log == [("wait", "comp", "e1"), ("run", "comp", "b")]
    runtime.step_end()


def test_what_the_lane_reads_lives_until_compute_has_waited() -> None:
    streams = FakeStreams()
    model, runtime = chain(streams, "a")
    model["a"].adds = True  # Nothing but the replay itself needs the argument.
    x = torch.ones(1, 4) * 1
    storage = weakref.ref(x.untyped_storage())
    loss = forward(model, runtime, x)
    del x
    runtime.queue.fill(never)
    assert storage() is not None, "the lane may still be reading the argument"
    loss.backward()
    del loss
    assert storage() is None
    assert streams.log[-1] == ("wait", "comp", "e1")
    runtime.step_end()


def test_the_arguments_of_a_result_that_nobody_uses_live_until_the_lane_has_passed() -> None:
    streams = FakeStreams()
    model, runtime = chain(streams, "ab")
    model["a"].adds = True
    x = torch.ones(1, 4) * 1
    storage = weakref.ref(x.untyped_storage())
    loss = forward(model, runtime, x)
    del x
    runtime.queue.fill(never)
    del loss
    assert runtime.ledger.held_bytes == 0
    assert storage() is not None, "the lane may still be reading the argument"
    runtime.step_end()
    streams.passed = True
    loss = forward(model, runtime, torch.ones(1, 4))
    runtime.queue.fill(never)
    assert storage() is None
    loss.backward()
    runtime.step_end()


class Box:
    """An argument that is no tensor, but holds one."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("where", ["in the function", "in an argument"])
def test_what_the_lane_reads_besides_tensor_arguments_lives_as_long(where: str) -> None:
    runtime = Runtime(Policy.recompute_all(), lane=lane_on(FakeStreams()))
    runtime.declare("shift", 0)
    box = Box(torch.ones(4) * 2)
    storage = weakref.ref(box.tensor.untyped_storage())
    bound = partial(lambda held, x, _=None: (x + held.tensor).exp(), box)
    with runtime.microbatch(0):
        x = torch.ones(1, 4, requires_grad=True)
        if where == "in the function":
            loss = runtime.run("shift", 0, bound, x).sum()
        else:
            loss = runtime.run("shift", 0, lambda x, held: (x + held.tensor).exp(), x, box).sum()
    del box, bound
    runtime.queue.fill(never)
    if where == "in the function":
        del loss
    assert storage() is not None, "the lane may still be reading it"
    runtime.abort()


def test_another_stream_waits_too_but_only_compute_gets_the_memory_back() -> None:
    streams = FakeStreams()
    streams.seen["other"] = -1
    model, runtime = chain(streams, "a")
    loss = forward(model, runtime, torch.ones(1, 4))
    runtime.queue.fill(never)
    streams.log.clear()
    with streams.use("other"):
        loss.backward(retain_graph=True)
    loss.backward()
    assert ("wait", "other", "e1") in streams.log
    assert streams.log[-1] == ("wait", "comp", "e1")
    runtime.step_end()


def test_a_failing_replay_leaves_the_current_stream() -> None:
    streams = FakeStreams()
    model, runtime = chain(streams, "a")
    loss = forward(model, runtime, torch.ones(1, 4))
    model["a"].weight = None  # type: ignore[assignment]
    with pytest.raises(ReplayError, match="TypeError"):
        runtime.queue.fill(never)
    assert streams.current() == "comp"
    assert streams.log[-1][:2] == ("wait", "comp"), "the lane may still be reading what it was given"
    assert streams.log[-2][:2] == ("record", "lane")
    del loss


def test_a_lane_changes_no_bit() -> None:
    model = Stack(*(MlpBlock(8) for _ in range(3)))
    inputs = [torch.randn(2, 8) for _ in range(3)]
    expected = plain_step(model, inputs)
    streams = FakeStreams()
    runtime = Runtime(Policy.recompute_all(), lane=lane_on(streams), verify=True)
    runtime.attach(model, ["blocks.*.norm", "blocks.*.fc1", "blocks.*.act", "blocks.*.drop"])
    assert same_bits(runtime_step(model, inputs, runtime, fill=True), expected)
    assert streams.seen["comp"] > 0
    runtime.detach()


@needs_extension
def test_the_lane_of_the_extension_changes_no_bit_keeps_nothing_and_marks_its_replays() -> None:
    model = Stack(*(MlpBlock(8) for _ in range(3)))
    inputs = [torch.randn(2, 8) for _ in range(3)]
    expected = plain_step(model, inputs)
    marks = ops.StreamMarks(CPU)
    lane = ops.Lane(CPU, marks=marks)
    replays = ReplayMarks(marks, lambda key: int(str(key)))
    runtime = Runtime(Policy.recompute_all(), lane=StreamLane(lane), marks=replays, verify=True)
    runtime.attach(model, ["blocks.*.norm", "blocks.*.fc1", "blocks.*.act", "blocks.*.drop"])
    assert same_bits(runtime_step(model, inputs, runtime, fill=True), expected)
    lane.collect()
    counts = lane.counts()
    assert counts.launched == counts.waited + counts.abandoned > 0, "what only other replays read is not waited for"
    assert counts.waited > counts.abandoned
    assert (counts.open_fences, counts.guards_held, counts.events_in_use) == (0, 0, 0)
    found = marks.drain()
    begins, ends = (found[found["kind"] == int(kind)] for kind in (ops.MarkKind.BEGIN, ops.MarkKind.END))
    assert len(begins) == len(ends) == 3 * 3 * 4, "each replay once, whoever ran it"
    assert sum(begins["value"] & 1) == counts.launched, "the lane has marked the hidden ones itself"
    assert len({marks.names[name] for name in begins["name"]}) == 3 * 4
    runtime.detach()


def test_a_failing_replay_of_the_extension_surfaces_once_and_leaves_nothing() -> None:
    model = nn.ModuleDict({name: Step(FakeStreams(), name) for name in "ab"})
    lane = ops.Lane(CPU)
    runtime = Runtime(Policy.recompute_all(), lane=StreamLane(lane))
    runtime.attach(model, list("ab"))
    loss = forward(model, runtime, torch.ones(1, 4))
    model["b"].weight = None  # type: ignore[assignment]
    with pytest.raises(ReplayError, match="TypeError"):
        runtime.queue.fill(never)
    with pytest.raises(ReplayError, match="failed before"):
        loss.backward()
    del loss
    lane.collect()
    counts = lane.counts()
    assert (counts.open_fences, counts.guards_held) == (0, 0)
