"""Hooks megatron/core/transformer/mlp.py of megatron-core 0.16.1."""

from collections.abc import Callable
from typing import Any

from megatron.core.transformer import mlp as upstream
from torch import Tensor

from megatron.overlap.binder import SCALES_TWICE, Binder
from megatron.overlap.replacements import require_shape
from megatron.pretrain.platform.seam import Expected

Forward = Callable[..., tuple[Tensor, Tensor | None]]
_EXPECTED = (Expected(name="MLP.forward", parameters=("self", "hidden_states", "per_token_scale", "kwargs")),)


class MlpAdapter:
    """Units `linear_fc1` and `activation` of a feed-forward block, dense or an expert."""

    def __init__(self, binder: Binder) -> None:
        require_shape(upstream, "names the units of the feed-forward block", *_EXPECTED)
        self._binder = binder

    def attach(self, mlp: Any, layer: int, prefix: str = "") -> None:
        """Name the units of one module, `prefix` before their names; classes with a forward of their own are left."""
        if type(mlp).forward is not upstream.MLP.forward:
            for unit in ("linear_fc1", "activation"):
                self._binder.refuse(prefix + unit, layer, f"{type(mlp).__name__} computes the block in one call")
            return
        self.attach_linear(mlp, layer, prefix)
        self._binder.replacements.set(mlp, "forward", self.forward_of(mlp, layer, prefix))

    def attach_linear(self, mlp: Any, layer: int, prefix: str) -> None:
        """Name the unit `linear_fc1`."""
        reason = _why_linear_is_kept(mlp)
        if reason is not None:
            self._binder.refuse(f"{prefix}linear_fc1", layer, reason)
        else:
            self._binder.attach(mlp.linear_fc1, f"{prefix}linear_fc1", layer)

    def forward_of(self, mlp: Any, layer: int, prefix: str) -> Forward:
        """What stands in for `mlp.forward`: the same calls in the same order, the activation as a unit of its own."""
        run, activation = self._binder.run, f"{prefix}activation"
        self._binder.declare(activation, layer)

        def activate(wide: Tensor, bias: Tensor | None, per_token_scale: Tensor | None) -> Tensor:
            # The stock forward between two linears that only hand on: every variant of the activation, bit for bit.
            activated, _ = upstream.MLP.forward(_BetweenLinears(mlp, wide, bias), None, per_token_scale)
            return activated

        def forward(
            hidden_states: Tensor, per_token_scale: Tensor | None = None, **unused: Any
        ) -> tuple[Tensor, Tensor | None]:
            wide, bias = mlp.linear_fc1(hidden_states)
            activated = run(activation, layer, activate, wide, bias, per_token_scale)
            output, output_bias = mlp.linear_fc2(activated)
            if per_token_scale is not None and output_bias is not None:
                # An expert adds its bias itself, weighted like its output.
                output += output_bias.unsqueeze(0) * per_token_scale.unsqueeze(-1)
                output_bias = None
            return output, output_bias

        return forward


def _why_linear_is_kept(mlp: Any) -> str | None:
    if mlp.config.fp8 or mlp.config.fp4:
        return SCALES_TWICE
    gathers = getattr(mlp.linear_fc1, "sequence_parallel", False)
    if gathers and not getattr(mlp.linear_fc1, "explicit_expert_comm", False):
        return "it gathers the sequence over the tensor-parallel ranks (--sequence-parallel)"
    return None


class _BetweenLinears:
    """Stands for an MLP whose first linear has run and whose second one hands its input on."""

    __slots__ = ("config", "activation_func", "_wide", "_bias")

    def __init__(self, mlp: Any, wide: Tensor, bias: Tensor | None) -> None:
        self.config, self.activation_func = mlp.config, mlp.activation_func
        self._wide, self._bias = wide, bias

    def linear_fc1(self, hidden_states: None) -> tuple[Tensor, Tensor | None]:
        return self._wide, self._bias

    def linear_fc2(self, activated: Tensor) -> tuple[Tensor, None]:
        return activated, None
