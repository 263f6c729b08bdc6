"""What a profile says about its run besides what is measured."""

import logging
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.config.model_fingerprint import model_fingerprint, model_summary
from megatron.pretrain.config.run_layout import layout_of
from megatron.pretrain.distributed.emulated_link import emulated_link_text
from overlap_recompute.plan.codec import FileError, read_record
from overlap_recompute.plan.counted import COUNTED_VERSION, CountedModel
from overlap_recompute.plan.model_flops import flops_per_token
from overlap_recompute.plan.model_shape import ModelShape
from overlap_recompute.plan.profile import StaticRules
from overlap_recompute.plan.profile_facts import ProfileFacts
from overlap_recompute.plan.software import software_versions

logger = logging.getLogger(__name__)

FP32_BYTES, HALF_BYTES = 4, 2
COUNTING_S = 120
_OF_A_RANK = frozenset(
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
)
"""Variables that make a process a rank of this run."""


def facts_of_profile(
    config: PretrainConfig, shape: ModelShape, argv: Sequence[str], device: torch.device
) -> ProfileFacts:
    """What follows from the options.

    Args:
        config: of the run.
        shape: sizes of the model.
        argv: the command line.
        device: where the model lives.
    """
    full_bytes = _width_bytes(config)
    parallel = config.parallel
    shared = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    return ProfileFacts(
        model=model_summary(config),
        model_fingerprint=model_fingerprint(config),
        layout=layout_of(config),
        static=static_rules(config),
        boundary_bytes=full_bytes // shared,
        payload_bytes=full_bytes,
        counted=counted_model(config, argv, device) if config.world.rank == 0 and argv else None,
        tied_embeddings=not config.model.untie_embeddings_and_output_weights,
        flops_per_token=flops_per_token(shape),
        software=software_versions(),
        command=shlex.join(["pretrain_gpt.py", *argv]),
        note=emulated_link_text(config.distributed),
    )


def counted_model(config: PretrainConfig, argv: Sequence[str], device: torch.device) -> CountedModel | None:
    """The model counted with fake tensors, in a process of its own: that takes seconds, and no process groups.

    Returns:
        None, with a warning, where that failed: a profile is not worth a run.
    """
    with tempfile.TemporaryDirectory(prefix="overlap-recompute-") as folder:
        file = Path(folder) / "counted.json"
        command = [
            sys.executable, "-m", "megatron.overlap.counting", "--output", str(file), "--device", device.type,
            "--world-size", str(config.world.world_size), "--", *argv,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COUNTING_S, check=False,
                env={name: value for name, value in os.environ.items() if name not in _OF_A_RANK},
            )  # fmt: skip
            if done.returncode == 0:
                return read_record(file, CountedModel, COUNTED_VERSION)
            words = (done.stderr or done.stdout).strip()[-500:]
        except (subprocess.TimeoutExpired, FileError) as error:
            words = str(error)
    logger.warning("bytes of gradients are estimated: the model could not be counted (%s)", words)
    return None


def static_rules(config: PretrainConfig) -> StaticRules:
    """Bytes of an element's weight, gradient and optimizer state."""
    precision, optimizer, parallel = config.precision, config.optimizer, config.parallel
    half = precision.bf16 or precision.fp16
    gradients_in_fp32 = not half or precision.accumulate_allreduce_grads_in_fp32
    states = 2 if optimizer.optimizer == "adam" else int(optimizer.sgd_momentum > 0)
    shards = expert_shards = 1
    if optimizer.use_distributed_optimizer:
        shards = config.data_parallel_size * parallel.context_parallel_size
        expert_ranks = (parallel.expert_tensor_parallel_size or 1) * parallel.expert_model_parallel_size
        expert_shards = max(1, config.world.world_size // (expert_ranks * parallel.pipeline_model_parallel_size))
    return StaticRules(
        parameter_bytes=HALF_BYTES if half else FP32_BYTES,
        gradient_bytes=FP32_BYTES if gradients_in_fp32 else HALF_BYTES,
        main_parameter_bytes=FP32_BYTES if half else 0,
        state_bytes=states * FP32_BYTES,
        shards=shards,
        expert_shards=expert_shards,
    )


def _width_bytes(config: PretrainConfig) -> int:
    """Of the residual stream of a microbatch on the ranks that share a layer."""
    half = config.precision.bf16 or config.precision.fp16
    tokens = config.model.seq_length * config.training.micro_batch_size // config.parallel.context_parallel_size
    return tokens * config.model.hidden_size * (HALF_BYTES if half else FP32_BYTES)
