"""The data model of decisions, and the patterns that name units."""

import pytest
from torch import nn

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.runtime import Decision, Policy, Runtime, UnitDecision
from overlap_recompute.runtime.attachment import find_units
from tests.unit.runtime.models import MlpBlock, Stack


def test_the_last_rule_that_concerns_a_unit_decides() -> None:
    policy = Policy.recompute_all().then(Policy.save("act")).then(Policy.recompute("act", layers=[1, 2]))
    decisions = {(unit, layer): policy.decision(unit, layer) for unit in ("norm", "act") for layer in range(4)}
    dropped = {place for place, decision in decisions.items() if decision is Decision.RECOMPUTE}
    assert dropped == {("norm", 0), ("norm", 1), ("norm", 2), ("norm", 3), ("act", 1), ("act", 2)}
    assert Policy.save_all().decision("norm", 0) is Decision.SAVE


def test_a_policy_is_a_value() -> None:
    assert Policy.recompute("a", "b", layers=[1]) == Policy(
        rules=(
            UnitDecision(unit="a", layer=1, decision=Decision.RECOMPUTE),
            UnitDecision(unit="b", layer=1, decision=Decision.RECOMPUTE),
        )
    )
    assert hash(Policy.recompute("a")) == hash(Policy.recompute("a"))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Policy.recompute("nrom"), r"unit 'nrom'; expected one of the units act, norm of layers 0 to 1; write 'norm'"),
        (Policy.save("norm", layers=[2]), r"unit 'norm' in layer 2; expected one of the units \(none here\)"),
    ],
)
def test_what_does_not_exist_is_refused(policy: Policy, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        policy.check([("norm", 0), ("act", 0), ("norm", 1), ("act", 1)])
    Policy.recompute_all().check([("norm", 0)])


def test_patterns_name_units_and_layers() -> None:
    model = nn.ModuleDict({"stem": nn.Linear(2, 2), "stages": nn.ModuleDict({"low": MlpBlock(4), "high": MlpBlock(4)})})
    assert [(m.unit, m.layer, m.layer_path) for m in find_units(model, "stem")] == [("stem", -1, None)]
    found = [(m.unit, m.layer, m.layer_path) for m in find_units(model, "stages.*.act")]
    assert found == [("act", 0, "stages.low"), ("act", 1, "stages.high")]
    assert [m.unit for m in find_units(model, "stages.*")] == ["layer", "layer"]
    nested = nn.ModuleList([nn.ModuleList([nn.Sequential(nn.GELU())]) for _ in range(3)])
    assert [(m.unit, m.layer) for m in find_units(nested, "*.0.*")] == [("0.0", 0), ("0.0", 1), ("0.0", 2)]


@pytest.mark.parametrize("pattern", ["blocks.*.atc", "block.*.act", "*", "blocks.0", ""])
def test_a_pattern_without_a_match_shows_near_ones(pattern: str) -> None:
    model = Stack(MlpBlock(4))
    if pattern in ("*", "blocks.0"):
        assert find_units(model, pattern)
        return
    with pytest.raises(ConfigError, match=r"blocks\.\*"):
        find_units(model, pattern)


def test_units_are_listed_and_attached_once() -> None:
    model = Stack(MlpBlock(4), MlpBlock(4))
    runtime = Runtime(Policy.recompute("act", layers=[1]))
    runtime.attach(model, ["blocks.*.norm", "blocks.*.act"])
    assert set(runtime.units) == {("norm", 0), ("norm", 1), ("act", 0), ("act", 1)}
    assert [name for name, module in model.named_modules() if "forward" in module.__dict__] == [
        "blocks.0", "blocks.0.norm", "blocks.0.act", "blocks.1", "blocks.1.norm", "blocks.1.act",
    ]  # fmt: skip
    second = Stack(MlpBlock(4))
    runtime.attach(second, ["blocks.*.act"], first_layer=2)
    assert ("act", 2) in runtime.units
    runtime.detach()
    assert runtime.units == ()
    runtime.declare("mlp", 0)
    with pytest.raises(ConfigError, match="twice"):
        runtime.declare("mlp", 0)
