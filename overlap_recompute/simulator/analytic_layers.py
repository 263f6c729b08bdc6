"""A dense layer on hardware that one does not have: its passes, its units, what it keeps."""

from overlap_recompute.plan.kept_bytes import FLASH, LayerShape, storage_rows
from overlap_recompute.plan.profile import LayerKind, Pass, UnitCost
from overlap_recompute.simulator.analytic_compute import FP32_BYTES
from overlap_recompute.simulator.analytic_steps import (
    LayerSite,
    column_parallel,
    column_parallel_backward,
    row_parallel,
    row_parallel_backward,
)

SHARED_SEQUENCE = "gathers the sequence (sequence parallelism), which a replay would repeat"


def dense_layer(site: LayerSite, fingerprint: str) -> LayerKind:
    """A layer of attention and a feed-forward block, as Megatron-Core runs it.

    Args:
        site: the layer's shape and the hardware.
        fingerprint: of the model that it belongs to.
    """
    shape = site.shape
    forward = (*attention_forward(site), *_feed_forward(site))
    return LayerKind(
        fingerprint=f"{fingerprint}/dense",
        description=describe_layer(shape),
        units=(*attention_units(site, forward), *_feed_forward_units(site, forward)),
        storages=storage_rows(shape),
        forward=forward,
        backward=(*_feed_forward_backward(site), *attention_backward(site)),
        parameters=attention_parameters(shape) + _feed_forward_parameters(shape),
        expert_parameters=0,
        transient_bytes=max(attention_transient_bytes(site), _feed_forward_transient_bytes(site)),
    )


def describe_layer(shape: LayerShape) -> str:
    """In a few words."""
    style = "SwiGLU" if shape.gated else "GELU"
    return f"h {shape.hidden}, {shape.heads} heads, {shape.groups} groups, {style} {shape.ffn_hidden}, {shape.core}"


def attention_forward(site: LayerSite) -> Pass:
    """Up to the sum behind attention."""
    rotary_bytes = 2 * _rotated_bytes(site)
    return (
        site.norm("input_layernorm"),
        *column_parallel(site, "linear_qkv", site.qkv_channels),
        *((site.compute("rotary", site.moves(rotary_bytes)),) if site.shape.rotary else ()),
        site.compute("core_attention", site.attention_us()),
        *row_parallel(site, "linear_proj", site.head_channels),
        site.residual(),
    )


def attention_backward(site: LayerSite) -> Pass:
    """From the sum behind attention to the layer's input."""
    rotary = ("rotary",) if site.shape.rotary else ()
    read = ("core_attention", *rotary, "linear_qkv")
    return (
        *site.residual_backward(),
        *row_parallel_backward(site, "linear_proj", site.head_channels, ("core_attention",)),
        site.compute("core_attention backward", site.attention_us(backward=True), read),
        *(site.compute("rotary backward", site.moves(2 * _rotated_bytes(site)), rotary) for _ in rotary),
        *column_parallel_backward(site, "linear_qkv", site.qkv_channels, ("input_layernorm",)),
        site.norm_backward("input_layernorm"),
    )


def attention_units(site: LayerSite, forward: Pass) -> tuple[UnitCost, ...]:
    """The units up to attention, and the norm behind it."""
    refusal = SHARED_SEQUENCE if site.is_sequence_parallel else None
    rotary = ("rotary",) if site.shape.rotary else ()
    return (
        unit_of("input_layernorm", forward),
        unit_of("linear_qkv", forward, ("input_layernorm",), refusal=refusal),
        *(unit_of("rotary", forward, ("linear_qkv",)) for _ in rotary),
        unit_of("core_attention", forward, ("linear_qkv", *rotary), is_random=site.shape.attention_dropout),
        unit_of("pre_mlp_layernorm", forward),
    )


def unit_of(
    name: str, forward: Pass, reads: tuple[str, ...] = (), *, refusal: str | None = None, is_random: bool = False
) -> UnitCost:
    """A unit that takes as long as its step of the forward pass."""
    forward_us = next(step.duration_us for step in forward if step.name == name)
    return UnitCost(name=name, forward_us=forward_us, spread_us=0.0, reads=reads, is_random=is_random, refusal=refusal)


