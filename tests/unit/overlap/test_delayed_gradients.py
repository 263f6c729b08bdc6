"""Weight gradients that are put off: the same bits, later, through the same hooks."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import layers as upstream
from torch import Tensor

from megatron.overlap.adapters.weight_gradients import delay_weight_gradients
from megatron.overlap.delayed_gradients import DelayedGradients
from megatron.overlap.replacements import Replacements
from tests.unit.overlap.support import model_of

pytestmark = pytest.mark.usefixtures("rank")


class Case:
    """A row-parallel linear of a model that is wrapped for training, and what its weight gradients go into."""

    def __init__(self, active: bool = True) -> None:
        (self.chunk,) = model_of()
        linears = (module for module in self.chunk.modules() if isinstance(module, upstream.RowParallelLinear))
        self.linear: Any = next(linears)
        self.chunk.zero_grad_buffer()
        self.delayed = DelayedGradients(lambda: active)
        self.weight: Any = self.linear.weight
        generator = torch.Generator().manual_seed(3)
        shape = 16, 2, self.weight.shape[1]
        self.inputs = [torch.randn(shape, generator=generator, requires_grad=True) for _ in range(2)]

    def delay(self) -> None:
        self.linear._forward_impl = self.delayed.forward_of(self.linear)

    def backward(self, inputs: Tensor) -> None:
        output, _ = self.linear(inputs)
        (output * output).sum().backward()


def test_gradients_of_two_microbatches_are_those_of_upstream() -> None:
    stock, case = Case(), Case()
    case.weight.data.copy_(stock.weight.data)
    case.delay()
    for case_inputs, stock_inputs in zip(case.inputs, stock.inputs, strict=True):
        stock.backward(stock_inputs)
        case.backward(case_inputs)
        assert torch.equal(case_inputs.grad, stock_inputs.grad)  # type: ignore[arg-type]
        assert stock.weight.main_grad.any() and torch.equal(case.weight.main_grad, stock.weight.main_grad)
        assert case.weight.grad is None, "the hook of data parallelism has taken it"


def test_they_wait_until_they_are_asked_for_and_are_computed_once() -> None:
    case = Case()
    case.delay()
    seen: list[bool] = []

    def look(gradient: Tensor) -> None:
        seen.append(bool(case.weight.main_grad.any()))
        case.delayed.compute()
        seen.append(bool(case.weight.main_grad.any()))
        expected.append(case.weight.main_grad.clone())

    expected: list[Tensor] = []
    case.inputs[0].register_hook(look)  # runs after the linear's own backward pass
    case.backward(case.inputs[0])
    assert seen == [False, True]
    assert torch.equal(case.weight.main_grad, expected[0]), "not computed again at the end of the pass"
    assert case.delayed.take_spent_ns() > 0
    assert case.delayed.take_spent_ns() == 0


def test_what_a_failed_step_left_is_forgotten() -> None:
    case = Case()
    case.delay()

    def fail(gradient: Tensor) -> None:
        raise RuntimeError("in backward")

    case.inputs[0].register_hook(fail)
    with pytest.raises(RuntimeError, match="in backward"):
        case.backward(case.inputs[0])
    case.delayed.forget()
    case.delayed.compute()
    assert not case.weight.main_grad.any()


@pytest.mark.parametrize("active", [True, False])
def test_outside_of_steps_and_without_gradients_upstream_computes(active: bool) -> None:
    case = Case(active=active)
    case.delay()
    with torch.no_grad():
        without, _ = case.linear(case.inputs[0])
    output, _ = case.linear(case.inputs[0])
    assert torch.equal(output, without) and without.grad_fn is None
    names = {type(node).__name__ for node in _nodes(output)}
    assert ("_WeightGradientLaterBackward" in names) is active
    assert ("LinearWithGradAccumulationAndAsyncCommunicationBackward" in names) is not active


def _nodes(output: Tensor) -> list[Any]:
    found, todo = [], [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            found.append(node)
            todo += [following for following, _ in node.next_functions]
    return found


@pytest.mark.parametrize(("dtype", "kernel"), [(torch.float32, "fp32"), (torch.bfloat16, "fp16")])
def test_a_fused_kernel_adds_to_the_buffer_itself(
    dtype: torch.dtype, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apex' kernels need a GPU: what stands in for them does what they are documented to do."""
    case = Case()
    calls: list[str] = []

    def accumulate_as(name: str) -> Any:
        def accumulate(inputs: Tensor, output_gradient: Tensor, main_grad: Tensor) -> None:
            calls.append(name)
            main_grad.add_(output_gradient.t().matmul(inputs))

        return accumulate

    kernels = SimpleNamespace(wgrad_gemm_accum_fp32=accumulate_as("fp32"), wgrad_gemm_accum_fp16=accumulate_as("fp16"))
    monkeypatch.setattr(upstream, "fused_weight_gradient_mlp_cuda", kernels, raising=False)
    plain = Case()
    plain.weight.data.copy_(case.weight.data)
    plain.backward(plain.inputs[0])
    case.linear.gradient_accumulation_fusion = True
    case.weight.main_grad = torch.zeros_like(case.weight.main_grad, dtype=dtype)
    case.delay()
    case.backward(case.inputs[0])
    assert calls == [kernel] and case.weight.grad_added_to_main_grad
    assert torch.equal(case.weight.main_grad, plain.weight.main_grad.to(dtype))


def test_linears_of_one_tensor_parallel_rank_stay_as_they_are() -> None:
    (chunk,) = model_of()
    replacements = Replacements()
    assert delay_weight_gradients(replacements, [chunk], DelayedGradients(lambda: True)) == 0
    linears = [module for module in chunk.modules() if isinstance(module, upstream.RowParallelLinear)]
    assert linears and all("_forward_impl" not in linear.__dict__ for linear in linears)
