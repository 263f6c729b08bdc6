"""Hooks megatron/core/transformer/attention.py of megatron-core 0.16.1."""

from functools import partial
from typing import Any

from megatron.core.transformer import attention as upstream
from megatron.core.transformer.identity_op import IdentityOp
from torch import Tensor

from megatron.overlap.binder import SCALES_TWICE, Binder
from megatron.overlap.replacements import require_shape
from megatron.pretrain.platform.seam import Expected

_EXPECTED = (
    Expected(
        name="SelfAttention.get_query_key_value_tensors",
        parameters=("self", "hidden_states", "key_value_states", "output_gate", "split_qkv"),
    ),
    Expected(name="apply_rotary_pos_emb", parameters=("t", "freqs", "config", "cu_seqlens", "mscale", "cp_group")),
)


class AttentionAdapter:
    """Units `linear_qkv`, `rotary` and `core_attention` of self-attention.

    `linear_qkv` is the method that projects, splits and normalizes: what it returns are views of one storage (with
    grouped queries the query is a copy), so core attention's arguments can be rebuilt from one replay.
    `rotary` runs once for the query and once for the key.
    """

    def __init__(self, binder: Binder) -> None:
        require_shape(upstream, "names the units of self-attention", *_EXPECTED)
        self._binder = binder
        self._layer: int | None = None
        self._stock_rotary = upstream.apply_rotary_pos_emb
        binder.replacements.set(upstream, "apply_rotary_pos_emb", self._rotary)

    def attach(self, attention: Any, layer: int, rotates: bool) -> None:
        """Name the units of one attention module; of other kinds than self-attention only core attention.

        `rotates` says whether the model has rotary embedding.
        """
        if not isinstance(attention, upstream.Attention):
            return
        if isinstance(attention, upstream.SelfAttention):
            self._attach_projection(attention, layer)
            if rotates:
                self._binder.declare("rotary", layer)
                self._mark_layer(attention, layer)
        else:
            self._binder.refuse("linear_qkv", layer, f"{type(attention).__name__} has other projections")
        if isinstance(attention.core_attention, IdentityOp):
            return
        if attention.config.context_parallel_size > 1:
            self._binder.refuse("core_attention", layer, "it gathers keys and values over the context-parallel ranks")
        else:
            self._binder.attach(attention.core_attention, "core_attention", layer)

    def _attach_projection(self, attention: Any, layer: int) -> None:
        reason = _why_projection_is_kept(attention) or self._why_hooks_forbid_it(attention)
        if reason is not None:
            self._binder.refuse("linear_qkv", layer, reason)
            return
        self._binder.declare("linear_qkv", layer)
        run = partial(self._binder.run, "linear_qkv", layer, attention.get_query_key_value_tensors)
        self._binder.replacements.set(attention, "get_query_key_value_tensors", run)

    def _why_hooks_forbid_it(self, attention: Any) -> str | None:
        inside = [attention.linear_qkv, attention.q_layernorm, attention.k_layernorm]
        hooked = any(module is not None and (module._forward_hooks or module._forward_pre_hooks) for module in inside)
        return (
            "it has forward hooks, which a replay would run again"
            if hooked and not self._binder.replays_hooks
            else None
        )

    def _mark_layer(self, attention: Any, layer: int) -> None:
        """While this module's forward runs, rotary embedding belongs to its layer."""
        forward = attention.forward

        def marked(*args: Any, **options: Any) -> Any:
            outer, self._layer = self._layer, layer
            try:
                return forward(*args, **options)
            finally:
                self._layer = outer

        self._binder.replacements.set(attention, "forward", marked)

    def _rotary(self, t: Tensor, freqs: Tensor, *args: Any, **options: Any) -> Tensor:
        # The frequencies are one tensor for all layers and microbatches, cached upstream: bound, not an argument, so
        # that nobody counts them as kept.
        rotate = partial(_rotate, self._stock_rotary, freqs, args, options)
        if self._layer is None:
            return rotate(t)
        return self._binder.run("rotary", self._layer, rotate, t)


def _rotate(stock: Any, freqs: Tensor, args: tuple[Any, ...], options: dict[str, Any], t: Tensor) -> Tensor:
    rotated: Tensor = stock(t, freqs, *args, **options)
    return rotated


def _why_projection_is_kept(attention: Any) -> str | None:
    if attention.config.fp8 or attention.config.fp4:
        return SCALES_TWICE
    if attention.config.sequence_parallel and attention.world_size > 1:
        return "it gathers the sequence over the tensor-parallel ranks (--sequence-parallel)"
    if attention.config.num_query_groups < attention.world_size:
        return "it gathers keys and values over the tensor-parallel ranks, which are more than the query groups"
    return None
