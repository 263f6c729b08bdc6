"""The steps of a pass through a dense layer, built from kernels and collectives; what all analytic layers share."""

from dataclasses import dataclass

from overlap_recompute.plan.kept_bytes import FLASH, LayerShape
from overlap_recompute.plan.profile import COMPUTE, Pass, PassStep
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.simulator.analytic_compute import flash_attention_us, gemm_us, memory_us, unfused_attention_us
from overlap_recompute.simulator.analytic_links import RankGroup, collective_us
from overlap_recompute.simulator.hardware import Hardware

TP_FORWARD, TP_BACKWARD = WindowKind.TP_FORWARD.value, WindowKind.TP_BACKWARD.value
MASK_BYTES = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSite:
    """A layer and where it runs: times of what its passes are made of."""

    hardware: Hardware
    shape: LayerShape
    """On one rank."""
    tensor_group: RankGroup

    @property
    def width_bytes(self) -> int:
        """Of the residual stream on this rank."""
        return self.shape.local_tokens * self.shape.hidden * self.shape.element_bytes

    @property
    def full_bytes(self) -> int:
        """Of the residual stream of the whole microbatch: what tensor-parallel ranks exchange."""
        return self.shape.tokens * self.shape.hidden * self.shape.element_bytes

    @property
    def qkv_channels(self) -> int:
        """Of query, key and value together, on this rank."""
        shape = self.shape
        return (shape.heads + 2 * shape.groups) * shape.channels // shape.tensor_parallel

    @property
    def head_channels(self) -> int:
        """Of the query, and of what attention puts out, on this rank."""
        return self.shape.heads * self.shape.channels // self.shape.tensor_parallel

    @property
    def inner_channels(self) -> int:
        """Of the feed-forward block behind its activation, on this rank."""
        return self.shape.ffn_hidden // self.shape.tensor_parallel

    @property
    def wide_channels(self) -> int:
        """Of the feed-forward block before its activation, on this rank."""
        return self.inner_channels * (2 if self.shape.gated else 1)

    @property
    def is_sequence_parallel(self) -> bool:
        """Whether tensor-parallel ranks share the sequence between blocks."""
        return self.shape.sequence_parallel and self.shape.tensor_parallel > 1

    def compute(self, name: str, duration_us: float, needs: tuple[str, ...] = ()) -> PassStep:
        """A step that is no window."""
        return PassStep(kind=COMPUTE, name=name, duration_us=duration_us, needs=needs)

    def moves(self, nbytes: float, kernels: int = 1) -> float:
        """Time of kernels that only move bytes, in microseconds."""
        return memory_us(self.hardware, nbytes, kernels)

    def product(self, rows: int, columns: int, inner: int, *, adds_in_fp32: bool = False) -> float:
        """Time of a matrix product, in microseconds."""
        return gemm_us(
            self.hardware, rows, columns, inner, element_bytes=self.shape.element_bytes, adds_in_fp32=adds_in_fp32
        )

    def window(self, kind: str, name: str, nbytes: int, beside_us: float = 0.0) -> Pass:
        """The wait for a collective of the tensor-parallel group, beside which `beside_us` of compute run; none when
        there is nobody to wait for."""
        return window_of(kind, name, nbytes, collective_us(self.hardware, self.tensor_group, name, nbytes), beside_us)

    def attention_us(self, *, backward: bool = False) -> float:
        """Time of core attention."""
        shape = self.shape
        heads = shape.heads // shape.tensor_parallel
        if shape.core == FLASH:
            return flash_attention_us(
                self.hardware, sequences=shape.micro_batch, heads=heads, tokens=shape.sequence,
                channels=shape.channels, backward=backward,
            )  # fmt: skip
        return unfused_attention_us(
            self.hardware, sequences=shape.micro_batch, heads=heads, tokens=shape.sequence, channels=shape.channels,
            element_bytes=shape.element_bytes, dropout=shape.attention_dropout, backward=backward,
        )  # fmt: skip

    def norm(self, name: str) -> PassStep:
        """A norm: reads and writes the residual stream."""
        return self.compute(name, self.moves(2 * self.width_bytes))

    def norm_backward(self, name: str) -> PassStep:
        """Reads input and gradient, adds the gradient that went around the block, writes one."""
        return self.compute(f"{name} backward", self.moves(4 * self.width_bytes, kernels=2), (name,))

    def residual(self) -> PassStep:
        """Bias, dropout and the sum with the residual stream, in one kernel."""
        masks = self.shape.local_tokens * self.shape.hidden * MASK_BYTES if self.shape.hidden_dropout else 0
        return self.compute("bias_dropout_add", self.moves(3 * self.width_bytes + masks))

    def residual_backward(self) -> Pass:
        """The gradient passes through; dropout scales it, a bias sums it."""
        shape = self.shape
        masks = shape.local_tokens * shape.hidden * MASK_BYTES
        nbytes = (2 * self.width_bytes + masks) * shape.hidden_dropout + self.width_bytes * shape.biased
        return (self.compute("bias_dropout_add backward", self.moves(nbytes)),) if nbytes else ()


