"""Whether a stage fits: what it needs by the memory expression, what is free, and what is short."""

import pathlib
import re
from collections.abc import Callable

import torch

from overlap_recompute.plan.errors import UserError
from overlap_recompute.plan.memory import stage_memory
from overlap_recompute.plan.plan_file import MemoryTable
from overlap_recompute.plan.profile import Profile
from overlap_recompute.simulator.variations import with_stock_full_recompute
from tools.stage_bench_lib.arms import STOCK_FULL
from tools.stage_bench_lib.compose import cap_bytes, dropped_units
from tools.stage_bench_lib.costs import for_split
from tools.stage_bench_lib.options import Options

BYTES_PER_GIB = 1 << 30


def room_bytes(options: Options, device: torch.device) -> int:
    """Free memory of the device, with what torch's allocator holds for this process; or what --memory-gib says."""
    if options.memory_gib is not None:
        return int(options.memory_gib * BYTES_PER_GIB)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    status = pathlib.Path("/proc/meminfo").read_text()
    found = re.search(r"^MemAvailable:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def needed(profile: Profile, arm: str, stage: int, *, layers: int, in_flight: int) -> MemoryTable:
    """What an arm needs on a stage of so many layers, without an optimizer, which is not built.

    Args:
        profile: of the model; its layers are alike.
        arm: one of `ARMS`.
        stage: which one.
        layers: that it holds.
        in_flight: most microbatches between forward and backward.
    """
    stages = profile.layout.pipeline_parallel
    small = for_split(profile, ((layers,),) * stages)
    if arm == STOCK_FULL:
        small = with_stock_full_recompute(small)
    dropped, cap = dropped_units(small, arm), cap_bytes(small, arm)
    return stage_memory(small, small.layout.split, stage, dropped, (in_flight,), prefetch_cap_bytes=cap)


def without_optimizer_bytes(table: MemoryTable) -> int:
    """What the bench allocates of it; what was there before is not free anyhow."""
    return table.total_bytes - table.optimizer_bytes - table.base_bytes - table.communication_bytes


def shortage(table: MemoryTable, free_bytes: int) -> str:
    """What is short, in words; empty where it fits."""
    total_bytes = without_optimizer_bytes(table)
    if total_bytes <= free_bytes:
        return ""
    activations = table.kept_bytes + table.prefetched_bytes + table.working_set_bytes + table.head_bytes
    parts = {
        "weights": table.parameters_bytes,
        "gradients": table.gradients_bytes,
        "kept activations": table.kept_bytes,
        "other activations": activations - table.kept_bytes + table.margin_bytes,
    }
    words = ", ".join(f"{name} {in_gib(nbytes)}" for name, nbytes in parts.items())
    return (
        f"{in_gib(total_bytes)} needed ({words}), {in_gib(free_bytes)} free: {in_gib(total_bytes - free_bytes)} short"
    )


def does_not_fit(what: str, short: str, most_layers: int) -> UserError:
    """The error.

    Args:
        what: does not fit.
        short: by what (`shortage`).
        most_layers: that would fit; 0 if not even one does.
    """
    hint = f"--layers {most_layers}, " if most_layers else ""
    return UserError(
        f"{what}, which does not fit: {short}",
        "a stage that fits the device's free memory",
        f"try {hint}a smaller --micro-batch or --sequence, or a larger --tensor-parallel",
    )


def most_layers(fits: Callable[[int], bool], layers: int) -> int:
    """The most layers, fewer than so many, that fit; 0 if none do."""
    return next((count for count in range(layers - 1, 0, -1) if fits(count)), 0)


def in_gib(nbytes: int) -> str:
    """For people."""
    return f"{nbytes / BYTES_PER_GIB:.2f} GiB"
