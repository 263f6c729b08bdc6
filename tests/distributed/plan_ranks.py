"""One rank of a trainer whose plans are not what they would be, started by test_profile.py: plan_ranks.py MODE ..."""

import os
import pathlib
import sys
from dataclasses import replace
from typing import Any

from megatron.pretrain.distributed.failure import leave
from megatron.pretrain.main import main
from megatron.pretrain.platform import install_platform

install_platform("gloo")

from megatron.pretrain.training import auto_plan  # noqa: E402 - after the platform
from overlap_recompute.plan.plan_file import Plan  # noqa: E402
from overlap_recompute.plan.profile import Profile  # noqa: E402

FEED_FORWARD = ("pre_mlp_layernorm", "linear_fc1", "activation")


def change_plans() -> None:
    """The first plan drops everything, the next one only feed-forward units, and promises to be faster."""
    stock, made = auto_plan.plan_for, []

    def plan_for(profile: Profile, *args: Any, **options: Any) -> Plan:
        plan = stock(profile, *args, **options)
        units = [unit.name for unit in profile.kinds[0].units if not made or unit.name in FEED_FORWARD]
        made.append(units)
        stages = tuple(
            replace(
                stage,
                layers=tuple(replace(layer, dropped=tuple(units)) for layer in stage.layers),
                window_kinds=("tp_backward",),
                prefetch_cap_bytes=1 << 22,
                fills=(),
            )
            for stage in plan.stages
        )
        return replace(plan, stages=stages, predicted_iteration_us=10.0 / len(made))

    auto_plan.plan_for = plan_for


if __name__ == "__main__":
    mode, argv = sys.argv[1], sys.argv[2:]
    if mode == "switch":
        change_plans()
    else:  # relative paths are of another disk on each rank
        os.chdir(pathlib.Path(argv.pop(0)) / f"rank-{os.environ['RANK']}")
    status = main(argv)
    if status:
        leave(status)
