"""How much memory a model needs at least, and what is short where nothing fits."""

from overlap_recompute.plan.profile import Profile
from overlap_recompute.planner import make_plan
from overlap_recompute.simulator.variations import with_stock_full_recompute

BYTES_PER_GIB = 1 << 30
_ENDLESS_BYTES = 1 << 60


def needed_bytes(profile: Profile, planner: str) -> int:
    """Of the fullest rank, with as much as it likes."""
    return max(stage.predicted.memory.total_bytes for stage in make_plan(profile, planner, _ENDLESS_BYTES).stages)


def least_bytes(profile: Profile) -> int:
    """Of the fullest rank when all is recomputed, by our full recompute or by Megatron-Core's."""
    return min(needed_bytes(profile, "full"), needed_bytes(with_stock_full_recompute(profile), "none"))


def shortage_text(profile: Profile, budget_bytes: int) -> str:
    """What is short, by how much, and where it goes; for a budget in which nothing that was asked for fits."""
    least = least_bytes(profile)
    if least <= budget_bytes:
        return f"with all recomputed a rank needs {_size(least)} of {_size(budget_bytes)}: add the arm full, or mix"
    terms = max(make_plan(profile, "full", _ENDLESS_BYTES).stages, key=lambda stage: stage.predicted.memory.total_bytes)
    table = terms.predicted.memory
    state = table.parameters_bytes + table.gradients_bytes + table.optimizer_bytes
    short = _size(least - budget_bytes)
    return (
        f"even with all recomputed a rank needs {_size(least)}, {short} more than {_size(budget_bytes)}; "
        f"{_size(state)} of it are weights, gradients and optimizer"
    )


def _size(nbytes: int) -> str:
    return f"{nbytes / BYTES_PER_GIB:.1f} GiB" if nbytes >= BYTES_PER_GIB else f"{nbytes / (1 << 20):.1f} MiB"
