"""Small models of several kinds; none of them a language model."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class MlpBlock(nn.Module):
    """Pre-norm residual MLP with dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.drop = nn.Dropout(0.3)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.drop(self.act(self.fc1(self.norm(x)))))


class CnnBlock(nn.Module):
    """Residual convolutions with group normalization."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(2, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(2, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.relu(self.norm1(x)))
        return x + self.conv2(functional.relu(self.norm2(h)))


class MixerBlock(nn.Module):
    """Mixes tokens, then channels; views and transposes between the units."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.SiLU(), nn.Linear(2 * tokens, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Attend(nn.Module):
    """Attention on queries, keys and values that share a storage."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.drop = nn.Dropout(0.2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.fused:
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return self.drop(torch.softmax(scores, -1)) @ v


class AttentionBlock(nn.Module):
    """Norm, one projection split into three views, attention, projection."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attend = Attend(fused)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = (part.transpose(1, 2) for part in parts.unbind(2))
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril()
        y = self.attend(q, k, v, mask=mask)
        return x + self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class Stack(nn.Module):
    """Blocks one after the other, then a scalar loss."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.float().square().mean()


class Example(NamedTuple):
    """A model, its input, and its units."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    units: tuple[str, ...]


EXAMPLES = (
    Example("mlp", lambda: Stack(*(MlpBlock(16) for _ in range(3))), (4, 16), ("norm", "fc1", "act", "drop", "fc2")),
    Example("cnn", lambda: Stack(*(CnnBlock(4) for _ in range(3))), (2, 4, 6, 6), ("norm1", "conv1", "norm2", "conv2")),
    Example(
        "mixer",
        lambda: Stack(*(MixerBlock(5, 8) for _ in range(3))),
        (2, 5, 8),
        ("norm1", "tokens", "norm2", "channels"),
    ),
    Example(
        "attention, unfused",
        lambda: Stack(*(AttentionBlock(16, 2, False) for _ in range(3))),
        (2, 6, 16),
        ("norm", "qkv", "attend", "proj"),
    ),
    Example(
        "attention, fused",
        lambda: Stack(*(AttentionBlock(16, 2, True) for _ in range(3))),
        (2, 6, 16),
        ("norm", "qkv", "attend", "proj"),
    ),
)
