"""Hooks torch.distributed.ProcessGroup, the bottom of torch/distributed/distributed_c10d.py (torch 2.6 to 2.13).

# NOTE [ Why the methods of ProcessGroup ]
# Megatron-Core 0.16.1 calls torch.distributed functions by attribute (all_reduce in tensor_parallel/mappings.py), under
# names bound at import (dist_all_gather_func in tensor_parallel/mappings.py, layers.py, utils.py,
# distributed/param_and_grad_buffer.py), inside _coalescing_manager, and as P2POp, which accepts only torch's own isend
# and irecv. All of them end in a method of ProcessGroup. Replacing these few reaches every caller, whoever else wraps
# the functions above, in whatever order; torch's functions stay the objects they were.
"""

import functools
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from torch.distributed import ProcessGroup

from megatron.pretrain.distributed.emulated_link import transfers
from megatron.pretrain.distributed.emulated_link.link import EmulatedLink
from megatron.pretrain.distributed.emulated_link.transfers import TransferOf
from megatron.pretrain.distributed.emulated_link.works import Waiters, follow
from overlap_recompute.plan.errors import UserError

Arguments = tuple[str, ...]
"""What the leading arguments of a method are to the function that prices it; "" is of no interest."""

_DATA: Arguments = ("data",)
_GATHERED: Arguments = ("long", "short")
_SCATTERED: Arguments = ("short", "long")
_SPLIT: Arguments = ("output", "input", "output_splits", "input_splits")

OPERATIONS: Mapping[tuple[str, ...], tuple[TransferOf, Arguments]] = {
    ("allreduce",): (transfers.all_reduce, _DATA),
    ("allreduce_coalesced",): (transfers.all_reduce, _DATA),
    ("all_gather_single", "_allgather_base"): (transfers.gathered_ring, _GATHERED),
    ("all_gather_single_coalesced", "allgather_into_tensor_coalesced"): (transfers.gathered_ring, _GATHERED),
    ("allgather",): (transfers.gathered_ring, _GATHERED),
    ("allgather_coalesced",): (transfers.gathered_ring, _GATHERED),
    ("reduce_scatter_single", "_reduce_scatter_base"): (transfers.gathered_ring, _SCATTERED),
    ("reduce_scatter_single_coalesced", "reduce_scatter_tensor_coalesced"): (transfers.gathered_ring, _SCATTERED),
    ("reduce_scatter",): (transfers.gathered_ring, _SCATTERED),
    ("all_to_all_single", "alltoall_base"): (transfers.all_to_all_single, _SPLIT),
    ("alltoall",): (transfers.all_to_all, ("output", "input")),
    ("broadcast",): (transfers.tree, _DATA),
    ("reduce",): (transfers.tree, _DATA),
    ("barrier",): (transfers.tree, ()),
    ("gather",): (transfers.to_or_from_root, _GATHERED),
    ("scatter",): (transfers.to_or_from_root, _SCATTERED),
    ("send",): (transfers.send, _DATA),
    ("recv",): (transfers.receive, _DATA),
    ("recv_anysource",): (transfers.receive, _DATA),
}
"""Names of one operation (newest torch first; a torch has one of them or several), how it is priced, its arguments."""

MARK = "emulated_link"
"""Attribute of our methods, by which a second installation is noticed."""


class LinkedProcessGroups:
    """While installed, what process groups of more than one rank transfer takes the time of a link. Use in a `with`.

    Only gloo groups are followed; an operation of another back end goes its way.

    Args:
        link: the link of this rank.

    Raises:
        UserError: this torch lacks an operation, or a link is installed already.
    """

    def __init__(self, link: EmulatedLink) -> None:
        self.link = link
        self._waiters = Waiters()
        self._originals: dict[str, Any] = {}
        self._replacements: dict[str, Any] = {}

    def install(self) -> None:
        """Replace the methods."""
        _require_known_methods()
        self._waiters = Waiters()
        for names, (transfer_of, arguments) in OPERATIONS.items():
            for name in names:
                if name in vars(ProcessGroup):
                    self._originals[name] = vars(ProcessGroup)[name]
                    self._replacements[name] = self._linked(self._originals[name], name, transfer_of, arguments)
        for name, replacement in self._replacements.items():
            setattr(ProcessGroup, name, replacement)

    def remove(self) -> None:
        """Put the very same methods back; does nothing the second time.

        What somebody has wrapped since stays wrapped, and what is inside does no more than torch's own method. Works
        under way complete in their time.
        """
        for name, original in self._originals.items():
            if vars(ProcessGroup)[name] is self._replacements[name]:
                setattr(ProcessGroup, name, original)
        self._originals.clear()
        self._waiters.close()

    def __enter__(self) -> "LinkedProcessGroups":
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _linked(
        self, original: Callable[..., Any], name: str, transfer_of: TransferOf, arguments: Arguments
    ) -> Callable[..., Any]:
        link, waiters, installed = self.link, self._waiters, self._originals

        @functools.wraps(original, assigned=("__doc__",))
        def linked(group: ProcessGroup, *args: Any, **options: Any) -> Any:
            work = original(group, *args, **options)
            size = group.size()
            if name not in installed or size == 1 or group.name() != "gloo":
                return work
            # The leading arguments are the tensors, in the same order in every torch; their names differ.
            values = dict(zip(arguments, (*args, *options.values()), strict=False))
            transfer = transfer_of(size, group.rank(), values)
            return follow(work, transfer, link, waiters)

        setattr(linked, MARK, link)
        linked.__name__ = name
        return linked


def _require_known_methods() -> None:
    missing = [names[0] for names in OPERATIONS if not any(name in vars(ProcessGroup) for name in names)]
    if missing:
        raise UserError(
            f"a torch whose ProcessGroup has no {', '.join(missing)}",
            "torch 2.6 to 2.13",
            "install one of these, or run without --emulate-link-gbps",
        )
    if hasattr(vars(ProcessGroup)["allreduce"], MARK):
        raise UserError("a second emulated link", "one in a process", "remove the first one before")
