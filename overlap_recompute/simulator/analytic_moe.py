"""A mixture-of-experts layer on hardware that one does not have (all-to-all dispatcher, balanced experts).

    symbol  meaning                                             from
    T       tokens of a microbatch on this rank                 `LayerShape.local_tokens`
    k, E    experts of a token, of the layer                    `Mixture`
    R       rows that this rank's experts compute together      T k t: expert tensor parallelism is t, as attention's

Tokens go through one all-to-all in the expert-parallel group and, with t > 1, an all-gather in the tensor-parallel one;
back through a reduce-scatter and an all-to-all. All four are `ep` windows: exchange of tokens. Router, permutation and
exchange run once; nothing replays them.
"""

from dataclasses import dataclass

from overlap_recompute.plan.kept_bytes import FP32_BYTES, attention_rows
from overlap_recompute.plan.profile import LayerKind, Pass, UnitCost
from overlap_recompute.plan.storages import StorageRow
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.simulator.analytic_layers import (
    activation_needs,
    attention_backward,
    attention_forward,
    attention_parameters,
    attention_transient_bytes,
    attention_units,
    describe_layer,
    unit_of,
)
from overlap_recompute.simulator.analytic_links import RankGroup, collective_us
from overlap_recompute.simulator.analytic_steps import LayerSite, window_of

EP = WindowKind.EP.value
ROUTER_KERNELS = 6
"""Softmax, choice, counting and sorting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Experts of a layer; the width of one is the shape's `ffn_hidden`."""

    experts: int
    """Of the layer, all ranks."""
    per_token: int
    """Experts that a token passes."""
    group: RankGroup
    """Ranks that share the experts."""

    @property
    def local(self) -> int:
        """Experts of one rank."""
        return self.experts // self.group.ranks


def mixture_layer(site: LayerSite, mixture: Mixture, fingerprint: str) -> LayerKind:
    """A layer of attention and experts, as Megatron-Core's `SequentialMLP` runs it: expert after expert.

    Args:
        site: shape of the layer, whose feed-forward block is one expert, and the hardware.
        mixture: its experts.
        fingerprint: of the model that it belongs to.
    """
    shape = site.shape
    forward = (*attention_forward(site), *_experts_forward(site, mixture))
    linears = shape.hidden * (3 if shape.gated else 2) * shape.ffn_hidden // shape.tensor_parallel
    rows_bytes = _rows(site, mixture) * shape.element_bytes
    transient = rows_bytes * (2 * shape.hidden + site.wide_channels + site.inner_channels)
    return LayerKind(
        fingerprint=f"{fingerprint}/mixture",
        description=f"{describe_layer(shape)}, {mixture.experts} experts, {mixture.per_token} of them for a token",
        units=(*attention_units(site, forward), *_expert_units(forward)),
        storages=(*attention_rows(shape), *_expert_rows(site, mixture)),
        forward=forward,
        backward=(*_experts_backward(site, mixture), *attention_backward(site)),
        parameters=attention_parameters(shape) + mixture.experts * shape.hidden,
        expert_parameters=mixture.local * linears,
        transient_bytes=max(attention_transient_bytes(site), transient),
    )


def _rows(site: LayerSite, mixture: Mixture) -> int:
    """R of the head of this file."""
    return site.shape.local_tokens * mixture.per_token * site.tensor_group.ranks


def _expert_units(forward: Pass) -> tuple[UnitCost, ...]:
    """linear_fc1 and activation of all experts together; what reaches the experts is kept."""
    return unit_of("linear_fc1", forward), unit_of("activation", forward, ("linear_fc1",))


def _expert_rows(site: LayerSite, mixture: Mixture) -> tuple[StorageRow, ...]:
    shape, rows = site.shape, _rows(site, mixture)
    size = shape.element_bytes
    router = 2 * shape.local_tokens * mixture.experts * FP32_BYTES
    return (
        StorageRow(name="scores of the router", nbytes=router, maker=None, held=True),
        StorageRow(name="tokens of the experts", nbytes=rows * shape.hidden * size, maker=None, held=True),
        StorageRow(name="weights of the tokens", nbytes=rows * FP32_BYTES, maker=None, held=True),
        StorageRow(name="output of linear_fc1", nbytes=rows * site.wide_channels * size, maker="linear_fc1", held=True),
        StorageRow(
            name="output of activation", nbytes=rows * site.inner_channels * size, maker="activation", held=True
        ),
    )


