"""One run from its options to its end: build, load, train, evaluate, save."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from megatron.core.timers import Timers
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.pretrain.checkpoint.manager import CheckpointManager
from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.data.blends import data_plan
from megatron.pretrain.data.datasets import DatasetSplits, build_datasets
from megatron.pretrain.data.tokenizers import build_tokenizer, padded_vocab_size
from megatron.pretrain.distributed.agreement import check_same_kept_plan
from megatron.pretrain.distributed.cluster import Cluster
from megatron.pretrain.distributed.emulated_link import emulated_link
from megatron.pretrain.distributed.initialize import initialize_distributed
from megatron.pretrain.logs.memory import used_bytes
from megatron.pretrain.logs.model_shape import ModelShape, parameter_count, shape_of
from megatron.pretrain.logs.records import CHECKPOINT_SAVED, RESUMED, EventRecord
from megatron.pretrain.logs.run_log import RunLog, facts_of, open_run_log
from megatron.pretrain.logs.throughput import flops_per_iteration
from megatron.pretrain.model import build_model, build_transformer_config
from megatron.pretrain.platform import versions
from megatron.pretrain.training.batches import build_iterators
from megatron.pretrain.training.loop import Trainer
from megatron.pretrain.training.optimizer import build_optimizer, build_scheduler
from megatron.pretrain.training.overlap import Overlap, open_recompute
from megatron.pretrain.training.pipeline import ForwardBackward, open_pipeline
from megatron.pretrain.training.positions import first_validation_sample, samples_of_the_run
from megatron.pretrain.training.profile_facts import facts_of_profile
from megatron.pretrain.training.report import Reporter
from megatron.pretrain.training.state import Progress, TrainingState
from megatron.pretrain.training.stop import StopConditions

logger = logging.getLogger(__name__)
VALID, TEST = 1, 2  # positions among the splits


def run(config: PretrainConfig, device: torch.device, argv: Sequence[str]) -> int:
    """Train as configured; returns the exit status (0: the run ended as asked, also on a signal)."""
    with open_trainer(config, device, argv) as trainer:
        reason = None if config.training.skip_train else trainer.run()
        if reason is None:
            trainer.evaluate_at_end()
    return 0


@contextlib.contextmanager
def open_trainer(config: PretrainConfig, device: torch.device, argv: Sequence[str] = ()) -> Iterator[Trainer]:
    """Build everything a run needs and take it down again, whatever happens in between.

    Args:
        config: the options of the run, validated.
        device: what `install_platform` returned.
        argv: the command line, for the record.
    """
    tokenizer = build_tokenizer(config)
    vocab_size = padded_vocab_size(config, tokenizer)
    transformer_config = build_transformer_config(config)  # refuses what it must before any process group exists
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(initialize_distributed(config, device))
        check_same_kept_plan(config, device)
        stack.enter_context(emulated_link(config.distributed))
        _greet(config, cluster)
        base_bytes = used_bytes(device)
        state, shape = build_state(config, transformer_config, vocab_size, device)
        identity = {**config.identity(), "vocab_size": tokenizer.vocab_size}
        checkpoints = CheckpointManager(
            config.checkpoint,
            model_identity=identity,
            run_config=config.to_dict(),
            seed=config.training.seed,
            on_saved=lambda iteration, folder: run_log.record(_saved(iteration, folder)),
        )
        if not config.training.skip_train:
            stack.enter_context(checkpoints.claimed())
        stack.push(lambda kind, *_: checkpoints.close(abort=kind is not None))
        loaded = checkpoints.load(state)
        if loaded is not None:
            state.progress = loaded
        with cluster.quiet():
            splits = build_datasets(config, tokenizer, train_samples=samples_of_the_run(config, state.progress))
        stop = stack.enter_context(StopConditions(config.training, host_group=cluster.host_group))
        run_log = stack.enter_context(_open_log(config, state.progress, shape, device, argv))
        facts = partial(facts_of_profile, config, shape, argv, device)
        left = config.train_iters - state.progress.iteration
        recompute = open_recompute(config, state.model, device, facts=facts, base_bytes=base_bytes, iterations=left)
        overlap = stack.enter_context(recompute)
        if overlap is not None:
            stack.enter_context(cluster.before_leaving(overlap.leave_last_marks))
        waits = overlap.pipeline_waits if overlap is not None else None
        pipeline = stack.enter_context(open_pipeline(config, device, waits))
        trainer = _trainer(config, state, splits, shape, run_log, checkpoints, stop, overlap, pipeline, device)
        if loaded is not None:
            message = f"resumed from {config.checkpoint.load} at iteration {loaded.iteration}"
            run_log.record(EventRecord(iteration=loaded.iteration, event=RESUMED, message=message))
        yield trainer


def _greet(config: PretrainConfig, cluster: Cluster) -> None:
    """Say once what this run is made of."""
    if config.world.rank != 0:
        return
    logger.info("%s", versions(cluster.device))
    parallel = config.parallel
    logger.info(
        "%d ranks on %s: tensor parallel %d x pipeline %d x context %d x data %d, %d microbatches per iteration",
        config.world.world_size,
        cluster.device,
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        parallel.context_parallel_size,
        config.data_parallel_size,
        config.num_microbatches,
    )
    for note in (*config.notes, *cluster.notes):
        logger.info("note: %s", note)


def build_state(
    config: PretrainConfig, transformer_config: TransformerConfig, vocab_size: int, device: torch.device
) -> tuple[TrainingState, ModelShape]:
    """Build model, optimizer and schedule at iteration 0, and the model's sizes.

    Args:
        config: the options of the run.
        transformer_config: what `build_transformer_config` made of them.
        vocab_size: rows of the embedding, padded.
        device: where the model lives.
    """
    if config.logging.timing_log_level > 0:
        transformer_config.timers = Timers(config.logging.timing_log_level, config.logging.timing_log_option)
        transformer_config.barrier_with_L1_time = config.logging.barrier_with_level_1_timing
    model = build_model(config, transformer_config, vocab_size, device)
    optimizer = build_optimizer(config, model, device)
    learned_positions = config.model.position_embedding_type == "learned_absolute"
    shape = shape_of(
        transformer_config,
        padded_vocab_size=vocab_size,
        sequence_length=config.model.seq_length,
        max_position_embeddings=config.max_position_embeddings if learned_positions else 0,
        tied_embeddings=not config.model.untie_embeddings_and_output_weights,
    )
    state = TrainingState(
        model=model, optimizer=optimizer, scheduler=build_scheduler(config, optimizer), progress=Progress()
    )
    return state, shape


def _saved(iteration: int, folder: Path) -> EventRecord:
    return EventRecord(
        iteration=iteration,
        event=CHECKPOINT_SAVED,
        message=f"saved a checkpoint of iteration {iteration} to {folder}",
        details={"path": str(folder)},
    )


def _open_log(
    config: PretrainConfig, progress: Progress, shape: ModelShape, device: torch.device, argv: Sequence[str]
) -> RunLog:
    facts = facts_of(
        config,
        start_iteration=progress.iteration,
        device_type=device.type,
        argv=argv,
        parameters=parameter_count(shape),
        flops_per_iteration=flops_per_iteration(shape, config.global_batch_size),
    )
    # A run that only evaluates must not move the figures of the run that trained.
    folder = None if config.training.skip_train else config.checkpoint.save
    return open_run_log(
        config.logging,
        config.world,
        facts,
        save_folder=Path(folder) if folder else None,
        train_iters=config.train_iters,
    )


def _trainer(
    config: PretrainConfig,
    state: TrainingState,
    splits: DatasetSplits,
    shape: ModelShape,
    run_log: RunLog,
    checkpoints: CheckpointManager,
    stop: StopConditions,
    overlap: Overlap | None,
    pipeline: ForwardBackward,
    device: torch.device,
) -> Trainer:
    # Read from the flags, not from the datasets: a rank that reads no data must take part in evaluations too.
    plan = data_plan(config)
    iterators = partial(build_iterators, config, state.model, device)
    finished = config.training.skip_train or state.progress.iteration >= config.train_iters
    consumed_valid = first_validation_sample(config, state.progress)
    return Trainer(
        config=config,
        state=state,
        train_iterators=(
            [None] * len(state.model) if finished else iterators(splits.train, state.progress.consumed_train_samples)
        ),
        # How often a run evaluates may change when it is resumed, so the position may lie beyond what it would read.
        valid_iterators=(
            partial(iterators, splits.valid, consumed_valid, repeats=True) if plan.is_used(VALID) else None
        ),
        test_iterators=partial(iterators, splits.test, 0) if plan.is_used(TEST) else None,
        run_log=run_log,
        reporter=Reporter(
            config, device, flops_per_iteration(shape, config.global_batch_size), state.model[0].config.timers
        ),
        checkpoints=checkpoints,
        stop=stop,
        overlap=overlap,
        forward_backward=pipeline,
    )
