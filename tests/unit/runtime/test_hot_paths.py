"""What happens for every saved tensor: the functions in C++ do the usual case, and do what their twins in Python do."""

import gc
import itertools
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overlap_recompute.ops import comparisons
from overlap_recompute.ops.native import extension
from overlap_recompute.runtime import InPlaceError, Journal, Policy, ReplayError, Runtime, hot_paths
from overlap_recompute.runtime import replay as replay_module
from overlap_recompute.runtime import runtime as runtime_module
from overlap_recompute.runtime.lanes import InlineLane
from tests.unit.ops.support import needs_extension
from tests.unit.runtime.cases import BODIES, check
from tests.unit.runtime.faulty import WHERE, Unit, assert_clean, drop, lose
from tests.unit.runtime.models import MlpBlock, Stack
from tests.unit.runtime.support import attached, limited, plain_step, runtime_step, same_bits

UNITS = ["blocks.*.norm", "blocks.*.fc1", "blocks.*.act", "blocks.*.drop"]


def twins_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hot_paths, "extension", None)


def count_twins(patch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a function in Python runs, with the extension."""
    found: Counter[str] = Counter()

    def counting(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def make_counting(state: Any, twin: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def counted(value: Any) -> Any:
                found[name] += 1
                return twin(value)

            return make(state, counted)

        return make_counting

    patch.setattr(runtime_module, "pack_hook", counting("pack", hot_paths.pack_hook))
    patch.setattr(runtime_module, "take_hook", counting("take", hot_paths.take_hook))
    patch.setattr(replay_module, "capture_hook", counting("capture", hot_paths.capture_hook))
    return found


def norms(count: int) -> Stack:
    return Stack(*(nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8)) for _ in range(count)))


@needs_extension
def test_the_usual_case_stays_in_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = norms(4), [torch.randn(2, 8) for _ in range(2)]
    expected = plain_step(model, inputs)
    twins = count_twins(monkeypatch)
    with attached(model, Policy.recompute_all(), ["blocks.*.0", "blocks.*.1"]) as runtime:
        runtime_step(model, inputs, runtime)
        twins.clear()
        assert same_bits(runtime_step(model, inputs, runtime), expected)
    # In Python: what is saved outside of units, and the first read of a call, which starts its replay.
    calls = 2 * 8
    assert twins["capture"] == 0
    assert twins["pack"] <= 2 * len(inputs)
    assert 0 < twins["take"] <= calls + 2 * len(inputs)


def told(journal: Journal) -> list[tuple[object, ...]]:
    """A journal without times."""
    return [event[:-1] for event in journal.events]


@needs_extension
@pytest.mark.parametrize("fill", [False, True], ids=["on demand", "filled"])
def test_bytes_and_events_are_those_of_the_twins(fill: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[list[int], list[tuple[object, ...]]]] = []
    for patch in (lambda: None, lambda: twins_alone(monkeypatch)):
        patch()
        torch.manual_seed(0)
        model, journal = Stack(*(MlpBlock(8) for _ in range(3))), Journal()
        with attached(model, Policy.recompute_all(), UNITS, journal=journal) as runtime:
            ledger = runtime.ledger
            with runtime.microbatch("first"):
                loss = model(torch.randn(2, 8))
            sizes = [ledger.kept_bytes, ledger.dropped_bytes]
            if fill:
                runtime.queue.fill(limited(5))
            sizes += [ledger.recomputed_bytes, ledger.prefetched_bytes]
            loss.backward()
            sizes += [ledger.kept_peak_bytes, ledger.held_peak_bytes, ledger.prefetched_peak_bytes]
            del loss
            sizes += [ledger.kept_bytes, ledger.dropped_bytes, ledger.recomputed_bytes]
            runtime.step_end()
        found.append((sizes, told(journal)))
    assert found[0] == found[1]
    assert min(found[0][0][:2]) > 0 and found[0][0][-3:] == [0, 0, 0]


@pytest.mark.parametrize("fill", [False, True], ids=["on demand", "filled"])
@pytest.mark.parametrize("case", BODIES)
def test_gradients_are_equal_without_verification_for(case: str, fill: bool, implementation: str) -> None:
    functions, body = BODIES[case]
    check(functions, body, fill, verify=False)


def saving_twice(weight: Tensor, x: Tensor) -> Tensor:
    """Saves one storage three times, in two geometries."""
    inner = (x * weight).exp()
    return inner * inner.t().contiguous().t() + inner.t().sin().t()


def test_a_storage_that_a_unit_saves_several_times_counts_once(implementation: str) -> None:
    check([saving_twice, saving_twice], lambda x, u, v: v(u(x)).sum(), verify=False)


def other_size(unit: Unit, x: Tensor) -> Tensor:
    return (x * unit.weight)[: 3 - unit.calls].exp().sum() + x.sum()


def other_dtype(unit: Unit, x: Tensor) -> Tensor:
    return (x * unit.weight).to(torch.float64 if unit.calls > 1 else torch.float32).exp().float()


@pytest.mark.parametrize("function", [other_size, other_dtype])
def test_a_replay_that_saves_something_else_is_refused(function: Callable[..., Any], implementation: str) -> None:
    unit, runtime = drop(function)
    loss = lose(unit, runtime)
    with pytest.raises(ReplayError, match=WHERE + ".*saved tensor"):
        loss.backward()
    assert_clean(runtime)


def test_a_parameter_that_changes_is_seen(implementation: str) -> None:
    unit, runtime = drop(lambda unit, x: (x * unit.weight).exp())
    for _ in range(2):
        lose(unit, runtime).backward()
        runtime.step_end()
        with torch.no_grad():
            unit.weight.add_(1)
    with runtime.microbatch(0):
        loss = (unit(torch.ones(2, 4)) * unit.weight).sum()
    with torch.no_grad():
        unit.weight.add_(1)
    with pytest.raises(InPlaceError):
        loss.backward()


def test_a_recomputed_tensor_that_changes_is_seen(implementation: str) -> None:
    unit, runtime = drop(lambda unit, x: (x * unit.weight).exp().sin())
    loss = lose(unit, runtime)
    runtime.queue.fill(lambda: False)
    saved = [node for node, _ in loss.grad_fn.next_functions[0][0].next_functions]
    saved[0]._saved_self.mul_(2)
    with pytest.raises(InPlaceError, match=WHERE):
        loss.backward()


def test_nothing_outlives_a_runtime(implementation: str) -> None:
    class Lane(InlineLane):
        """Can be weakly referred to."""

    lane = Lane()
    gone = weakref.ref(lane)
    model = norms(1)
    runtime = Runtime(Policy.recompute_all(), lane=lane)
    runtime.attach(model, ["blocks.*.0"])
    runtime_step(model, [torch.randn(2, 8)], runtime)
    runtime.detach()
    del runtime, lane
    gc.collect()
    assert gone() is None


@needs_extension
def test_what_is_not_laid_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extension is not None
    classes = hot_paths.PARTS
    layout = extension.bookkeeping_layout(classes)
    with pytest.raises(TypeError, match="RuntimeState"):
        extension.pack_hook(layout, object(), print)

    class Open:
        running = None

    with pytest.raises(TypeError, match="running is no slot of its class"):
        extension.bookkeeping_layout({**classes, "RuntimeState": Open})
    with pytest.raises(KeyError, match="Tally"):
        extension.bookkeeping_layout({name: each for name, each in classes.items() if name != "Tally"})


BOTH = [pytest.param("", marks=needs_extension), "python_"]


@pytest.mark.parametrize("prefix", BOTH)
def test_attributes_are_compared(prefix: str) -> None:
    same = getattr(comparisons, f"{prefix}same_attributes")
    tensors = tuple(torch.zeros(1) for _ in range(3))
    assert same(tensors, "_version", (0, 0, 0)) and same((), "_version", ())
    tensors[2].add_(1)
    assert not same(tensors, "_version", (0, 0, 0)) and same(tensors, "_version", (0, 0, 1))
    modules = (nn.Linear(1, 1), nn.Dropout().eval())
    assert same(modules, "training", (True, False)) and not same(modules, "training", (True, True))
    with pytest.raises(AttributeError, match="absent"):
        same(modules, "absent", (True, True))
    with pytest.raises((TypeError, ValueError)):
        same(modules, "training", (True,))


@pytest.mark.parametrize("prefix", BOTH)
def test_memory_is_compared(prefix: str) -> None:
    same = getattr(comparisons, f"{prefix}same_memory")
    first, second = torch.arange(1000), torch.arange(1000)
    assert same(first.data_ptr(), second.data_ptr(), 8000)
    second[-1] = 0
    assert not same(first.data_ptr(), second.data_ptr(), 8000)
    assert same(first.data_ptr(), second.data_ptr(), 7992)


@needs_extension
def test_arguments_of_comparisons_are_checked() -> None:
    for function, wrong in itertools.product((comparisons.same_memory, comparisons.same_attributes), ((), (1, 2))):
        with pytest.raises(TypeError, match="got [02] arguments"):
            function(*wrong)
    with pytest.raises(TypeError):
        comparisons.same_memory("a", 1, 1)  # type: ignore[arg-type]
