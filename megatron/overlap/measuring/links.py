"""How long communication takes on the groups of this run: a short benchmark and a straight line through it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from torch import distributed
from torch.distributed import ProcessGroup

from megatron.overlap.measuring.clocks import Clock
from megatron.overlap.measuring.samples import median_us
from overlap_recompute.plan.profile import LinkFit

SMALLEST_BYTES = 4096
FRACTIONS = (16, 4, 1)
"""Sizes are the run's own payload over these, and `SMALLEST_BYTES`."""
ROUNDS = 5
"""After one that is not counted."""
FLOAT_BYTES = 4

Operation = Callable[[torch.Tensor, ProcessGroup], None]


def _all_reduce(tensor: torch.Tensor, group: ProcessGroup) -> None:
    distributed.all_reduce(tensor, group=group)


def _all_gather(tensor: torch.Tensor, group: ProcessGroup) -> None:
    size = tensor.numel() // group.size()
    distributed.all_gather_into_tensor(tensor, tensor[:size].clone(), group=group)


def _reduce_scatter(tensor: torch.Tensor, group: ProcessGroup) -> None:
    size = tensor.numel() // group.size()
    distributed.reduce_scatter_tensor(tensor[:size].clone(), tensor, group=group)


def _all_to_all(tensor: torch.Tensor, group: ProcessGroup) -> None:
    distributed.all_to_all_single(torch.empty_like(tensor), tensor, group=group)


def _ping_pong(tensor: torch.Tensor, group: ProcessGroup) -> None:
    """From the first stage to the second and back."""
    if group.rank() == 0:
        distributed.send(tensor, group=group, group_dst=1)
        distributed.recv(tensor, group=group, group_src=1)
    elif group.rank() == 1:
        distributed.recv(tensor, group=group, group_src=0)
        distributed.send(tensor, group=group, group_dst=0)


SEND = "send"
_OPERATIONS: Mapping[str, Operation] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    SEND: _ping_pong,
}
_WAYS = {SEND: 2}
"""Transfers in a row that an operation consists of, if not one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTask:
    """What to measure on which group."""

    name: str
    group: ProcessGroup
    payload_bytes: int
    """Of the run's own messages."""


def tasks_of_run(payload_bytes: int, boundary_bytes: int) -> list[LinkTask]:
    """What this run communicates with: its tensor-parallel, expert-parallel and pipeline groups.

    Args:
        payload_bytes: of a tensor-parallel collective, all ranks of the group together.
        boundary_bytes: of a message between stages.
    """
    tensor, pipeline = (
        parallel_state.get_tensor_model_parallel_group(),
        parallel_state.get_pipeline_model_parallel_group(),
    )
    experts = parallel_state.get_expert_model_parallel_group()
    tasks = []
    if tensor.size() > 1:
        names = ("all_reduce", "all_gather", "reduce_scatter")
        tasks += [LinkTask(name=name, group=tensor, payload_bytes=payload_bytes) for name in names]
    if experts is not None and experts.size() > 1:
        tasks.append(LinkTask(name="all_to_all", group=experts, payload_bytes=payload_bytes))
    if pipeline.size() > 1:
        tasks.append(LinkTask(name=SEND, group=pipeline, payload_bytes=boundary_bytes))
    return tasks


def measure_links(tasks: Sequence[LinkTask], clock: Clock, device: torch.device) -> tuple[LinkFit, ...]:
    """Run every task on every rank of its group; collective, one task after the other."""
    return tuple(_measure(task, clock, device) for task in tasks)


def _measure(task: LinkTask, clock: Clock, device: torch.device) -> LinkFit:
    operation, ways = _OPERATIONS[task.name], _WAYS.get(task.name, 1)
    unit = FLOAT_BYTES * task.group.size()
    wanted = {SMALLEST_BYTES, *(task.payload_bytes // part for part in FRACTIONS)}
    points = []
    for nbytes in sorted({max(unit, size // unit * unit) for size in wanted}):
        tensor = torch.zeros(nbytes // FLOAT_BYTES, device=device)
        times = []
        for round_ in range(ROUNDS + 1):
            distributed.barrier(group=task.group)
            stamps = [clock.stamp()]
            operation(tensor, task.group)
            stamps.append(clock.stamp())
            if round_:
                times.append(clock.times_us(stamps)[1] / ways)
            else:
                clock.times_us(stamps)
        points.append((nbytes, median_us(times)))
    return fit_of(task.name, points)


def fit_of(name: str, points: Sequence[tuple[int, float]]) -> LinkFit:
    """The line with the least relative error through (bytes, us); neither of its terms is negative."""
    weights = [1.0 / max(us, 1e-9) ** 2 for _, us in points]
    total = sum(weights)
    mean_bytes = sum(w * nbytes for w, (nbytes, _) in zip(weights, points, strict=True)) / total
    mean_us = sum(w * us for w, (_, us) in zip(weights, points, strict=True)) / total
    square = sum(w * (nbytes - mean_bytes) ** 2 for w, (nbytes, _) in zip(weights, points, strict=True))
    product = sum(w * (n - mean_bytes) * (us - mean_us) for w, (n, us) in zip(weights, points, strict=True))
    beta = max(0.0, product / square) if square > 0 else 0.0
    alpha_us = mean_us - beta * mean_bytes
    if alpha_us < 0:
        alpha_us = 0.0
        beta = sum(w * n * us for w, (n, us) in zip(weights, points, strict=True)) / sum(
            w * n * n for w, (n, _) in zip(weights, points, strict=True)
        )
    return LinkFit(name=name, alpha_us=alpha_us, beta_us_per_byte=beta, points=tuple(points))
