"""Microbatches in an order that depends on the position in the run alone."""

import itertools
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from megatron.pretrain.config import PretrainConfig
from overlap_recompute.plan.errors import DataError

Batch = dict[str, torch.Tensor]
FIELDS = ("tokens", "labels", "loss_mask", "position_ids")
"""What a microbatch holds; of a sample's other fields nothing is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicrobatchOrder(Sampler[list[int]]):
    """Positions of each microbatch of one data-parallel rank.

    The ranks share every stretch of `micro_batch_size * dp_size` positions in rank order, so a global batch holds the
    same sequences whatever the data-parallel size, and the count of consumed samples alone says where to go on
    (Megatron-LM's `--dataloader-type single`). A last stretch that is not full is left out. With `repeats`, the first
    position follows the last full stretch, without end.
    """

    total_samples: int
    consumed_samples: int
    micro_batch_size: int
    dp_rank: int
    dp_size: int
    repeats: bool = False

    def __len__(self) -> int:
        """Microbatches to come; with `repeats`, those of one pass."""
        passed = 0 if self.repeats else self.consumed_samples
        return max(0, self.total_samples - passed) // (self.micro_batch_size * self.dp_size)

    def __iter__(self) -> Iterator[list[int]]:
        stride = self.micro_batch_size * self.dp_size
        start = self.consumed_samples + self.dp_rank * self.micro_batch_size
        period = len(self) * stride if self.repeats else self.total_samples
        for step in itertools.count() if self.repeats else range(len(self)):
            first = start + step * stride
            yield [place % period for place in range(first, first + self.micro_batch_size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collate:
    """Packs samples into one int64 tensor [fields, micro_batch, sequence / cp_size].

    One tensor and not four because each costs a worker's shared memory file and its hand-over, and a GPU a copy.
    """

    cp_rank: int = 0
    cp_size: int = 1

    def __call__(self, samples: list[Batch]) -> torch.Tensor:
        rows = torch.stack([sample[field].long() for field in FIELDS for sample in samples])
        packed = {"packed": rows.view(len(FIELDS), len(samples), -1)}
        return slice_for_context_parallel(packed, cp_rank=self.cp_rank, cp_size=self.cp_size)["packed"]


def slice_for_context_parallel(batch: Batch, *, cp_rank: int, cp_size: int) -> Batch:
    """Keep the part of every sequence that a context-parallel rank works on.

    The sequence is cut into 2 * cp_size chunks and rank r gets chunks r and 2 * cp_size - 1 - r, so that under causal
    attention all ranks have the same work. Same result as `get_batch_on_this_cp_rank` (megatron/core/utils.py), which
    needs a process group.

    Args:
        batch: tensors [..., sequence].
        cp_rank: which part.
        cp_size: count of parts; 1 leaves the batch as it is. `2 * cp_size` divides the sequence.

    Returns:
        Tensors [..., sequence / cp_size].
    """
    if cp_size == 1:
        return batch
    chunks = {field: tensor.chunk(2 * cp_size, dim=-1) for field, tensor in batch.items()}
    return {field: torch.cat([parts[cp_rank], parts[-1 - cp_rank]], dim=-1) for field, parts in chunks.items()}


def build_loader(
    dataset: Dataset,
    *,
    consumed_samples: int,
    config: PretrainConfig,
    dp_rank: int,
    dp_size: int,
    cp_rank: int = 0,
    cp_size: int = 1,
    device: torch.device | None = None,
    repeats: bool = False,
) -> Iterator[Batch]:
    """Iterate over the microbatches of one rank from a position of the run on.

    Worker processes (`--num-workers`) start at the first `next` and end when the iterator is closed or collected. No
    random number is drawn from torch's default generator, which on the CPU also serves dropout.

    Args:
        dataset: a split of `build_datasets`.
        consumed_samples: sequences that all data-parallel ranks together have read before.
        config: the run's options.
        dp_rank, dp_size: this rank among those that read different sequences, and their count.
        cp_rank, cp_size: this rank among those that share each sequence, and their count.
        device: where to put the tensors; a CUDA device is fed from pinned memory without waiting. None: the CPU.
        repeats: begin again after the last sample, so that any position can be resumed from.

    Yields:
        tokens, labels, position_ids (int64) and loss_mask (float32), each [micro_batch, sequence / cp_size].

    Raises:
        DataError: at once, when no full stretch of samples is left.
    """
    order = MicrobatchOrder(
        total_samples=len(dataset),  # type: ignore[arg-type]
        consumed_samples=consumed_samples,
        micro_batch_size=config.training.micro_batch_size,
        dp_rank=dp_rank,
        dp_size=dp_size,
        repeats=repeats,
    )
    if len(order) == 0:
        raise DataError(
            f"a data position of {consumed_samples} in {order.total_samples} samples",
            f"at least {order.micro_batch_size * dp_size} samples ahead",
            "lengthen the run (--train-iters; for evaluations --eval-iters)",
        )
    workers = config.data.num_workers
    on_cuda = device is not None and device.type == "cuda"
    loader = DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=Collate(cp_rank=cp_rank, cp_size=cp_size),
        pin_memory=on_cuda,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(config.training.seed),
        worker_init_fn=_outlive_termination if config.training.exit_signal_handler else None,
    )
    return _batches(loader, device if on_cuda else None)


def _batches(loader: DataLoader, device: torch.device | None) -> Iterator[Batch]:
    for packed in loader:
        on_device = packed if device is None else packed.to(device, non_blocking=True)
        batch: Batch = dict(zip(FIELDS, on_device, strict=True))
        batch["loss_mask"] = batch["loss_mask"].float()  # zeros and ones: nothing is lost on the way
        yield batch


def _outlive_termination(worker: int) -> None:
    """Let a worker ignore SIGTERM, which a batch system sends to all processes: the trainer still has to save.

    The worker ends with the iterator, or when it sees that its parent is gone.
    """
    del worker
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
