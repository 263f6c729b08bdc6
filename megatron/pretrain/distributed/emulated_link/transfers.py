"""What each operation of a process group sends and receives on one rank's link.

The figures are those of the ring algorithms (P. Patarasuk and X. Yuan, "Bandwidth optimal all-reduce algorithms for
clusters of workstations", 2009); small tree operations count their whole payload once. `n` is the number of ranks.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from megatron.pretrain.distributed.emulated_link.link import Transfer

TransferOf = Callable[[int, int, Mapping[str, Any]], Transfer]
"""Ranks of the group, this rank in it, and the operation's arguments by name, to its transfer."""


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    else:
        for item in value:
            yield from _tensors(item)


def payload_bytes(value: Any) -> int:
    """Bytes of a tensor, or of all tensors in nested sequences."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(value))


def _symmetric(moved_bytes: float, messages: int) -> Transfer:
    return Transfer(sent_bytes=math.ceil(moved_bytes), received_bytes=math.ceil(moved_bytes), messages=messages)


def all_reduce(n: int, rank: int, values: Mapping[str, Any]) -> Transfer:
    """Reduce-scatter, then all-gather: 2 (n-1)/n of the payload in 2 (n-1) steps."""
    return _symmetric(payload_bytes(values["data"]) * 2 * (n - 1) / n, 2 * (n - 1))


def gathered_ring(n: int, rank: int, values: Mapping[str, Any]) -> Transfer:
    """All-gather or reduce-scatter: (n-1)/n of the long side in n-1 steps."""
    return _symmetric(payload_bytes(values["long"]) * (n - 1) / n, n - 1)


def all_to_all_single(n: int, rank: int, values: Mapping[str, Any]) -> Transfer:
    """Everything but what a rank keeps, all at once: one message deep."""
    sent = _without_own(values["input"], values.get("input_splits"), n, rank)
    received = _without_own(values["output"], values.get("output_splits"), n, rank)
    return Transfer(sent_bytes=sent, received_bytes=received, messages=1)


def _without_own(tensor: torch.Tensor, splits: Sequence[int] | None, n: int, rank: int) -> int:
    total = payload_bytes(tensor)
    # Megatron-Core's token dispatcher passes NumPy arrays, which have no truth value.
    if splits is None or len(splits) == 0:
        return total - total // n
    rows = [int(split) for split in splits]
    return total - total * rows[rank] // max(1, sum(rows))


def all_to_all(n: int, rank: int, values: Mapping[str, Any]) -> Transfer:
    """The same with a list of tensors, one a rank."""
    sides = {name: list(values[name]) for name in ("input", "output")}
    moved = {name: payload_bytes(side) - payload_bytes(side[rank]) for name, side in sides.items()}
    return Transfer(sent_bytes=moved["input"], received_bytes=moved["output"], messages=1)


def tree(n: int, rank: int, values: Mapping[str, Any]) -> Transfer:
    """Broadcast, reduce and barrier: the payload once, through a binary tree."""
    return _symmetric(payload_bytes(values.get("data", ())), math.ceil(math.log2(n)))


def to_or_from_root(n: int, rank: int, values: Mapping[str, Any]) -> Transfer:
    """Gather and scatter: on the root all but its own piece, elsewhere the rank's piece."""
    pieces, piece = payload_bytes(values["long"]), payload_bytes(values["short"])
    return _symmetric(max(pieces - piece, 0) if pieces else piece, 1)


def send(n: int, rank: int, values: Mapping[str, Any]) -> Transfer:
    """Outgoing only."""
    return Transfer(sent_bytes=payload_bytes(values["data"]), received_bytes=None, messages=1)


def receive(n: int, rank: int, values: Mapping[str, Any]) -> Transfer:
    """Incoming only."""
    return Transfer(sent_bytes=None, received_bytes=payload_bytes(values["data"]), messages=1)
