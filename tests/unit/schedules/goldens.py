"""The schedules in tests/golden/schedules. `python -m tests.unit.schedules.goldens` writes them anew."""

from collections.abc import Mapping
from pathlib import Path

from overlap_recompute.plan.actions import Grid
from overlap_recompute.schedules import (
    Phase,
    RecomputeAhead,
    pipeline_schedule,
    with_communication,
    with_recompute,
    write_csv,
)

FOLDER = Path(__file__).resolve().parents[2] / "golden" / "schedules"


def goldens() -> Mapping[str, Grid]:
    """Name of the file to what it holds."""
    plain = with_communication(pipeline_schedule(4, 1, 8))
    interleaved = with_communication(pipeline_schedule(4, 2, 8))
    late = RecomputeAhead(phases=frozenset({Phase.STEADY, Phase.COOL_DOWN}))
    return {
        "1f1b_pp4_m8.csv": plain,
        "1f1b_pp4_m8_recompute.csv": with_recompute(plain),
        "1f1b_pp4_m2.csv": with_communication(pipeline_schedule(4, 1, 2)),
        "1f1b_pp2_m3_forward_only.csv": with_communication(pipeline_schedule(2, 1, 3, forward_only=True)),
        "interleaved_pp4_vpp2_m8.csv": interleaved,
        "interleaved_pp4_vpp2_m8_recompute_steady_cooldown.csv": with_recompute(interleaved, late),
        "interleaved_pp2_vpp2_m5_group3.csv": with_communication(pipeline_schedule(2, 2, 5, group_size=3)),
    }


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, grid in goldens().items():
        write_csv(FOLDER / name, grid)
