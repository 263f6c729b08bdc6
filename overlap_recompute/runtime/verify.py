"""Comparing replays with what was dropped, bit for bit (docs/runtime.md, R13)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from overlap_recompute.runtime.calls import UnitCall
from overlap_recompute.runtime.errors import VerifyError


def bits_differ(first: Tensor, second: Tensor) -> int:
    """How many bytes of two tensors of one shape and dtype differ; NaNs are equal when their bits are."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return max(first.nbytes, second.nbytes)
    if first.is_sparse or second.is_sparse:
        first, second = first.to_dense(), second.to_dense()
    return int((_bytes(first) != _bytes(second)).sum())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().reshape(-1).contiguous().view(torch.uint8)


def check_replay(call: UnitCall, outputs: Sequence[Tensor]) -> None:
    """Compare what a replay made with the copies of the forward pass.

    Raises:
        VerifyError: naming unit, layer, microbatch and the tensor that differs.
    """
    for position, entry in call.entries.items():
        if position >= 0 and entry.tensor is not None:
            _compare(call, f"tensor {position} that it saves", entry.reference, entry.tensor)
            del entry.reference
    for index, reference in (call.references or {}).items():
        _compare(call, f"output {index}", reference, outputs[index])


def _compare(call: UnitCall, what: str, forward: Tensor, replay: Tensor) -> None:
    differing = bits_differ(forward, replay)
    if differing:
        raise VerifyError(
            f"{what}, of shape {tuple(forward.shape)}, differs in {differing} of {forward.nbytes} bytes "
            "from the forward pass",
            "a replay that is equal bit for bit",
            "keep this unit (SAVE), or make it deterministic",
            call.place,
        )
