"""A link that takes time and talks to nobody: for measurements on one machine, and labelled as emulated everywhere."""

import weakref
from typing import Any

import torch

from overlap_recompute.ops.backend import make_backend
from overlap_recompute.ops.fallback_lane import FallbackLane
from overlap_recompute.ops.lane import Fence
from overlap_recompute.ops.native import extension
from overlap_recompute.plan.errors import UserError

DEFAULT_BLOCKS = 8


class EmulatedLink:
    """Transfers of latency + bytes / bandwidth, one after the other.

    On CUDA a transfer is a kernel of a few thread blocks on a stream of the highest priority, which spins on the
    device's clock and copies at the link's pace: it holds multiprocessors and memory bandwidth as a collective would.
    On the CPU a worker thread sleeps (no processor time); latencies of transfers in a row overlap.

    Args:
        device: "cpu" or "cuda:N".
        latency_us: of each transfer.
        bandwidth_gbps: gigabits per second.
        blocks: CUDA: thread blocks of a transfer (NCCL uses about one per channel).
    """

    def __init__(
        self, device: torch.device, *, latency_us: float, bandwidth_gbps: float, blocks: int = DEFAULT_BLOCKS
    ) -> None:
        if latency_us < 0 or bandwidth_gbps <= 0 or blocks < 1:
            found = f"an emulated link of {latency_us} us, {bandwidth_gbps} Gbit/s and {blocks} blocks"
            raise UserError(found, "a latency of at least 0, a bandwidth above 0, one block or more", "correct it")
        self.device, self.latency_us, self.bandwidth_gbps, self.blocks = device, latency_us, bandwidth_gbps, blocks
        backend = make_backend(device)
        self._core: Any
        if backend is None and device.type == "cuda":
            raise UserError(
                "an emulated link on CUDA", "an extension built with CUDA", "see `overlap-recompute doctor`"
            )
        if backend is None:
            self._core = FallbackLane(own_stream=True)
        else:
            assert extension is not None
            self._core = extension.Lane(backend, own_stream=True, high_priority=True, marks=None)
        self._finalizer = weakref.finalize(self, self._core.close)

    def duration_us(self, transfer_bytes: int) -> float:
        """What a transfer takes on an idle link."""
        return self.latency_us + transfer_bytes * 8e-3 / self.bandwidth_gbps

    def transfer(
        self,
        transfer_bytes: int,
        *,
        source: torch.Tensor | None = None,
        target: torch.Tensor | None = None,
        after: int | None = None,
    ) -> Fence:
        """Starts a transfer and returns at once.

        Args:
            transfer_bytes: how much the link carries.
            source, target: contiguous, of at least that many bytes: copied along the way; both or neither. They are
                kept alive until the fence has been waited for.
            after: handle of a stream whose work so far must be done before the transfer starts.

        Returns:
            A fence: `passed()` polls, `host_wait()` blocks, `wait(stream)` makes a stream wait.
        """
        for tensor in (source, target):
            held_bytes = 0 if tensor is None else tensor.numel() * tensor.element_size()
            if tensor is not None and (held_bytes < transfer_bytes or not tensor.is_contiguous()):
                raise UserError(
                    f"a buffer of {held_bytes} bytes", f"contiguous, {transfer_bytes} or more", "pass a larger one"
                )
        if (source is None) != (target is None) or transfer_bytes < 0:
            raise UserError(f"{transfer_bytes} bytes with one buffer", "source and target, or neither", "pass both")
        latency_ns = round(self.latency_us * 1e3)
        duration_ns = round(transfer_bytes * 8 / self.bandwidth_gbps)
        if isinstance(self._core, FallbackLane):
            if source is not None and target is not None:
                self._core.launch(
                    lambda: self._copy(source, target, transfer_bytes), (source, target), 0, 0
                ).host_wait()
            return self._core.launch_wait(latency_ns, duration_ns, (source, target))
        assert extension is not None
        if after is not None:
            self._core.follow(after)
        addresses = (0 if tensor is None else tensor.data_ptr() for tensor in (source, target))
        copy = extension.EmulatedCopy(transfer_bytes, latency_ns, duration_ns, *addresses, self.blocks)
        fence: Fence = self._core.launch_copy(copy, (source, target), 0, 0)
        return fence

    @staticmethod
    def _copy(source: torch.Tensor, target: torch.Tensor, transfer_bytes: int) -> None:
        target.view(-1).view(torch.uint8)[:transfer_bytes].copy_(source.view(-1).view(torch.uint8)[:transfer_bytes])

    def close(self) -> None:
        """Waits for what is under way and frees the worker or stream."""
        self._finalizer.detach()
        self._core.close()
