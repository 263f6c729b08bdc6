"""Marks become the steps of layers, and all of a pass is in some step."""

import pytest
import torch
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from megatron.overlap.measuring.iterations import Samples, usual
from megatron.overlap.measuring.marks import At, Communication, Mark
from megatron.overlap.measuring.passes import BEFORE, BEHIND, Step, backward_pass, forward_pass
from megatron.overlap.measuring.samples import mean_us, typical_pass
from megatron.overlap.measuring.session import MeasuringSession
from overlap_recompute.plan.profile import COMPUTE
from overlap_recompute.plan.windows import WindowKind
from tests.unit.model.support import CPU, EXPERTS, batch
from tests.unit.overlap.support import model_of
from tests.unit.overlap_measuring.support import measured, run

REDUCE = Communication(WindowKind.TP_FORWARD, "all_reduce", 64, False)
READS = {3: {"act": ("fc",)}}


def seed(number: int) -> None:
    torch.manual_seed(number)
    model_parallel_cuda_manual_seed(number)


def marks(*entries: tuple[At, str, int, float], what: Communication = REDUCE) -> tuple[list[Mark], list[float]]:
    windows = (At.LAUNCH, At.WAIT, At.WAIT_END)
    log = [Mark(at, None, unit, layer, what if at in windows else None) for at, unit, layer, _ in entries]
    return log, [when for *_, when in entries]


def test_a_forward_pass_is_cut_into_named_steps() -> None:
    found = forward_pass(
        *marks(
            (At.PASS, "", 0, 0.0), (At.MODEL, "", 0, 1.0), (At.LAYER, "", 3, 3.0),
            (At.UNIT, "input_layernorm", 3, 4.0), (At.UNIT_END, "input_layernorm", 3, 6.0),
            (At.UNIT, "linear_qkv", 3, 7.0), (At.UNIT_END, "linear_qkv", 3, 10.0),
            (At.UNIT, "core_attention", 3, 11.0), (At.UNIT_END, "core_attention", 3, 20.0),
            (At.WAIT, "", -1, 25.0), (At.WAIT_END, "", -1, 40.0),
            (At.UNIT, "pre_mlp_layernorm", 3, 43.0), (At.UNIT_END, "pre_mlp_layernorm", 3, 44.0),
            (At.LAYER_END, "", 3, 45.0), (At.PASS_END, "", 0, 50.0),
        )
    )  # fmt: skip
    assert [(step.name, step.us) for step in found.parts[3]] == [
        ("input_layernorm", 3.0), ("linear_qkv", 4.0), ("core_attention", 10.0), ("linear_proj", 5.0),
        ("all_reduce", 15.0), ("bias_dropout_add", 3.0), ("pre_mlp_layernorm", 1.0), ("linear_fc1", 1.0),
    ]  # fmt: skip
    assert [step.kind for step in found.parts[3]].index("tp_forward") == 4
    assert found.parts[BEFORE] == [Step(COMPUTE, "data", 1.0), Step(COMPUTE, "embedding", 2.0)]
    assert found.parts[BEHIND] == [Step(COMPUTE, "head", 5.0)]
    assert found.units[3] == {
        "input_layernorm": 2.0,
        "linear_qkv": 3.0,
        "core_attention": 9.0,
        "pre_mlp_layernorm": 1.0,
    }


def test_a_backward_step_needs_what_it_reads_and_what_it_completes() -> None:
    backward = Communication(WindowKind.TP_BACKWARD, "all_reduce", 64, True)
    found = backward_pass(
        *marks(
            (At.GRAD_LAYER, "", 3, 0.0), (At.BACKWARD, "", 0, 0.5), (At.GRAD_UNIT, "act", 3, 10.0),
            (At.GRAD_UNIT, "fc", 3, 14.0), (At.GRAD_UNIT, "fc", 3, 15.0), (At.LAUNCH, "", -1, 16.0),
            (At.WAIT, "", -1, 20.0), (At.WAIT_END, "", -1, 30.0), (At.GRAD_SUM, "norm", 3, 31.0),
            (At.GRAD_INPUT, "", 3, 33.0), (At.BACKWARD_END, "", 0, 40.0), what=backward,
        ),
        READS,
    )  # fmt: skip
    assert found.parts[3] == [
        Step(COMPUTE, "linear_fc2", 10.0, ("act",)),
        Step(COMPUTE, "act", 4.0, ("act", "fc")),
        Step(COMPUTE, "fc", 6.0, ("fc",)),
        Step("tp_backward", "all_reduce", 10.0, (), 4.0, 64, True),
        Step(COMPUTE, "fc", 1.0, ("fc",)),
        Step(COMPUTE, "linear_proj", 2.0),
    ]
    assert found.parts[BEFORE] == [Step(COMPUTE, "embedding", 7.0)]


@pytest.mark.parametrize("flags", ["", "--position-embedding-type rope --swiglu", EXPERTS])
def test_every_microsecond_of_a_pass_is_in_a_step(flags: str) -> None:
    samples: Samples = measured(flags, iterations=3).samples
    assert 1 <= len(samples.times) <= 3, "so short ones may look disturbed"
    for times in samples.times:
        assert 0 < times.passes_us <= times.iteration_us
        assert times.passes_us + times.update_us + times.between_us == pytest.approx(times.iteration_us)
    parts = [*samples.before, *samples.behind, *samples.forward.values(), *samples.backward.values()]
    in_steps = sum(step.us for passes in parts for steps in passes for step in steps)
    assert in_steps == pytest.approx(sum(times.passes_us for times in samples.times))
    assert all(len(passes) == 2 * len(samples.times) for passes in parts)


