"""How many bytes a transformer layer keeps for backward, to the byte, for any choice of dropped units.

    symbol   meaning                                            field
    s, b     tokens of a sequence, sequences of a microbatch    sequence, micro_batch
    h, f     width of the layer, of the feed-forward block      hidden, ffn_hidden
    n, g, d  query heads, key and value heads, channels         heads, groups, channels
    t        tensor-parallel ranks                              tensor_parallel
    e        bytes of an element                                element_bytes

Every storage that autograd, or a dropped unit's replay, may need is a row of a table: its size, the unit that makes it,
and who holds on to it. It is kept when its maker is not dropped and somebody holds it. With all units dropped what is
left is the layer's input and the sum behind attention: 2 s b h e (over t with sequence parallelism).
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.storages import StorageRow, brought_back_bytes_of, kept_bytes_of

FP32_BYTES = 4
FLASH, MATH, UNFUSED = "flash", "math", "unfused"
CORES = (FLASH, MATH, UNFUSED)
"""Core attention: scaled_dot_product_attention by its flash kernel; the same by matrix products, which torch takes on a
CPU under attention dropout; Megatron-Core's own."""
CPU, CUDA = "cpu", "cuda"
BACKENDS = (CPU, CUDA)
"""Whose kernels run. Tests compare the rows for CPU with what the runtime counts; those for CUDA follow from the
documentation of fused kernels: norms save statistics in fp32, dropout saves a mask of one byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """A dense layer of the local specification, on one rank."""

    sequence: int
    """Tokens of a sequence on this context-parallel rank."""
    micro_batch: int
    """Sequences."""
    hidden: int
    """Width of the layer."""
    ffn_hidden: int
    """Inner width of the feed-forward block, all ranks; of one half of a gated one."""
    heads: int
    """Query heads, all ranks."""
    groups: int
    """Key and value heads, all ranks; as many as `heads` without grouped queries."""
    channels: int
    """Of a head."""
    element_bytes: int
    """Of an activation: 4, or 2 in half precision."""
    rms_norm: bool
    """RMSNorm in place of LayerNorm."""
    rotary: bool
    """Rotary position embedding."""
    gated: bool
    """SwiGLU in place of GELU."""
    biased: bool
    """Linears have a bias."""
    fused_activation: bool
    """Bias and activation are one function."""
    core: str = FLASH
    """One of `CORES`."""
    attention_dropout: bool = False
    """Whether the rate is above 0."""
    hidden_dropout: bool = False
    """Whether the rate is above 0."""
    tensor_parallel: int = 1
    """Ranks that share the layer."""
    sequence_parallel: bool = False
    """Whether they share the sequence outside of attention and feed-forward block."""
    backend: str = CPU
    """One of `BACKENDS`."""

    @property
    def tokens(self) -> int:
        """Of a microbatch."""
        return self.sequence * self.micro_batch

    @property
    def local_tokens(self) -> int:
        """Of a microbatch, outside of attention and feed-forward block."""
        return self.tokens // self.tensor_parallel if self.sequence_parallel else self.tokens


def kept_bytes(shape: LayerShape, dropped: Set[str]) -> int:
    """Bytes that one layer keeps for one microbatch.

    Args:
        shape: the layer. Figures for a CPU are those of torch 2.13, where RMSNorm is composed of simpler operations and
            dropout keeps its mask in the format of the activation.
        dropped: names of `LAYER_UNITS`; with sequence parallelism linear_qkv and linear_fc1 cannot be among them.

    Raises:
        ConfigError: a kind of attention for which the table has no rows.
    """
    return kept_bytes_of(storage_rows(shape), dropped)


def dropped_bytes(shape: LayerShape, dropped: Set[str]) -> int:
    """Bytes of the same layer that replays bring back, all units together; arguments as `kept_bytes`."""
    return brought_back_bytes_of(storage_rows(shape), dropped)


def storage_rows(shape: LayerShape) -> tuple[StorageRow, ...]:
    """The table of a dense layer.

    Raises:
        ConfigError: a kind of attention, or a back end, for which there are no rows.
    """
    return (*_widths(shape), *_attention(shape), *_feed_forward(shape))


def attention_rows(shape: LayerShape) -> tuple[StorageRow, ...]:
    """The rows of a layer whose feed-forward block is another one, such as experts; both norms are in."""
    return (*_widths(shape), *_attention(shape))


def _row(name: str, nbytes: int, maker: str | None, only_for_replay_of: str | None = None) -> StorageRow:
    """A storage that autograd holds, or only one dropped unit's replay."""
    readers = () if only_for_replay_of is None else (only_for_replay_of,)
    return StorageRow(name=name, nbytes=nbytes, maker=maker, held=not readers, replay_readers=readers)