def attention_parameters(shape: LayerShape) -> int:
    """Elements on one rank of attention and both norms."""
    ranks = shape.tensor_parallel
    query, qkv = shape.heads * shape.channels, (shape.heads + 2 * shape.groups) * shape.channels
    norms = 2 * (1 if shape.rms_norm else 2) * shape.hidden
    biases = qkv // ranks + shape.hidden if shape.biased else 0
    return shape.hidden * (qkv + query) // ranks + biases + norms


def attention_transient_bytes(site: LayerSite) -> int:
    """Gradients of output, of query, key and value, and the block's own gradient; the square of scores if it exists."""
    shape = site.shape
    heads_bytes = shape.tokens * site.qkv_channels * shape.element_bytes
    if shape.core == FLASH:
        inside = shape.tokens * site.head_channels * FP32_BYTES  # the query's gradient adds up in fp32
    else:
        inside = 2 * shape.micro_batch * shape.heads // shape.tensor_parallel * shape.sequence**2 * shape.element_bytes
    return site.width_bytes + site.full_bytes + 2 * heads_bytes + inside


def _rotated_bytes(site: LayerSite) -> int:
    shape = site.shape
    channels = (shape.heads + shape.groups) * shape.channels // shape.tensor_parallel
    return shape.tokens * channels * shape.element_bytes


def _feed_forward(site: LayerSite) -> Pass:
    shape = site.shape
    activation_bytes = shape.tokens * (site.wide_channels + site.inner_channels) * shape.element_bytes
    return (
        site.norm("pre_mlp_layernorm"),
        *column_parallel(site, "linear_fc1", site.wide_channels),
        site.compute("activation", site.moves(activation_bytes, kernels=activation_kernels(shape))),
        *row_parallel(site, "linear_fc2", site.inner_channels),
        site.residual(),
    )


def _feed_forward_backward(site: LayerSite) -> Pass:
    shape = site.shape
    activation_bytes = shape.tokens * (2 * site.wide_channels + site.inner_channels) * shape.element_bytes
    kernels = activation_kernels(shape)
    return (
        *site.residual_backward(),
        *row_parallel_backward(site, "linear_fc2", site.inner_channels, ("activation",)),
        site.compute("activation backward", site.moves(activation_bytes, kernels), activation_needs(shape)),
        *column_parallel_backward(site, "linear_fc1", site.wide_channels, ("pre_mlp_layernorm",)),
        site.norm_backward("pre_mlp_layernorm"),
    )


def activation_kernels(shape: LayerShape) -> int:
    """Kernels of bias and activation."""
    return 1 if shape.fused_activation else 1 + shape.gated + shape.biased


def activation_needs(shape: LayerShape) -> tuple[str, ...]:
    """What backward of the activation reads: what linear_fc1 put out, or what the parts of an unfused one saved."""
    return ("linear_fc1",) if shape.fused_activation else ("linear_fc1", "activation")


def _feed_forward_units(site: LayerSite, forward: Pass) -> tuple[UnitCost, ...]:
    refusal = SHARED_SEQUENCE if site.is_sequence_parallel else None
    return (
        unit_of("linear_fc1", forward, ("pre_mlp_layernorm",), refusal=refusal),
        unit_of("activation", forward, ("linear_fc1",)),
    )


def _feed_forward_parameters(shape: LayerShape) -> int:
    wide = shape.ffn_hidden * (2 if shape.gated else 1)
    biases = wide // shape.tensor_parallel + shape.hidden if shape.biased else 0
    return shape.hidden * (wide + shape.ffn_hidden) // shape.tensor_parallel + biases


def _feed_forward_transient_bytes(site: LayerSite) -> int:
    """Gradients of output, activation and linear_fc1; with a shared sequence also what is gathered."""
    shape = site.shape
    inner_bytes = shape.tokens * (site.inner_channels + site.wide_channels) * shape.element_bytes
    gathered_bytes = site.full_bytes if site.is_sequence_parallel else 0
    return site.width_bytes + site.full_bytes + inner_bytes + gathered_bytes
