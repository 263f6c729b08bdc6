"""Loss, gradients and the generator's state are equal to plain autograd's, bit for bit."""

import pytest
import torch

from overlap_recompute.runtime import Policy
from tests.unit.runtime.models import EXAMPLES, Example
from tests.unit.runtime.support import attached, limited, plain_step, runtime_step, same_bits

POLICIES = {
    "all": Policy.recompute_all(),
    "by layer": Policy.recompute_all().then(Policy.save("norm", "norm1", "fc1", layers=[1])),
    "none": Policy.save_all(),
}


def _policy(name: str, example: Example) -> Policy:
    rules = tuple(rule for rule in POLICIES[name].rules if rule.unit in (None, *example.units))
    return Policy(rules=rules)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fill", [False, True], ids=["on demand", "filled"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_a_step_is_bit_equal(example: Example, policy: str, fill: bool) -> None:
    torch.manual_seed(1)
    model = example.make()
    inputs = [torch.randn(example.shape) for _ in range(3)]
    expected = plain_step(model, inputs)
    units = [f"blocks.*.{unit}" for unit in example.units]
    with attached(model, _policy(policy, example), units, verify=fill) as runtime:
        for _ in range(2):
            assert same_bits(runtime_step(model, inputs, runtime, fill=fill), expected)
        assert runtime.ledger.held_bytes == runtime.ledger.dropped_bytes == runtime.ledger.prefetched_bytes == 0
    assert same_bits(plain_step(model, inputs), expected)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
def test_a_step_under_autocast_is_bit_equal(example: Example, inside: bool) -> None:
    torch.manual_seed(1)
    model = example.make()
    x = torch.randn(example.shape)

    def step(runtime: object = None) -> list[torch.Tensor]:
        torch.manual_seed(2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if runtime is None:
                loss = model(x)
            else:
                with runtime.microbatch("only"):  # type: ignore[attr-defined]
                    loss = model(x)
                runtime.queue.fill(limited(4))  # type: ignore[attr-defined]
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        found = [loss.detach().clone(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        model.zero_grad(set_to_none=True)
        return found

    expected = step()
    with attached(model, Policy.recompute_all(), [f"blocks.*.{unit}" for unit in example.units]) as runtime:
        assert same_bits(step(runtime), expected)
        assert runtime.step_end().hidden_replays == 4


def test_a_module_that_compares_its_arguments_by_identity() -> None:
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    model = torch.nn.ModuleDict({"inp": torch.nn.Linear(8, 8), "attention": attention})
    x = torch.randn(2, 3, 8)

    def loss() -> torch.Tensor:
        h = model["inp"](x)
        output, weights = model["attention"](h, h, h, need_weights=True)
        return output.square().sum() + weights.square().sum()

    loss().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    with attached(model, Policy.recompute_all(), ["inp", "attention"]) as runtime:
        with runtime.microbatch(0):
            value = loss()
        value.backward()
        assert runtime.step_end().exposed_replays == 2
    assert same_bits([p.grad for p in model.parameters() if p.grad is not None], expected)