def window_of(kind: str, name: str, nbytes: int, whole_us: float, beside_us: float = 0.0) -> Pass:
    """The window of a communication that takes `whole_us` beside `beside_us` of compute; none if it takes no time."""
    hidden_us = min(whole_us, beside_us)
    step = PassStep(kind=kind, name=name, duration_us=whole_us - hidden_us, hidden_us=hidden_us, payload_bytes=nbytes)
    return (step,) if whole_us else ()


def column_parallel(site: LayerSite, name: str, columns: int) -> Pass:
    """Forward of a linear that is split by columns: gathers the sequence first if that is shared."""
    gather = site.window(TP_FORWARD, "all_gather", site.full_bytes) if site.is_sequence_parallel else ()
    product_us = site.product(site.shape.tokens, columns, site.shape.hidden)
    return (*gather, site.compute(name, product_us))


def row_parallel(site: LayerSite, name: str, inner: int) -> Pass:
    """Forward of a linear that is split by rows, and the reduction behind it."""
    collective = "reduce_scatter" if site.is_sequence_parallel else "all_reduce"
    product_us = site.product(site.shape.tokens, site.shape.hidden, inner)
    return (site.compute(name, product_us), *site.window(TP_FORWARD, collective, site.full_bytes))


def row_parallel_backward(site: LayerSite, name: str, inner: int, needs: tuple[str, ...]) -> Pass:
    """Gradient of the input, then of the weight, as one autograd node: what it saved is read at its begin."""
    shape = site.shape
    gather = site.window(TP_BACKWARD, "all_gather", site.full_bytes) if site.is_sequence_parallel else ()
    data_us = site.product(shape.tokens, inner, shape.hidden)
    weight_us = site.product(shape.hidden, inner, shape.tokens, adds_in_fp32=True)
    return (
        *gather,
        site.compute(f"{name} dgrad", data_us, needs),
        site.compute(f"{name} wgrad", weight_us, needs),
    )


def column_parallel_backward(site: LayerSite, name: str, columns: int, needs: tuple[str, ...]) -> Pass:
    """Gradient of the input; its reduction runs beside the product for the gradient of the weight.

    With sequence parallelism the input is gathered again, beside the first product.

        comp: | dgrad .... | (wait) | wgrad ......... | (wait)
        comm: | all_gather ........ | reduce_scatter ........ |
    """
    shape = site.shape
    data_us = site.product(shape.tokens, shape.hidden, columns)
    weight_us = site.product(columns, shape.hidden, shape.tokens, adds_in_fp32=True)
    shared = site.is_sequence_parallel
    gather = site.window(TP_BACKWARD, "all_gather", site.full_bytes, data_us) if shared else ()
    collective = "reduce_scatter" if shared else "all_reduce"
    return (
        site.compute(f"{name} dgrad", data_us, needs),
        *gather,
        site.compute(f"{name} wgrad", weight_us, needs),
        *site.window(TP_BACKWARD, collective, site.full_bytes, weight_us),
    )
