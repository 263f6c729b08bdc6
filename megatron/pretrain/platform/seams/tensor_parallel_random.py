"""Hooks megatron/core/tensor_parallel/random.py of megatron-core 0.16.1."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from megatron.pretrain.platform.seam import Expected, Seam

MODULE = "megatron.core.tensor_parallel.random"


def _default_to_no_fp8(module: ModuleType) -> None:
    # `self.fp8 = fp8 is not None` reads the default False as "fp8 is on". With Transformer Engine that is harmless
    # (it asks whether fp8 is enabled) and wanted (callers in a layer rely on the default while fp8 is on).
    if not module.HAVE_TE:
        module.CheckpointWithoutOutput.__init__.__defaults__ = (None,)


def _view_of_parameter(output: Any) -> Any:
    return output.view_as(output) if isinstance(output, torch.nn.Parameter) else output


def _returning_views(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        outputs = function(*args)
        if isinstance(outputs, tuple):
            return tuple(_view_of_parameter(output) for output in outputs)
        return _view_of_parameter(outputs)

    return run


def _return_views_of_parameters(module: ModuleType) -> None:
    stock = module.checkpoint
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def checkpoint(function: Callable[..., Any], distribute_saved_activations: bool, *args: Any) -> Any:
        return stock(_returning_views(function), distribute_saved_activations, *args)

    module.checkpoint = checkpoint  # type: ignore[attr-defined]


def _use_cpu_generator(module: ModuleType) -> None:
    def get_state(device: object = "cuda", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(new_state: torch.Tensor, device: object = -1, graph_safe: bool = False) -> None:
        torch.set_rng_state(new_state)

    module._get_cuda_rng_state = get_state  # type: ignore[attr-defined]
    module._set_cuda_rng_state = set_state  # type: ignore[attr-defined]


OUTPUT_DISCARDING_CHECKPOINT_WITHOUT_FP8 = Seam(
    module=MODULE,
    purpose="recompute of layernorm, moe_act and mla_up_proj takes the fp8 path and raises NameError",
    expects=(Expected(name="CheckpointWithoutOutput.__init__", parameters=("self", "fp8")),),
    adjust=_default_to_no_fp8,
)

CHECKPOINT_OF_A_RETURNED_PARAMETER = Seam(
    module=MODULE,
    # autograd makes an output of a Function that is a leaf a non-leaf in place: the bias parameter itself would get
    # grad_fn=CheckpointFunctionBackward, and the replay's backward would enter the same node again, for ever.
    purpose="recompute of a biased mlp recurses without end, because the checkpointed MLP returns its bias parameter",
    expects=(Expected(name="checkpoint", parameters=("function", "distribute_saved_activations", "args")),),
    adjust=_return_views_of_parameters,
)

CPU_GENERATOR = Seam(
    module=MODULE,
    purpose="the generator of the CUDA device stands for dropout; on the CPU it is torch's default generator",
    expects=(
        Expected(name="_get_cuda_rng_state", parameters=("device", "clone", "graph_safe")),
        Expected(name="_set_cuda_rng_state", parameters=("new_state", "device", "graph_safe")),
    ),
    adjust=_use_cpu_generator,
)
