"""Point-to-point messages of one rank: started by one action, waited for by another.

NOTE [ messages between stages ]
1. Nothing here synchronizes with the device, and every Work is kept until it was waited for: gloo loses a message
   whose Work is dropped.
2. A send owns what it sends. The caller may replace the `data` of the tensor at once (`deallocate_pipeline_outputs`);
   the memory is given back after the wait. Upstream's overlapped schedule frees it while gloo still reads.
3. Each direction has a process group of its own. NCCL runs the messages between two ranks of one group one after the
   other, in the order of the calls, so that a receive that is posted early would hold back the send behind it. gloo has
   one connection and one lock for each peer and group: a send waited up to 1 ms for what came in.
   NCCL makes a connection when both ends ask for it, and asking blocks; the order of a schedule does not promise that
   this ends, so all are made before the first step.
4. gloo does not tell whether a receive is over before somebody waits for it: see `receiver`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from megatron.overlap.pipeline.receiver import Receivers
from overlap_recompute.schedules import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionGroups:
    """Process groups of one pipeline, in the order of its stages. See NOTE [ messages between stages ], 3."""

    up: ProcessGroup
    """Carries what goes to a higher pipeline rank."""
    down: ProcessGroup
    """Carries what goes to a lower pipeline rank."""

    def of(self, message: Message) -> ProcessGroup:
        """The group that carries a message."""
        return self.up if message.source_rank < message.destination_rank else self.down


class Receive(Protocol):
    """A receive that has been posted."""

    tensor: Tensor

    def is_completed(self) -> bool:
        """Whether the tensor is here."""
        ...

    def wait(self) -> object:
        """Wait until it is."""
        ...


class _Posted:
    """A receive that only its Work follows."""

    __slots__ = ("tensor", "wait", "is_completed")

    def __init__(self, tensor: Tensor, work: Any) -> None:
        self.tensor, self.wait, self.is_completed = tensor, work.wait, work.is_completed


class Send:
    """A send that has been started; it owns the tensor."""

    __slots__ = ("_tensor", "_work")

    def __init__(self, tensor: Tensor, work: Any) -> None:
        self._tensor: Tensor | None = tensor
        self._work = work

    def wait(self) -> None:
        """Wait until it is sent; the memory is free from then on."""
        self._work.wait()
        self._tensor = None


class Transfers:
    """Starts the messages of one rank.

    Args:
        groups: see `open_groups`.
        device: where tensors live.
    """

    def __init__(self, groups: DirectionGroups, device: torch.device) -> None:
        self._groups, self._device = groups, device
        self._receivers = Receivers()

    def receive(self, message: Message, shape: Sequence[int], dtype: torch.dtype, *, is_filled: bool) -> Receive:
        """Post a receive into a new tensor.

        Args:
            message: what comes.
            shape: of the tensor, [sequence, micro_batch, hidden].
            dtype: of its elements.
            is_filled: `is_completed` is to tell the truth, so that the wait can be filled.
        """
        tensor = torch.empty(tuple(shape), dtype=dtype, device=self._device, requires_grad=True)
        work = distributed.irecv(
            tensor, group=self._groups.of(message), group_src=message.source_rank, tag=message.traffic.value
        )
        if is_filled and self._device.type == "cpu":
            return self._receivers.follow(message.source_rank, tensor, work)
        return _Posted(tensor, work)

    def send(self, message: Message, tensor: Tensor) -> Send:
        """Start sending a tensor; see NOTE [ messages between stages ], 2."""
        owned = tensor.detach()
        work = distributed.isend(
            owned, group=self._groups.of(message), group_dst=message.destination_rank, tag=message.traffic.value
        )
        return Send(owned, work)

    def close(self) -> None:
        """End the threads that follow receives, each after its last one."""
        self._receivers.close()


def open_groups(pipeline: ProcessGroup, device: torch.device, timeout: timedelta | None = None) -> DirectionGroups:
    """Make the groups that carry this pipeline's messages; collective over all ranks of the job.

    Args:
        pipeline: Megatron-Core's pipeline-parallel group of this rank.
        device: where tensors live.
        timeout: of the groups; the default of the back end unless given.
    """
    if pipeline.size() == 1:
        return DirectionGroups(up=pipeline, down=pipeline)
    ranks = distributed.get_process_group_ranks(pipeline)
    everybody: list[list[int]] = [[]] * distributed.get_world_size()
    distributed.all_gather_object(everybody, ranks)
    groups = []
    for direction in ("up", "down"):
        # Every rank of the job takes part in making every group, in the same order.
        made = {
            tuple(members): distributed.new_group(members, timeout=timeout, group_desc=f"PIPELINE_{direction}")
            for members in sorted(set(map(tuple, everybody)))
        }
        groups.append(made[tuple(ranks)])
    found = DirectionGroups(up=groups[0], down=groups[1])
    _connect(found, device)
    return found


def _connect(groups: DirectionGroups, device: torch.device) -> None:
    """Send one number over every link and direction, link by link; see NOTE [ messages between stages ], 3."""
    rank, size = groups.up.rank(), groups.up.size()
    number = torch.zeros(1, device=device)
    links = sorted({tuple(sorted((stage, (stage + 1) % size))) for stage in range(size)})
    for low, high in links:
        for group, source, destination in ((groups.up, low, high), (groups.down, high, low)):
            if rank == source:
                distributed.send(number, group=group, group_dst=destination)
            elif rank == destination:
                distributed.recv(number, group=group, group_src=source)
