"""A step of the pipeline, called as Megatron-Core's schedules are."""

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.utils import get_model_config
from torch import nn

from megatron.overlap.pipeline.errors import PipelineError, place_of
from megatron.overlap.pipeline.gradient_sync import GradientSync
from megatron.overlap.pipeline.interpreter import Interpreter
from megatron.overlap.pipeline.passes import Passes, StepCall
from megatron.overlap.pipeline.program import Layout, Program, build_program
from megatron.overlap.pipeline.refusals import refuse_unsupported
from megatron.overlap.pipeline.schedules import require_stock_steps, upstream
from megatron.overlap.pipeline.transfers import Transfers, open_groups
from megatron.overlap.pipeline.waits import PipelineWaits, WaitLog, WaitSums
from overlap_recompute.plan.actions import Action
from overlap_recompute.plan.errors import UserError
from overlap_recompute.schedules import Phase, RecomputeAhead

logger = logging.getLogger(__name__)

DataIterator = Iterator[Any] | None


class PipelineSchedule:
    """Stands in for what `get_forward_backward_func()` returns; use it in a `with`.

    One object serves training and evaluation of one model. Lists are made once for each number of microbatches. All
    ranks of the job must make one together: it forms process groups, which `destroy_process_group` takes down.

    Args:
        device: where the model lives.
        waits: who may use the waits for receives (recompute ahead of need); None: nobody.
        ahead: which waits are offered to it; every one in which something can be recomputed unless given.
        timeout: of these process groups; the default of the back end unless given.

    Raises:
        UserError: megatron-core has another shape than this was written for.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        waits: PipelineWaits | None = None,
        ahead: RecomputeAhead | None = None,
        timeout: timedelta | None = None,
    ) -> None:
        require_stock_steps()
        self._waits = waits
        self._ahead = (ahead or RecomputeAhead()) if waits is not None else None
        pipeline = parallel_state.get_pipeline_model_parallel_group()
        self._stages, self._stage = pipeline.size(), pipeline.rank()
        self._groups = _model_groups()
        self._transfers = Transfers(open_groups(pipeline, device, timeout), device)
        self._log = WaitLog()
        self._programs: dict[tuple[Layout, int, bool], Program] = {}
        self._running: Interpreter | None = None

    def __call__(
        self,
        *,
        forward_step_func: Callable[..., Any],
        data_iterator: DataIterator | list[DataIterator],
        model: nn.Module | list[nn.Module],
        num_microbatches: int,
        seq_length: int,
        micro_batch_size: int,
        decoder_seq_length: int | None = None,
        forward_only: bool = False,
        collect_non_loss_data: bool = False,
        first_val_step: bool | None = None,
        adjust_tensor_shapes_fn: Callable[..., Any] | None = None,
        p2p_communicator: Any = None,
        pg_collection: Any = None,
        force_all_reduce: bool | None = False,
    ) -> list[Any]:
        """Run all microbatches of a step; the arguments are those of Megatron-Core's schedules (`StepCall`).

        Returns:
            What the loss function returned for each microbatch, on the last stage; else an empty list.

        Raises:
            ConfigError: an argument or an option of the model that only the stock schedules honour.
            PipelineError: an action failed; the message says which one and what came before it.
        """
        assert self._running is None, "a step that failed left messages in flight; end the process"
        chunks = model if isinstance(model, list) else [model]
        config = get_model_config(chunks[0])
        given = {
            "adjust_tensor_shapes_fn": adjust_tensor_shapes_fn,
            "p2p_communicator": p2p_communicator,
            "pg_collection": pg_collection,
        }
        refuse_unsupported(config, given)
        call = StepCall(
            forward_step_func=forward_step_func,
            data_iterators=data_iterator if isinstance(data_iterator, list) else [data_iterator],
            chunks=chunks,
            num_microbatches=num_microbatches,
            forward_only=forward_only,
            collect_non_loss_data=collect_non_loss_data,
            first_val_step=first_val_step,
        )
        assert len(call.data_iterators) == len(chunks), "a data iterator for each model chunk"
        shape = upstream.get_tensor_shapes(
            seq_length=seq_length,
            micro_batch_size=micro_batch_size,
            decoder_seq_length=decoder_seq_length,
            config=config,
            tp_group=self._groups.tp,
            cp_group=self._groups.cp,
        )[0]
        return self._step(call, config, shape, bool(force_all_reduce))

    @property
    def journal(self) -> tuple[Action, ...]:
        """The last actions of the step that runs, or that failed."""
        return () if self._running is None else tuple(self._running.journal)

    def take_waits(self) -> dict[Phase, WaitSums]:
        """The waits for receives since the last call, by phase; evaluations count as warm-up."""
        return self._log.take()

    def close(self) -> None:
        """End the threads. Calling it again does nothing."""
        self._transfers.close()

    def __enter__(self) -> "PipelineSchedule":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _step(self, call: StepCall, config: Any, shape: Sequence[int], force_all_reduce: bool) -> list[Any]:
        layout = Layout(
            stages=self._stages,
            stage=self._stage,
            chunks=len(call.chunks),
            group_size=config.microbatch_group_size_per_vp_stage if len(call.chunks) > 1 else None,
        )
        timers = _Timers(config.timers)
        if config.timers is not None:
            config.timers("forward-backward", log_level=1).start(barrier=config.barrier_with_L1_time)
        program = self._program(layout, call.num_microbatches, call.forward_only)
        passes = Passes(call, layout, config, self._groups.cp.size())
        sync = GradientSync(config, call.chunks, program, self._stage)
        self._running = Interpreter(
            program,
            passes=passes,
            transfers=self._transfers,
            sync=sync,
            timers=timers,
            shape=shape,
            dtype=config.pipeline_dtype or config.params_dtype,
            waits=self._waits,
            log=self._log,
        )
        try:
            self._running.run()
        except BaseException as error:
            self._explain(error, self._running)
            raise
        finally:
            sync.close()
        self._running = None
        if config.finalize_model_grads_func is not None and not call.forward_only:
            config.finalize_model_grads_func(
                list(call.chunks),
                passes.tokens if config.calculate_per_token_loss else None,
                pg_collection=self._groups,
                force_all_reduce=force_all_reduce,
            )
        if config.timers is not None:
            config.timers("forward-backward").stop()
        return passes.collected

    def _program(self, layout: Layout, microbatches: int, forward_only: bool) -> Program:
        key = (layout, microbatches, forward_only)
        if key not in self._programs:
            self._programs[key] = build_program(layout, microbatches, forward_only=forward_only, ahead=self._ahead)
        return self._programs[key]

    def _explain(self, error: BaseException, running: Interpreter) -> None:
        """Say where it happened. The interpreter stays: it holds messages in flight, whose memory gloo may write to."""
        where = place_of(torch.distributed.get_rank(), running.current, tuple(running.journal))
        if isinstance(error, UserError):
            logger.error("%s", where)  # the error itself has its own words and its own exit status
        elif isinstance(error, Exception):
            raise PipelineError(where, error) from error


class _Timers:
    """Megatron-Core's timers of transfers; nothing without them."""

    __slots__ = ("_timers",)

    def __init__(self, timers: Any) -> None:
        self._timers = timers

    def start(self, name: str) -> None:
        if self._timers is not None:
            self._timers(name, log_level=2).start()

    def stop(self, name: str) -> None:
        if self._timers is not None:
            self._timers(name).stop()


def _model_groups() -> ProcessGroupCollection:
    """The groups that finishing the gradients needs, from parallel_state."""
    groups = ProcessGroupCollection()
    groups.tp = parallel_state.get_tensor_model_parallel_group()
    groups.cp = parallel_state.get_context_parallel_group()
    groups.embd = parallel_state.get_embedding_group(check_initialized=False)
    groups.pos_embd = parallel_state.get_position_embedding_group(check_initialized=False)
    groups.pp = parallel_state.get_pipeline_model_parallel_group()
    groups.dp_cp = parallel_state.get_data_parallel_group(with_context_parallel=True, partial_data_parallel=False)
    return groups