def test_steps_of_a_layer() -> None:
    samples = measured().samples
    forward, count = typical_pass([*samples.forward[0], *samples.forward[1]], lambda step: 0.0)
    backward, _ = typical_pass(samples.backward[1], lambda step: 0.0)
    assert count == 4 * len(samples.times)
    assert [step.name for step in forward] == [
        "input_layernorm", "linear_qkv", "core_attention", "linear_proj", "pre_mlp_layernorm", "linear_fc1",
        "activation", "linear_fc2",
    ]  # fmt: skip
    assert [(step.name, step.needs) for step in backward] == [
        ("linear_fc2", ("activation",)),
        ("activation", ("activation", "linear_fc1")),
        ("linear_fc1", ("linear_fc1", "pre_mlp_layernorm")),
        ("pre_mlp_layernorm", ("pre_mlp_layernorm",)),
        ("linear_proj", ("core_attention",)),
        ("core_attention", ("core_attention", "linear_qkv")),
        ("linear_qkv", ("linear_qkv", "input_layernorm")),
        ("input_layernorm", ("input_layernorm",)),
    ]
    assert all(step.duration_us > 0 and step.spread_us >= 0 for step in (*forward, *backward))


def test_measuring_changes_no_number_and_is_taken_back() -> None:
    dropout = "--attention-dropout 0.1 --hidden-dropout 0.1"
    gradients = []
    for is_measured in (False, True):
        seed(1)
        (chunk,) = model_of(dropout)
        before = {path: dict(module.__dict__) for path, module in chunk.named_modules()}
        seed(2)
        if is_measured:
            session = MeasuringSession([chunk], CPU)
            run(session, chunk, iterations=0, microbatches=1)
            session.close()
        else:
            chunk.zero_grad_buffer()
            chunk(**batch()).sum().backward()
        after = {path: dict(module.__dict__) for path, module in chunk.named_modules()}
        assert [before[path].keys() == after[path].keys() for path in before].count(False) == 0
        assert not any("forward" in attributes for attributes in after.values())
        gradients.append([parameter.main_grad.clone() for parameter in chunk.parameters()])
    assert all(torch.equal(plain, marked) for plain, marked in zip(*gradients, strict=True))


def test_passes_of_another_shape_are_left_out() -> None:
    usual, other = [Step(COMPUTE, "a", 1.0), Step(COMPUTE, "b", 5.0)], [Step(COMPUTE, "a", 9.0)]
    steps, count = typical_pass([usual, other, usual], lambda step: 0.0)
    assert count == 2
    assert [(step.name, step.duration_us) for step in steps] == [("a", 1.0), ("b", 5.0)]


def test_means_add_up() -> None:
    """Two parts that are slow by turns: their medians would be short of every sum."""
    first, second = [1.0, 1.0, 22.0] * 20, [22.0, 1.0, 1.0] * 20
    assert mean_us(first) + mean_us(second) == pytest.approx(16.0)
    assert mean_us([]) == 0.0


def test_an_iteration_that_was_disturbed_does_not_count() -> None:
    iterations = []
    for length_us in (10.0, 11.0, 300.0, 9.0):
        samples = Samples(chunks=1)
        samples.add(
            *marks(
                (At.ITERATION, "", -1, 0.0), (At.PASS, "", 0, 0.0), (At.LAYER, "", 0, 1.0),
                (At.LAYER_END, "", 0, length_us), (At.PASS_END, "", 0, length_us),
                (At.ITERATION_END, "", -1, length_us),
            ),
            {},
        )  # fmt: skip
        iterations.append(samples)
    joined = usual(iterations, 1)
    assert [time.iteration_us for time in joined.times] == [10.0, 11.0, 9.0]
    assert [steps[0].us for steps in joined.forward[0]] == [9.0, 10.0, 8.0]
    assert len(joined.before[0]) == 3


def test_collectives_of_the_update_are_told_from_those_in_passes() -> None:
    log, times_us = marks(
        (At.ITERATION, "", -1, 0.0), (At.OUTSIDE, "", -1, 1.0), (At.OUTSIDE_END, "", -1, 3.0),
        (At.PASS, "", 0, 5.0), (At.MODEL, "", 0, 6.0), (At.OUTSIDE, "", -1, 7.0), (At.OUTSIDE_END, "", -1, 8.0),
        (At.PASS_END, "", 0, 10.0), (At.GRAD_LAYER, "", 0, 12.0), (At.BACKWARD_END, "", 0, 20.0),
        (At.OUTSIDE, "", -1, 21.0), (At.OUTSIDE_END, "", -1, 61.0), (At.STEP_END, "", -1, 62.0),
        (At.OUTSIDE, "", -1, 70.0), (At.OUTSIDE_END, "", -1, 75.0), (At.ITERATION_END, "", -1, 90.0),
    )  # fmt: skip
    samples = Samples(chunks=1)
    samples.add(log, times_us, {})
    (times,) = samples.times
    assert times.update_communication_us == 2.0 + 40.0 + 5.0
    assert times.update_us == 90.0 - 15.0
    assert times.passes_us == 13.0