def _exchange(site: LayerSite, mixture: Mixture) -> Pass:
    """All-to-all of the tokens that this rank sends."""
    nbytes = site.shape.local_tokens * mixture.per_token * site.shape.hidden * site.shape.element_bytes
    return window_of(EP, "all_to_all", nbytes, collective_us(site.hardware, mixture.group, "all_to_all", nbytes))


def _share(site: LayerSite, mixture: Mixture, name: str) -> Pass:
    """Gathering rows for, or reducing results of, the parts of an expert on tensor-parallel ranks."""
    nbytes = _rows(site, mixture) * site.shape.hidden * site.shape.element_bytes
    return window_of(EP, name, nbytes, collective_us(site.hardware, site.tensor_group, name, nbytes))


def _products_us(site: LayerSite, mixture: Mixture, columns: int, inner: int) -> float:
    """A product for each expert of the rank."""
    rows = max(1, _rows(site, mixture) // mixture.local)
    return mixture.local * site.product(rows, columns, inner)


def _weights_us(site: LayerSite, mixture: Mixture, columns: int, inner: int) -> float:
    rows = max(1, _rows(site, mixture) // mixture.local)
    return mixture.local * site.product(columns, inner, rows, adds_in_fp32=True)


def _permute_us(site: LayerSite, mixture: Mixture) -> float:
    """Reads each token once, writes it once for each of its experts (or the other way round)."""
    return site.moves(site.width_bytes * (1 + mixture.per_token), kernels=2)


def _router_us(site: LayerSite, mixture: Mixture) -> float:
    product_us = site.product(site.shape.local_tokens, mixture.experts, site.shape.hidden)
    scores_bytes = 4 * site.shape.local_tokens * mixture.experts * FP32_BYTES
    return product_us + site.moves(scores_bytes, kernels=ROUTER_KERNELS)


def _experts_forward(site: LayerSite, mixture: Mixture) -> Pass:
    rows, size, hidden = _rows(site, mixture), site.shape.element_bytes, site.shape.hidden
    activation_bytes = rows * (site.wide_channels + site.inner_channels) * size
    activation_us = site.moves(activation_bytes, kernels=mixture.local)
    return (
        site.norm("pre_mlp_layernorm"),
        site.compute("router", _router_us(site, mixture)),
        site.compute("permute", _permute_us(site, mixture)),
        *_exchange(site, mixture),
        *_share(site, mixture, "all_gather"),
        site.compute("linear_fc1", _products_us(site, mixture, site.wide_channels, hidden)),
        site.compute("activation", activation_us),
        site.compute("linear_fc2", _products_us(site, mixture, hidden, site.inner_channels)),
        *_share(site, mixture, "reduce_scatter"),
        *_exchange(site, mixture),
        site.compute("unpermute", _permute_us(site, mixture)),
        site.residual(),
    )


def _experts_backward(site: LayerSite, mixture: Mixture) -> Pass:
    rows, size, hidden = _rows(site, mixture), site.shape.element_bytes, site.shape.hidden
    wide, inner = site.wide_channels, site.inner_channels
    activation_us = site.moves(rows * (2 * wide + inner) * size, kernels=mixture.local)
    return (
        *site.residual_backward(),
        site.compute("unpermute backward", _permute_us(site, mixture)),
        *_exchange(site, mixture),
        *_share(site, mixture, "all_gather"),
        site.compute("linear_fc2 dgrad", _products_us(site, mixture, inner, hidden), ("activation",)),
        site.compute("linear_fc2 wgrad", _weights_us(site, mixture, hidden, inner), ("activation",)),
        site.compute("activation backward", activation_us, activation_needs(site.shape)),
        site.compute("linear_fc1 dgrad", _products_us(site, mixture, hidden, wide)),
        site.compute("linear_fc1 wgrad", _weights_us(site, mixture, wide, hidden)),
        *_share(site, mixture, "reduce_scatter"),
        *_exchange(site, mixture),
        site.compute("permute backward", _permute_us(site, mixture)),
        site.compute("router backward", 2 * _router_us(site, mixture), ("pre_mlp_layernorm",)),
        site.norm_backward("pre_mlp_layernorm"),
    )
