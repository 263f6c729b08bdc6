"""Records with plausible figures, for tests to vary."""

from dataclasses import replace
from typing import Any

from megatron.pretrain.logs.records import EvaluationRecord, EventRecord, IterationRecord, RunFacts

FACTS = RunFacts(
    start_iteration=0,
    sequence_length=128,
    world_size=4,
    device_type="cpu",
    parameters=3_412_992,
    flops_per_iteration=2.5e9,
    argv=("--num-layers", "4"),
    config={"model": {"num_layers": 4, "ffn_hidden_size": None}},
    layout={"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "data_parallel_size": 1},
    versions={"torch": "2.13.0"},
)
ITERATION = IterationRecord(
    iteration=2,
    train_iters=100,
    consumed_samples=32,
    elapsed_ms=412.25,
    tokens_per_s=4967.8,
    tflops_per_rank=0.01234,
    loss=8.3125,
    grad_norm=1.5,
    learning_rate=3e-4,
    loss_scale=1.0,
    global_batch_size=16,
    skipped_iterations=0,
    nan_iterations=0,
)
EVALUATION = EvaluationRecord(
    iteration=10,
    split="validation",
    loss=5.25,
    perplexity=190.566,
    samples=64,
    consumed_samples=160,
    elapsed_ms=900.0,
)
EVENT = EventRecord(iteration=10, event="checkpoint_saved", message="saved a checkpoint", details={"path": "runs/a"})


def iteration(number: int, **changes: Any) -> IterationRecord:
    """The record of one iteration of sixteen sequences."""
    return replace(ITERATION, **{"iteration": number, "consumed_samples": 16 * number, **changes})
