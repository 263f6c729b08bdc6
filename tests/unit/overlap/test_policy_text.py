"""The text form of a policy."""

import pytest

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.layer_units import LAYER_UNITS, kind_of
from overlap_recompute.plan.policy_text import parse_policy

ALL = LAYER_UNITS
# Text -> what each of three stages drops.
RIGHT = {
    "none": ((), (), ()),
    "all": (ALL, ALL, ALL),
    "0:all,1:none": (ALL, (), ()),
    "all,2:none": (ALL, ALL, ()),
    "0-1:activation+linear_fc1": (("linear_fc1", "activation"), ("linear_fc1", "activation"), ()),
    " all : core_attention , 1 : none ": (("core_attention",), (), ("core_attention",)),
    "rotary": (("rotary",),) * 3,
}
WRONG = {
    "all:linear_fc3": "whose 'linear_fc3' is no unit; expected none, all, or units of input_layernorm",
    "activations": "write activation if that was meant",
    "all:": "where the name of a unit is missing",
    "": "where the name of a unit is missing",
    "0:all,,1:none": "where the name of a unit is missing",
    "3:all": "whose stage 3 does not exist; expected stages from 0 to 2",
    "1-3:all": "whose stage 1-3 does not exist",
    "2-1:all": "whose stage 2-1 does not exist",
    "-1:all": "whose '-1' names no stage",
    "last:all": "whose 'last' names no stage",
    "0:1:all": "whose '0:1' names no stage",
    "all,1:on-demand": "mixes on-demand with something else",
}


@pytest.mark.parametrize("text", RIGHT)
def test_right(text: str) -> None:
    policy = parse_policy(text, 3, flag="--flag")
    assert tuple(drop.units for drop in policy.stages) == RIGHT[text]
    assert not policy.on_demand
    named = any(unit in text for unit in LAYER_UNITS)
    assert any(drop.by_name for drop in policy.stages) == named


def test_on_demand() -> None:
    policy = parse_policy("on-demand", 2, flag="--flag")
    assert policy.on_demand
    assert [drop.units for drop in policy.stages] == [ALL, ALL]


@pytest.mark.parametrize("text", WRONG)
def test_wrong(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_policy(text, 3, flag="--flag")
    assert WRONG[text] in str(error.value)
    assert f"--flag {text}" in str(error.value)


def test_units_of_experts_go_by_their_last_part() -> None:
    assert kind_of("experts.3.activation") == kind_of("shared_experts.activation") == kind_of("activation")
