"""From the figures of an interval to the record that the log writes."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer_param_scheduler import get_canonical_lr_for_logging
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.timers import Timers

from megatron.pretrain.checkpoint.contents import finish_parameter_gathers
from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.logs.memory import peak_memory_bytes
from megatron.pretrain.logs.records import EvaluationRecord, IterationRecord, perplexity_of
from megatron.pretrain.logs.throughput import tflops_per_rank, tokens_per_s
from megatron.pretrain.training.evaluate import Evaluation
from megatron.pretrain.training.interval import IntervalFigures
from megatron.pretrain.training.moe_utils import AuxiliaryLosses
from megatron.pretrain.training.state import TrainingState


def timer_fields(option: str, by_rank_ms: Mapping[str, tuple[float, ...]]) -> dict[str, Mapping[str, Any]]:
    """The fields of an `IterationRecord` about timers that `--timing-log-option` asks for.

    Args:
        option: max, minmax or all.
        by_rank_ms: each timer's time on each rank; 0 on ranks that do not have it.
    """
    fields: dict[str, Mapping[str, Any]] = {"timers_ms": {name: max(times) for name, times in by_rank_ms.items()}}
    if option == "minmax":
        fields["timers_min_ms"] = {name: min(filter(None, times)) for name, times in by_rank_ms.items()}
    if option == "all":
        fields["timers_by_rank_ms"] = by_rank_ms
    return fields


class Reporter:
    """Makes records. Its methods are collective: every rank calls them at the same iteration.

    Args:
        config: the options of the run.
        device: where the model lives.
        flops_per_iteration: model FLOPs of one iteration, all ranks together.
        timers: Megatron's timers; None at `--timing-log-level 0`.
    """

    def __init__(
        self, config: PretrainConfig, device: torch.device, flops_per_iteration: float, timers: Timers | None
    ) -> None:
        self._config, self._device = config, device
        self._flops, self._timers = flops_per_iteration, timers
        self._auxiliary_losses = AuxiliaryLosses(config, device)

    def iteration(
        self, state: TrainingState, figures: IntervalFigures, extra: Mapping[str, float] | None = None
    ) -> IterationRecord:
        """Describe the iterations since the last record; `extra` are figures of optional parts."""
        config = self._config
        elapsed_s = figures.elapsed_s / figures.iterations
        memory = self._extremes(float(peak_memory_bytes(self._device.type)))
        return IterationRecord(
            iteration=state.progress.iteration,
            train_iters=config.train_iters,
            consumed_samples=state.progress.consumed_train_samples,
            elapsed_ms=elapsed_s * 1e3,
            tokens_per_s=tokens_per_s(config.global_batch_size, config.model.seq_length, elapsed_s),
            tflops_per_rank=tflops_per_rank(self._flops, elapsed_s, config.world.world_size),
            loss=figures.loss,
            auxiliary_losses=self._auxiliary_losses.take(figures.iterations),
            grad_norm=figures.grad_norm,
            learning_rate=get_canonical_lr_for_logging(state.optimizer.param_groups) or 0.0,
            loss_scale=float(state.optimizer.get_loss_scale()),
            global_batch_size=config.global_batch_size,
            skipped_iterations=figures.skipped,
            nan_iterations=figures.nan,
            num_zeros=None if figures.zeros_in_grad is None else int(figures.zeros_in_grad),
            params_norm=self._params_norm(state.model) if config.logging.log_params_norm else None,
            peak_memory_min_bytes=int(memory[0]),
            peak_memory_max_bytes=int(memory[1]),
            extra=extra or {},
            **timer_fields(config.logging.timing_log_option, self._timers_by_rank_ms(figures.iterations)),
        )

    def evaluation(self, state: TrainingState, found: Evaluation, split: str, elapsed_s: float) -> EvaluationRecord:
        """Describe an evaluation."""
        loss = math.nan if found.loss is None else found.loss
        return EvaluationRecord(
            iteration=state.progress.iteration,
            split=split,
            loss=loss,
            perplexity=perplexity_of(loss),
            samples=found.samples,
            consumed_samples=state.progress.consumed_train_samples,
            elapsed_ms=elapsed_s * 1e3,
        )

    def _extremes(self, value: float) -> tuple[float, float]:
        """Smallest and largest of a value over all ranks."""
        both = torch.tensor([-value, value], dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(both, op=torch.distributed.ReduceOp.MAX)
        return -float(both[0]), float(both[1])

    def _timers_by_rank_ms(self, iterations: int) -> Mapping[str, tuple[float, ...]]:
        """Time per iteration of each timer on each rank; 0 on ranks that do not have it."""
        if self._timers is None:
            return {}
        # Stages have timers of their own (sends, receives): the ranks must gather one list, of the same length.
        known: list[list[str]] = [[] for _ in range(self._config.world.world_size)]
        torch.distributed.all_gather_object(known, list(self._timers._timers))
        names = sorted({name for rank_names in known for name in rank_names})
        if not names:
            return {}
        times_s = self._timers._get_elapsed_time_all_ranks(names, reset=True, barrier=False).double()
        by_name = zip(names, (times_s * 1e3 / iterations).t().tolist(), strict=True)
        return {name: tuple(times_ms) for name, times_ms in by_name if any(time_ms > 0 for time_ms in times_ms)}

    def _params_norm(self, model: list[DistributedDataParallel]) -> float:
        """L2 norm of all parameters, each counted once: experts over their own groups, the rest over TP x PP."""
        finish_parameter_gathers(model)
        squares = torch.zeros(2, dtype=torch.float64, device=self._device)
        for chunk in model:
            for parameter in chunk.parameters():
                if getattr(parameter, "shared", False) or not param_is_not_tensor_parallel_duplicate(parameter):
                    continue
                is_expert = int(not getattr(parameter, "allreduce", True))
                squares[is_expert] += parameter.detach().double().pow(2).sum()
        torch.distributed.all_reduce(squares[0], group=parallel_state.get_model_parallel_group())
        torch.distributed.all_reduce(squares[1], group=parallel_state.get_expert_tensor_model_pipeline_parallel_group())
        return float(squares.sum().sqrt())
