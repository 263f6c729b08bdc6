"""One rank of the tests of delayed weight gradients: each is computed while an all-reduce is in flight.

Played by overlap_equality.py, in the process groups of its layout. Fails an assertion.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from overlap_recompute.plan.profile_facts import ProfileFacts
from tests.distributed.overlap_journal import LAYERS, MICROBATCHES, ON, STEPS, TP2, Observed
from tests.distributed.overlap_support import CPU, GPT, batches, build, config_of

from megatron.overlap import delayed_gradients  # isort: skip - after the platform
from megatron.pretrain.training.overlap import open_recompute  # isort: skip
from megatron.pretrain.training.step import TrainStep  # isort: skip

FLAGS = f"{GPT} {TP2} --global-batch-size {2 * MICROBATCHES}"
DELAY = "--overlap-recompute-delay-wgrad"
LINEARS_PER_LAYER = 4


class Seen:
    """When weight gradients were put off and computed, and how many all-reduces had been launched by then."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.added: list[int] = []
        self.computed: list[int] = []
        add, gradient = delayed_gradients.DelayedGradients.add, delayed_gradients._weight_gradient
        stock = torch.distributed.all_reduce
        launched = 0

        def counting(*args: Any, **options: Any) -> Any:
            nonlocal launched
            launched += 1
            return stock(*args, **options)

        def adding(delayed: Any, *args: Any) -> None:
            self.added.append(launched)
            add(delayed, *args)

        def computing(pending: Any) -> Any:
            self.computed.append(launched)
            return gradient(pending)

        with (
            mock.patch.object(torch.distributed, "all_reduce", counting),
            mock.patch.object(delayed_gradients.DelayedGradients, "add", adding),
            mock.patch.object(delayed_gradients, "_weight_gradient", computing),
        ):
            self.run = run()


def delayed() -> None:
    """One all-reduce is launched between a linear's backward pass and its weight gradient: the one it hides behind."""
    plain, seen = Seen(lambda: Observed(f"{FLAGS} {ON}")), Seen(lambda: Observed(f"{FLAGS} {ON} {DELAY}"))
    assert not plain.added and not plain.computed
    assert len(seen.added) == LINEARS_PER_LAYER * LAYERS * MICROBATCHES * STEPS
    assert seen.computed == [launched + 1 for launched in seen.added]
    assert seen.run.collectives == plain.run.collectives
    assert seen.run.flops == plain.run.flops
    assert plain.run.delayed_ns == [0] * STEPS and all(seen.run.delayed_ns)
    on_demand = Seen(lambda: Observed(f"{FLAGS} {ON} {DELAY} --overlap-recompute-serialize"))
    assert not on_demand.added
    measured = Seen(measure)
    assert len(measured.added) == len(seen.added)
    assert measured.computed == [launched + 1 for launched in measured.added]


def measure() -> None:
    """The first iterations of a run that measures a profile, not enough to write one."""
    config = config_of(f"{FLAGS} {ON} {DELAY} --overlap-recompute-profile unwritten.json")
    state = build(config)
    with open_recompute(config, state.model, CPU, facts=unasked, base_bytes=0, iterations=STEPS) as overlap:
        step = TrainStep(config, overlap=overlap)
        for _ in range(STEPS):
            step(state, [batches(config)])


def unasked() -> ProfileFacts:
    raise AssertionError("asked when a profile is made")