def _widths(shape: LayerShape) -> Iterator[StorageRow]:
    if shape.backend not in BACKENDS:
        raise ConfigError(f"the back end {shape.backend}", f"one of {', '.join(BACKENDS)}", "correct the name")
    width_bytes = shape.local_tokens * shape.hidden * shape.element_bytes
    if shape.hidden_dropout:
        mask_bytes = width_bytes if shape.backend == CPU else shape.local_tokens * shape.hidden
        yield _row("two dropout masks", 2 * mask_bytes, None)
    # In half precision RMSNorm on a CPU converts its input first, and backward reads the converted one.
    converts = shape.rms_norm and shape.element_bytes != FP32_BYTES and shape.backend == CPU
    for norm, source in (("input_layernorm", "input of the layer"), ("pre_mlp_layernorm", "sum behind attention")):
        yield _row(source, width_bytes, None, norm if converts else None)
        yield _row(f"output of {norm}", width_bytes, norm)
        yield _row(f"inside {norm}", _norm_bytes(shape), norm)


def _norm_bytes(shape: LayerShape) -> int:
    """Mean and deviation of each token; RMSNorm: the deviation, the scaled input, and the input if it was converted."""
    tokens, values = shape.local_tokens, shape.local_tokens * shape.hidden * FP32_BYTES
    if shape.backend == CUDA:
        return tokens * FP32_BYTES * (1 if shape.rms_norm else 2)
    if not shape.rms_norm:
        return 2 * tokens * shape.element_bytes
    return tokens * FP32_BYTES + values * (1 if shape.element_bytes == FP32_BYTES else 2)


def _attention(shape: LayerShape) -> Iterator[StorageRow]:
    if shape.core not in CORES or (shape.core != FLASH and shape.groups != shape.heads):
        raise ConfigError(
            f"{shape.core} attention with {shape.groups} groups of {shape.heads} heads",
            f"{FLASH} attention, or one of {', '.join(CORES)} with as many groups as heads",
            "measure what such a layer keeps",
        )
    head_bytes = shape.tokens * shape.channels * shape.element_bytes
    heads, groups = shape.heads // shape.tensor_parallel, shape.groups // shape.tensor_parallel
    yield _row("query, key and value", (heads + 2 * groups) * head_bytes, "linear_qkv")
    # Products of scaled copies of query and key need no more than the copies.
    reader = "core_attention" if shape.core == MATH else None
    if 1 < groups < heads:
        # A view cannot regroup the heads of several groups; and rotation itself needs only its angles.
        yield _row("copy of the query", heads * head_bytes, "linear_qkv", "rotary" if shape.rotary else reader)
    if shape.rotary:
        yield _row("rotated query and key", (heads + groups) * head_bytes, "rotary", reader)
        angles = 2 * 2 * shape.sequence * shape.channels * shape.element_bytes
        yield _row("sines and cosines, for query and key", angles, "rotary")
    yield _row("output of core_attention", heads * head_bytes, "core_attention")
    yield _row("inside core_attention", _core_bytes(shape, heads, head_bytes), "core_attention")


def _core_bytes(shape: LayerShape, heads: int, head_bytes: int) -> int:
    scores = shape.micro_batch * heads * shape.sequence**2
    if shape.core == FLASH:
        return shape.micro_batch * heads * shape.sequence * FP32_BYTES  # logarithms of the sums
    mask_bytes = shape.element_bytes if shape.backend == CPU else 1
    dropout_bytes = shape.element_bytes + mask_bytes if shape.attention_dropout else 0  # product with the mask; mask
    kept = scores * (shape.element_bytes + dropout_bytes)
    if shape.core == MATH:
        return kept + 2 * heads * head_bytes  # scaled copies
    return kept + (shape.sequence**2 if shape.backend == CPU else 0)  # causal mask, which a fused softmax does without


def _feed_forward(shape: LayerShape) -> Iterator[StorageRow]:
    inner_bytes = shape.tokens * shape.ffn_hidden // shape.tensor_parallel * shape.element_bytes
    wide_bytes = inner_bytes * (2 if shape.gated else 1)
    # Without fusion, backward of the activation reads the sum with the bias, not what linear_fc1 put out.
    adds_bias = shape.biased and not shape.fused_activation
    yield _row("output of linear_fc1", wide_bytes, "linear_fc1", "activation" if adds_bias else None)
    yield _row("output of activation", inner_bytes, "activation")
    if not shape.fused_activation:
        inside = (wide_bytes if shape.biased else 0) + (2 * inner_bytes if shape.gated else 0)
        yield _row("inside activation", inside, "activation")
