"""The loop: iterations, with a line in the log, an evaluation, a checkpoint or an end when one is due."""

import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch

from megatron.pretrain.checkpoint.manager import CheckpointManager
from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.logs.records import EXIT, EventRecord
from megatron.pretrain.logs.run_log import RunLog
from megatron.pretrain.training.evaluate import Evaluation, evaluate
from megatron.pretrain.training.interval import Interval
from megatron.pretrain.training.overlap import Overlap
from megatron.pretrain.training.pipeline import ForwardBackward
from megatron.pretrain.training.report import Reporter
from megatron.pretrain.training.state import TrainingState
from megatron.pretrain.training.step import BatchIterator, StepResult, TrainStep
from megatron.pretrain.training.stop import StopConditions, StopReason

Iterators = list[BatchIterator | None]


class Trainer:
    """Trains a state to its end. Every rank runs one; all take the same turns.

    Args:
        config: the options of the run.
        state: what is trained; its progress says where to start.
        train_iterators: microbatches for each chunk of this rank, from the consumed samples on.
        valid_iterators: makes the iterators of the validation set at the first evaluation; None without such a set.
        test_iterators: the same for the test set, which is read once, at the end.
        run_log: where figures go.
        reporter: turns figures into records.
        checkpoints: saves and finalizes.
        stop: conditions that end the run before its last iteration.
        overlap: overlapped recompute; None when it is off.
        forward_backward: runs the passes of a step; the stock schedule when None.
    """

    def __init__(
        self,
        *,
        config: PretrainConfig,
        state: TrainingState,
        train_iterators: Iterators,
        valid_iterators: Callable[[], Iterators] | None,
        test_iterators: Callable[[], Iterators] | None,
        run_log: RunLog,
        reporter: Reporter,
        checkpoints: CheckpointManager,
        stop: StopConditions,
        overlap: Overlap | None = None,
        forward_backward: ForwardBackward | None = None,
    ) -> None:
        self.config, self.state, self.train_iterators = config, state, train_iterators
        self._run_log, self._reporter, self._checkpoints, self._stop = run_log, reporter, checkpoints, stop
        self._make_valid_iterators, self._make_test_iterators = valid_iterators, test_iterators
        self._valid_iterators: Iterators | None = None
        self._overlap, self._forward_backward = overlap, forward_backward
        self._step = TrainStep(config, before_update=stop.announce, overlap=overlap, forward_backward=forward_backward)
        self._interval = Interval()
        self._saved_iteration = state.progress.iteration
        # A checkpoint is saved after the validation of its iteration, if one was due.
        self._validated_iteration = state.progress.iteration if self._is_due(config.training.eval_interval) else None

    def run(self) -> StopReason | None:
        """Train until the last iteration or a reason to stop, and save what is not saved yet. Returns the reason."""
        for chunk in self.state.model:
            chunk.train()
        if self.config.training.manual_gc:
            gc.disable()
        reason = None
        self._interval.reset()
        while reason is None and self.state.progress.iteration < self.config.train_iters:
            self.iterate()
            reason = self._stop.check(self.state.progress.iteration)
        if reason is not None:
            self._run_log.record(
                EventRecord(iteration=self.state.progress.iteration, event=EXIT, message=reason.message)
            )
        if self.config.checkpoint.save and self._saved_iteration != self.state.progress.iteration:
            self._save()
        self._checkpoints.finalize(blocking=True)
        return reason

    def iterate(self) -> StepResult:
        """Train for one iteration and do what is due after it."""
        with self._overlap.iteration() if self._overlap is not None else nullcontext():
            result = self._step(self.state, self.train_iterators)
        self._interval.add(result)
        iteration, config = self.state.progress.iteration, self.config
        self._checkpoints.finalize(blocking=False)
        self._run_log.advance(iteration)
        if iteration % config.logging.log_interval == 0 or iteration == config.train_iters:
            extra = self._overlap.figures.take() if self._overlap is not None else {}
            self._run_log.record(self._reporter.iteration(self.state, self._interval.close(), extra))
        started_s = time.perf_counter()
        if self._overlap is not None:
            self._overlap.settle()
        if self._is_due(config.training.eval_interval) and config.training.eval_iters:
            self._validate()
        if config.checkpoint.save and self._is_due(config.checkpoint.save_interval):
            self._save()
        if config.training.manual_gc and self._is_due(config.training.manual_gc_interval):
            gc.collect()
        if config.training.empty_unused_memory_level and torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._interval.pause(time.perf_counter() - started_s)
        return result

    def evaluate_at_end(self) -> None:
        """Measure validation and test loss of the trained model."""
        if self.config.training.eval_iters == 0:
            return
        if self._validated_iteration != self.state.progress.iteration or self.config.training.skip_train:
            self._validate()
        if self._make_test_iterators is not None:
            self._evaluate("test", self._make_test_iterators())

    def _is_due(self, every: int | None) -> bool:
        return every is not None and every > 0 and self.state.progress.iteration % every == 0

    def _validate(self) -> None:
        """Measure the validation loss, from where the last evaluation stopped reading."""
        if self._make_valid_iterators is None:
            return
        if self._valid_iterators is None:
            self._valid_iterators = self._make_valid_iterators()
        found = self._evaluate("validation", self._valid_iterators)
        progress = self.state.progress
        self.state.progress = replace(progress, consumed_valid_samples=progress.consumed_valid_samples + found.samples)
        self._validated_iteration = progress.iteration

    def _evaluate(self, split: str, iterators: Iterators) -> Evaluation:
        collects_garbage = self.config.training.manual_gc and self.config.training.manual_gc_eval
        if collects_garbage:
            gc.collect()
        started_s = time.perf_counter()
        found = evaluate(self.config, self.state, iterators, self._forward_backward)
        if collects_garbage:
            gc.collect()
        self._run_log.record(self._reporter.evaluation(self.state, found, split, time.perf_counter() - started_s))
        return found

    def _save(self) -> None:
        self._checkpoints.save(self.state)
        self._saved_iteration = self.state.progress.iteration
