"""This rank's place in the cluster, and the orderly end of its process groups."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

import torch
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import unset_num_microbatches_calculator
from torch.distributed import ProcessGroup, Store

from megatron.pretrain.distributed.liveness import LivenessWatch
from megatron.pretrain.distributed.settle import settle


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """Rank and size in every dimension of parallelism."""

    rank: int
    """Among all processes."""

    world_size: int
    """Number of processes."""

    local_rank: int
    """Among the processes of this host."""

    tp_rank: int
    """Tensor-parallel rank."""

    tp_size: int
    """Ranks that share each layer's tensors."""

    pp_rank: int
    """Pipeline stage."""

    pp_size: int
    """Number of pipeline stages."""

    dp_rank: int
    """Data-parallel rank, context-parallel ranks not counted."""

    dp_size: int
    """Copies of the model that read different data."""

    cp_rank: int
    """Context-parallel rank."""

    cp_size: int
    """Ranks that share each sequence."""

    ep_rank: int
    """Expert-parallel rank."""

    ep_size: int
    """Ranks that share each layer's experts."""

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the embedding and reads tokens."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank computes the loss."""
        return self.pp_rank == self.pp_size - 1

    def describe(self) -> str:
        """For messages: "pipeline stage 1, host n1, process 4711"."""
        return f"pipeline stage {self.pp_rank}, host {socket.gethostname()}, process {os.getpid()}"


class Cluster:
    """The process groups of a run, on this rank. Use it in a `with`: leaving it ends them in order.

    Leaving normally waits until every rank is done, so that nobody closes a connection another one still reads.
    Leaving with an exception tells the other ranks, and raises `PeerFailure` when another rank was the first cause, or
    `OwnFailure` from the exception when this rank was; the groups are then left to the end of the process, because a
    group that lost a rank may never be destroyed in order.

    Args:
        place: this rank's place.
        device: the device to train on.
        watch: the watch over all ranks; None in a run of one process.
        host_group: a gloo group of all ranks for small host-side agreements; None when nothing needs one.
        store: the rendezvous store, kept alive until the end.
        notes: lines worth logging.
    """

    def __init__(
        self,
        *,
        place: RankPlace,
        device: torch.device,
        watch: LivenessWatch | None,
        host_group: ProcessGroup | None,
        store: Store,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.place, self.device, self.host_group, self.notes = place, device, host_group, notes
        self._watch, self._store, self._closed = watch, store, False

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Within, this rank may hold Python's interpreter lock longer than --liveness-timeout-s (building an index)."""
        with self._watch.quiet() if self._watch else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def before_leaving(self, act: Callable[[str], object]) -> Iterator[None]:
        """Within, `act` is done if the watch has to end this process, and is told why; see `LastActs`."""
        with self._watch.last_acts.added(act) if self._watch else contextlib.nullcontext():
            yield

    def close(self) -> None:
        """Wait until every rank is done, destroy all groups, leave the watch. A second call does nothing.

        Raises:
            PeerFailure: a rank was lost instead.
        """
        if self._closed:
            return
        if self._watch is not None:
            self._watch.finish()
        self._closed = True
        unset_num_microbatches_calculator()
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
        if self._watch is not None:
            self._watch.close()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):
            try:
                self.close()
                return
            except BaseException as closing_error:
                error = closing_error
        settled = settle(error, self._watch)
        if settled is not error:
            raise settled from error
        raise error
