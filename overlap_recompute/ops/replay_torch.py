"""The replay formulas in torch: what runs without the extension, and the reference that tests compare with.

All compute in fp32 and round once to the dtype of the input, as the kernels do. The order of rounding differs from the
kernels' within that (docs/extension.md says by how much); the dropout mask is the same bit for bit.
"""

import torch
import torch.nn.functional as functional

PHILOX_ROUNDS = 10
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def row_statistics(x: torch.Tensor, *, eps: float, rms: bool) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Mean (None for RMSNorm) and reciprocal deviation of each row of x: [..., columns]; fp32 [rows]."""
    rows = x.float().reshape(-1, x.shape[-1]) if x.shape[-1] else x.new_empty((0, 0), dtype=torch.float32)
    if rms:
        return None, torch.rsqrt(rows.square().mean(-1) + eps)
    mean = rows.mean(-1)
    return mean, torch.rsqrt((rows - mean[:, None]).square().mean(-1) + eps)


def normalize(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor,
) -> torch.Tensor:
    """(x - mean) * rstd * weight + bias over rows of x: [..., columns]."""
    statistics = (*x.shape[:-1], 1)
    value = x.float()
    if mean is not None:
        value = value - mean.reshape(statistics)
    value = value * rstd.reshape(statistics)
    if weight is not None and bias is not None:
        value = torch.addcmul(bias.float(), value, weight.float())
    elif weight is not None:
        value = value * weight.float()
    elif bias is not None:
        value = value + bias.float()
    return value.to(x.dtype)


def bias_gelu(x: torch.Tensor, bias: torch.Tensor | None, approximate: str) -> torch.Tensor:
    """gelu(x + bias)."""
    value = x.float() if bias is None else x.float() + bias.float()
    return functional.gelu(value, approximate=approximate).to(x.dtype)


def swiglu(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """silu(first half) * second half of x + bias: [..., 2 * columns]."""
    value = x.float() if bias is None else x.float() + bias.float()
    gate, up = value.chunk(2, dim=-1)
    return (functional.silu(gate) * up).to(x.dtype)


def _multiply(multiplier: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low word of a product. int64 wraps around, which leaves its 64 bits right; the mask drops the sign."""
    product = word * multiplier
    return (product >> 32) & WORD, product & WORD


def _philox(position: torch.Tensor, *, seed: int, offset: int) -> tuple[torch.Tensor, ...]:
    """The four words at each position (int64); see csrc/math/philox.h."""
    c0 = torch.full_like(position, offset & WORD)
    c1 = torch.full_like(position, (offset >> 32) & WORD)
    c2, c3 = position & WORD, (position >> 32) & WORD
    k0, k1 = seed & WORD, (seed >> 32) & WORD
    for _ in range(PHILOX_ROUNDS):
        high0, low0 = _multiply(PHILOX_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(PHILOX_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + PHILOX_WEYL[0]) & WORD, (k1 + PHILOX_WEYL[1]) & WORD
    return c0, c1, c2, c3


def philox_words(count: int, *, seed: int, offset: int, device: torch.device, first: int = 0) -> torch.Tensor:
    """`count` random words from block `first` (of 4 words) on: int64 [count] below 2^32."""
    position = torch.arange(first, first + (count + 3) // 4, dtype=torch.int64, device=device)
    return torch.stack(_philox(position, seed=seed, offset=offset), dim=-1).reshape(-1)[:count]


def bias_dropout_add(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    *,
    threshold: int,
    scale: float,
    seed: int,
    offset: int,
) -> torch.Tensor:
    """residual + dropout(x + bias), dropped where the random word lies below the threshold."""
    value = x.float() if bias is None else x.float() + bias.float()
    words = philox_words(x.numel(), seed=seed, offset=offset, device=x.device).reshape(x.shape)
    kept = torch.where(words >= threshold, value * scale, torch.zeros((), dtype=torch.float32, device=x.device))
    return (residual.float() + kept).to(x.dtype)
