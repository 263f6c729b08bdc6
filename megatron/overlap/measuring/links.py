"""How long communication takes on the groups of this run: a short benchmark, and a line through it.

NOTE [ bursts ]
A rate-limited link (a token bucket, as clouds and `tc tbf` have it) lets so many bytes pass at once after a pause, and
the rest at its rate. Messages that fit into the burst say nothing about the rate, and messages sent without a pause say
nothing about the burst. A run pauses between its messages. So each is measured after a pause, over sizes up to the
run's own, and the line has a bend (`LinkFit.burst_bytes`) where one explains the points much better than none.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from megatron.core import parallel_state
from torch import distributed
from torch.distributed import ProcessGroup

from megatron.overlap.measuring.clocks import Clock
from megatron.overlap.measuring.samples import median_us
from overlap_recompute.plan.profile import SEND, LinkFit

SMALLEST_BYTES = 4096
ROUNDS = 5
"""After one that is not counted."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.1
"""Before a transfer: as long as the one before took, within these."""
BENDS = 16
"""Places between two sizes where the line is tried with a bend."""
SMALL = 0.1
"""Below this part of the longest time, errors count by their size, not in proportion: a small message takes what the
scheduler makes of it, and the run's own are not small."""
BENT = 0.25
"""A bend must bring the squared relative error down to this part of it."""
FLOAT_BYTES = 4
US_PER_S = 1e6

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


def sizes_of(payload_bytes: int, ranks: int) -> list[int]:
    """Powers of two from `SMALLEST_BYTES` on, and the payload, all of them whole numbers of floats on every rank."""
    unit = FLOAT_BYTES * ranks
    wanted = [SMALLEST_BYTES]
    while wanted[-1] * 2 < payload_bytes:
        wanted.append(wanted[-1] * 2)
    return sorted({max(unit, size // unit * unit) for size in (*wanted, payload_bytes)})


def _measure(task: LinkTask, clock: Clock, device: torch.device) -> LinkFit:
    operation, ways = _OPERATIONS[task.name], _WAYS.get(task.name, 1)
    points = []
    pause_s = SHORTEST_PAUSE_S
    for nbytes in sizes_of(task.payload_bytes, task.group.size()):
        tensor = torch.zeros(nbytes // FLOAT_BYTES, device=device)
        times = []
        for round_ in range(ROUNDS + 1):
            _pause(pause_s)
            distributed.barrier(group=task.group)
            stamps = [clock.stamp()]
            operation(tensor, task.group)
            stamps.append(clock.stamp())
            taken_us = clock.times_us(stamps)[1] / ways
            pause_s = min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S, taken_us * ways / US_PER_S))
            if round_:
                times.append(taken_us)
        points.append((nbytes, median_us(times)))
    return fit_of(task.name, points)


def _pause(length_s: float) -> None:
    """Keep the host busy, as a run does between its messages: one that slept is slow to wake."""
    end_s = time.perf_counter() + length_s
    while time.perf_counter() < end_s:
        pass


def fit_of(name: str, points: Sequence[tuple[int, float]]) -> LinkFit:
    """The line with the least relative error through (bytes, us), see `SMALL`, with a bend where the NOTE says so.

    No term is negative.
    """
    straight = _line(points, 0)
    best = min((_line(points, bend) for bend in _bends(points)), key=lambda line: line.error, default=straight)
    chosen = best if best.error < BENT * straight.error else straight
    return LinkFit(
        name=name,
        alpha_us=chosen.alpha_us,
        beta_us_per_byte=chosen.beta,
        points=tuple(points),
        burst_bytes=chosen.bend,
    )


class _Line(NamedTuple):
    alpha_us: float
    beta: float
    bend: int
    error: float
    """Sum of squared relative errors."""


def _bends(points: Sequence[tuple[int, float]]) -> Iterable[int]:
    """Places for a bend; at least two points lie behind it."""
    sizes = sorted(nbytes for nbytes, _ in points)
    for low, high in pairwise(sizes[:-1]):
        yield from (low + (high - low) * part // BENDS for part in range(BENDS))


def _line(points: Sequence[tuple[int, float]], bend: int) -> _Line:
    least_us = max(1e-9, SMALL * max(us for _, us in points))
    rows = [(max(0, nbytes - bend), us, 1.0 / max(us, least_us) ** 2) for nbytes, us in points]
    total = sum(weight for _, _, weight in rows)
    mean_bytes = sum(weight * size for size, _, weight in rows) / total
    mean_us = sum(weight * us for _, us, weight in rows) / total
    square = sum(weight * (size - mean_bytes) ** 2 for size, _, weight in rows)
    product = sum(weight * (size - mean_bytes) * (us - mean_us) for size, us, weight in rows)
    beta = max(0.0, product / square) if square > 0 else 0.0
    alpha_us = mean_us - beta * mean_bytes
    if alpha_us < 0:
        alpha_us = 0.0
        beta = sum(weight * size * us for size, us, weight in rows) / sum(weight * size**2 for size, _, weight in rows)
    error = sum(weight * (alpha_us + beta * size - us) ** 2 for size, us, weight in rows)
    return _Line(alpha_us, beta, bend, error)
