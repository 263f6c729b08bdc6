"""What a plan makes of a rank's settings, and of its policy."""

from dataclasses import replace

import pytest

from megatron.overlap.policy import choose_policy
from megatron.pretrain.training.planned import predicted_figures, settings_of_plan, units_per_window
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.plan_file import PlannedFill
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.runtime import Decision
from tests.unit.overlap.support import SETTINGS
from tests.unit.plan.samples import sample_plan, sample_profile

PLAN = sample_plan(sample_profile())


def test_settings_of_a_stage() -> None:
    given = settings_of_plan(PLAN, 1, "{}", fills=True)
    assert given["planned"] == {2: ("fc", "act"), 3: ("fc", "act")}
    assert given["fills"] == {WindowKind.TP_BACKWARD, WindowKind.PP_WAIT}
    assert given["prefetch_cap_bytes"] == 400
    assert given["units_per_window"] == 1
    assert settings_of_plan(PLAN, 1, "{}", fills=False)["fills"] == frozenset()
    other = replace(PLAN, budget_bytes=PLAN.budget_bytes + 1)
    assert settings_of_plan(other, 1, "{}", fills=True)["flags"] != given["flags"], "ranks must have the same plan"


def test_predictions_are_of_an_iteration() -> None:
    assert predicted_figures(PLAN)["predicted_exposed_ms"] == pytest.approx(0.120 * 4)


def test_units_of_a_window_are_those_of_the_plan_on_average() -> None:
    stage = PLAN.stages[0]
    fills = tuple(
        PlannedFill(layer=0, unit=unit, window=w) for unit, w in (("a", "B1.0"), ("b", "B1.0"), ("c", "B1.1"))
    )
    assert units_per_window(replace(stage, fills=fills)) == 2
    assert units_per_window(replace(stage, fills=())) is None


def test_a_policy_by_layer_and_what_it_cannot_drop() -> None:
    units = [("linear_fc1", 0), ("experts.0.activation", 1), ("experts.1.activation", 1), ("linear_fc1", 1)]
    settings = replace(SETTINGS, planned={0: (), 1: ("activation",)})
    policy, _ = choose_policy(settings, units, {}, (0, 1))
    dropped = [unit for unit in units if policy.decision(*unit) is Decision.RECOMPUTE]
    assert dropped == [("experts.0.activation", 1), ("experts.1.activation", 1)]
    refused = {("core_attention", 1): "it gathers"}
    with pytest.raises(ConfigError, match="drops core_attention of layer 1: it gathers"):
        choose_policy(replace(SETTINGS, planned={1: ("core_attention",)}), units, refused, (0, 1))
