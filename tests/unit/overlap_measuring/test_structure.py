"""Layers are grouped by their structure, whatever modules they are made of."""

import copy

import pytest
import torch
from torch import nn

from megatron.overlap.measuring.structure import description_of, fingerprint_of, parameters_of


class Block(nn.Module):
    """A residual block of convolutions."""

    def __init__(self, *, width: int = 8, stride: int = 1, rate: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=affine)
        self.conv = nn.Conv2d(width, width, 3, stride=stride, padding=1)
        self.act, self.drop = nn.GELU(), nn.Dropout(rate)


def test_copies_are_alike_whatever_their_weights_and_mode() -> None:
    block = Block()
    other = copy.deepcopy(block).eval()
    nn.init.zeros_(other.conv.weight)
    assert fingerprint_of(block) == fingerprint_of(other) == fingerprint_of(Block())
    assert description_of(block) == f"Block of {8 * 8 * 9 + 8 + 16} parameters on a rank"
    assert parameters_of(block) == (8 * 8 * 9 + 8 + 16, 0)


@pytest.mark.parametrize(
    "other",
    [
        Block(width=16),
        Block(stride=2),
        Block(rate=0.2),
        Block(affine=False),
        Block().to(torch.bfloat16),
        Block().requires_grad_(False),
        nn.Sequential(*Block().children()),
    ],
    ids=["width", "stride", "dropout rate", "fewer parameters", "type", "frozen", "names"],
)
def test_what_costs_or_keeps_something_else_is_told_apart(other: nn.Module) -> None:
    assert fingerprint_of(other) != fingerprint_of(Block())


def test_an_activation_is_part_of_the_structure() -> None:
    block = Block()
    block.act = nn.ReLU()
    assert fingerprint_of(block) != fingerprint_of(Block())
