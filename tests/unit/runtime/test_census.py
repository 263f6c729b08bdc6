"""The rows of any module say what the runtime keeps; bytes are counted until their last reference dies."""

import itertools

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from overlap_recompute.plan.storages import brought_back_bytes_of, kept_bytes_of
from overlap_recompute.runtime import Policy, Runtime
from overlap_recompute.runtime.census import count_module
from overlap_recompute.runtime.live_bytes import LiveBytes

UNITS = ("norm", "wide", "act", "narrow")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(8), nn.GELU()
        self.wide, self.narrow = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.narrow(self.act(self.wide(self.norm(x))))).tanh()


def rows_of(block: Block) -> tuple:
    x = torch.ones(4, 8, requires_grad=True)
    return count_module(block, {name: getattr(block, name) for name in UNITS}, lambda: block(x))


def test_rows_equal_what_the_runtime_keeps_for_every_choice() -> None:
    block = Block()
    rows = rows_of(block)
    x = torch.ones(4, 8, requires_grad=True)
    runtime = Runtime(Policy.save_all())
    runtime.know_storages(block)
    for name in UNITS:
        runtime.attach_unit(getattr(block, name), name, 0)
    for choice in (c for size in range(5) for c in itertools.combinations(UNITS, size)):
        runtime.set_policy(Policy.recompute(*choice))
        with runtime.microbatch(0):
            output = block(x)
        output.sum().backward()
        del output
        report = runtime.step_end()
        expected = kept_bytes_of(rows, set(choice)), brought_back_bytes_of(rows, set(choice))
        assert (report.kept_bytes, report.dropped_bytes) == expected, choice
    runtime.detach()


def test_fake_tensors_give_the_same_rows() -> None:
    with FakeTensorMode():
        fake = rows_of(Block())
    assert fake == rows_of(Block())


def test_forwards_are_put_back() -> None:
    block = Block()
    rows_of(block)
    assert "forward" not in block.wide.__dict__


def test_live_bytes_follow_storages_to_their_death() -> None:
    with LiveBytes() as live:
        one = torch.ones(256)
        view, other = one[:4], one + one
        assert live.live_bytes == 2 * 1024
        live.start_span()
        del one
        assert live.live_bytes == 2 * 1024  # the view holds it
        del view
        live.keep(live.record(other.untyped_storage()))
        assert (live.live_bytes, live.kept_bytes) == (1024, 1024)
        live.start_span()
        (other * 2).sum()
        assert live.besides_peak_bytes >= 1024 and live.peak_bytes >= 2048
        del other
        assert live.live_bytes == live.kept_bytes == 0
