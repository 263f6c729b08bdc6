"""Hooks torch.distributed.ProcessGroup, as megatron.pretrain.distributed.emulated_link does, for groups without peers.

Which methods, how they are named in each torch, and what an operation moves (ring algorithms) is taken from there; of a
transfer the bytes count here, once over the bus, and alpha counts once for each collective.

NOTE [ values ]
A fake process group sends nothing. Its results are made from what this rank has (torch 2.13): an all-reduce leaves the
tensor as it is, an all-gather repeats this rank's part, a reduce-scatter gives this rank's part of its own input. So
values are not those of a real run, but they are finite, of the right shapes, and equal in every arm.
"""

import functools
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any

from torch.distributed import ProcessGroup, Work

from megatron.pretrain.distributed.emulated_link.process_group import OPERATIONS
from tools.stage_bench_lib.link import Link, Transit


class TransitWork(Work):
    """A `torch.distributed.Work` over a transfer."""

    def __init__(self, transit: Transit, tensors: tuple[Any, ...]) -> None:
        super().__init__()
        self._transit, self._tensors = transit, tensors

    def is_completed(self) -> bool:
        """Whether the transfer is over."""
        return self._transit.is_over()

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """As a real one: the host waits (CPU), or the current stream does (CUDA)."""
        self._transit.wait()
        self._tensors = ()
        return True

    def synchronize(self) -> None:
        """The same as `wait`."""
        self.wait()


class EmulatedCollectives:
    """While entered and `active`, operations of groups with several ranks take the time of a link.

    All groups of the process must be fake ones: what an operation does itself is over when it returns.


    Args:
        link: of this rank.
    """

    def __init__(self, link: Link) -> None:
        self.active = False
        self.sent_bytes: list[int] = []
        """Over the wire by each transfer since `take`."""
        self._link = link
        self._originals: dict[str, Any] = {}

    def take(self) -> list[int]:
        """Bytes of the transfers since the last call."""
        taken, self.sent_bytes = self.sent_bytes, []
        return taken

    def __enter__(self) -> "EmulatedCollectives":
        for names, (transfer_of, arguments) in OPERATIONS.items():
            for name in names:
                if name in vars(ProcessGroup):
                    self._originals[name] = vars(ProcessGroup)[name]
                    setattr(ProcessGroup, name, self._emulated(name, transfer_of, arguments))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, original in self._originals.items():
            setattr(ProcessGroup, name, original)
        self._originals.clear()

    def _emulated(self, name: str, transfer_of: Callable[..., Any], arguments: tuple[str, ...]) -> Callable[..., Any]:
        original = self._originals[name]

        @functools.wraps(original, assigned=("__doc__",))
        def emulated(group: ProcessGroup, *args: Any, **options: Any) -> Any:
            work = original(group, *args, **options)
            if not self.active or group.size() == 1:
                return work
            values: Mapping[str, Any] = dict(zip(arguments, (*args, *options.values()), strict=False))
            transfer = transfer_of(group.size(), group.rank(), values)
            wire_bytes = max(transfer.sent_bytes or 0, transfer.received_bytes or 0)
            self.sent_bytes.append(wire_bytes)
            return TransitWork(self._link.start(wire_bytes), args)

        return emulated
