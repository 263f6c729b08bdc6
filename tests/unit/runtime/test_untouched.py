"""Evaluation, regions without gradients, copies, export, and what follows `detach` run as if nothing were attached."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.runtime import Journal, Policy, Runtime
from tests.unit.runtime.models import MlpBlock, Stack
from tests.unit.runtime.support import attached, plain_step, runtime_step, same_bits

UNITS = ["blocks.*.norm", "blocks.*.fc1", "blocks.*.act", "blocks.*.drop"]


def test_evaluation_is_not_touched() -> None:
    model, journal = Stack(MlpBlock(8), MlpBlock(8)), Journal()
    x = torch.randn(2, 8)
    model.eval()
    expected = model(x)
    with attached(model, Policy.recompute_all(), UNITS, journal=journal, verify=True) as runtime:
        outside = model(x)
        with torch.no_grad(), runtime.microbatch(0):
            without = model(x)
        assert torch.equal(outside, expected)
        assert torch.equal(without, expected)
        # Outside of a microbatch even a backward pass is torch's own.
        outside.backward()
        assert runtime.ledger.kept_peak_bytes == 0
    assert journal.events == []


def test_detach_restores_the_model_exactly() -> None:
    model = Stack(MlpBlock(8), MlpBlock(8))
    own = model.blocks[1].act.forward

    def patched(x: torch.Tensor) -> torch.Tensor:
        return own(x) * 2

    model.blocks[1].act.forward = patched  # type: ignore[method-assign]
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with attached(model, Policy.recompute_all(), UNITS) as runtime:
        assert "forward" in model.blocks[0].norm.__dict__
        assert list(model.state_dict()) == list(state)
        runtime_step(model, [torch.randn(2, 8)], runtime)
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before
    assert model.blocks[1].act.forward is patched
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_copies_are_not_attached() -> None:
    model = Stack(MlpBlock(8), MlpBlock(8))
    x, journal = torch.randn(2, 8), Journal()
    with attached(model, Policy.recompute_all(), UNITS, journal=journal) as runtime:
        stream = io.BytesIO()
        pickle.dump(model, stream)
        stream.seek(0)
        for twin in (copy.deepcopy(model), pickle.load(stream)):  # noqa: S301
            with torch.no_grad():
                twin.blocks[0].fc1.weight.zero_()
            assert not torch.equal(twin.eval()(x), model.eval()(x)), "the copy computes with its own weights"
            with runtime.microbatch(0):
                loss = twin.train()(x)
            loss.backward()
        assert journal.events == []
        assert model.blocks[0].fc1.weight.grad is None


def test_export_sees_the_plain_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU()).eval()
    x = torch.randn(2, 4)
    expected = [node.target for node in torch.export.export(model, (x,)).graph.nodes]
    with attached(model, Policy.recompute_all(), ["*"]):
        exported = torch.export.export(model, (x,))
        assert [node.target for node in exported.graph.nodes] == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules_are_refused() -> None:
    model = nn.ModuleList([torch.jit.script(nn.GELU())])
    with pytest.raises(ConfigError, match="scripted module"):
        Runtime(Policy.recompute_all()).attach(model, ["*"])


class Checkpointed(nn.Module):
    """Torch's own activation checkpointing inside of a unit."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = MlpBlock(8), reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.reentrant).sin()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("policy", [Policy.recompute_all(), Policy.save_all()], ids=["dropped", "kept"])
def test_torch_checkpoint_inside_of_a_unit(reentrant: bool, policy: Policy) -> None:
    model = Stack(Checkpointed(reentrant), Checkpointed(reentrant))
    inputs = [torch.randn(2, 8, requires_grad=True) for _ in range(2)]
    expected = plain_step(model, inputs)
    with attached(model, policy, ["blocks.*"]) as runtime:
        assert same_bits(runtime_step(model, inputs, runtime, fill=True), expected)


def test_a_second_runtime_can_follow_the_first() -> None:
    model = Stack(MlpBlock(8))
    inputs = [torch.randn(2, 8)]
    expected = plain_step(model, inputs)
    for _ in range(2):
        with attached(model, Policy.recompute_all(), UNITS) as runtime:
            assert same_bits(runtime_step(model, inputs, runtime), expected)
            with pytest.raises(ConfigError, match="attached already|twice"):
                runtime.attach_unit(model.blocks[0].norm, "other", 7)


def test_frozen_parts_and_inputs_without_gradients() -> None:
    model = Stack(MlpBlock(8), MlpBlock(8))
    model.blocks[0].requires_grad_(False)
    inputs = [torch.randn(2, 8)]
    expected = plain_step(model, inputs)
    with attached(model, Policy.recompute_all(), UNITS, verify=True) as runtime:
        assert same_bits(runtime_step(model, inputs, runtime), expected)
