"""Made-up metrics files for the tests of `overlap-recompute watch`."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from overlap_recompute.cli.watching.follow import News
from overlap_recompute.cli.watching.history import Glance, History

NAME = "runs/a"
EXTRA: Mapping[str, float] = {
    "overlap/hidden_recompute_ms": 30.0,
    "overlap/exposed_recompute_ms": 10.0,
    "overlap/windows/tp_forward": 18.0,
    "overlap/window_ms/tp_forward": 40.0,
    "overlap/filled_ms/tp_forward": 0.0,
    "overlap/overrun_ms/tp_forward": 0.0,
    "overlap/windows/pp_wait": 4.5,
    "overlap/window_ms/pp_wait": 60.0,
    "overlap/filled_ms/pp_wait": 30.0,
    "overlap/overrun_ms/pp_wait": 1.25,
    "overlap/bubble_fraction": 0.125,
    "overlap/predicted_iteration_ms": 400.0,
    "overlap/predicted_exposed_ms": 9.5,
    "overlap/kept_peak_bytes": 1048576.0,
    "overlap/held_peak_bytes": 3145728.0,
    "overlap/prefetched_peak_bytes": 524288.0,
    "overlap/held_peak_bytes/stage_0": 3145728.0,
    "overlap/held_peak_bytes/stage_1": 2097152.0,
}


def run_line(start: int = 0, **other: Any) -> bytes:
    value = {
        "kind": "run",
        "schema": "pretrain-metrics/1",
        "time_s": 0.0,
        "start_iteration": start,
        "world_size": 4,
        "device_type": "cpu",
        "parameters": 1_250_000,
        "layout": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "context_parallel_size": 1},
    }
    return json.dumps({**value, **other}).encode()


def sample_line(iteration: int, *, extra: Mapping[str, Any] | None = None, **other: Any) -> bytes:
    value = {
        "kind": "iteration",
        "time_s": iteration * 0.4,
        "iteration": iteration,
        "train_iters": 100,
        "elapsed_ms": 400.0,
        "tokens_per_s": 12345.6,
        "tflops_per_rank": 0.0125,
        "loss": 6.0 - iteration / 50,
        "grad_norm": 1.5,
        "learning_rate": 1e-3,
        "skipped_iterations": 0,
        "nan_iterations": 0,
        "peak_memory_min_bytes": 1 << 30,
        "peak_memory_max_bytes": 3 << 29,
        "extra": {**EXTRA, **(extra or {})},
    }
    return json.dumps({**value, **other}).encode()


def event_line(iteration: int, event: str, message: str) -> bytes:
    return json.dumps({"kind": "event", "iteration": iteration, "event": event, "message": message}).encode()


def glance_of(lines: Iterable[bytes], *, age_s: float = 1.0, stall_factor: float = 10.0) -> Glance:
    """The run of these lines, `age_s` after the last of them."""
    history = History(NAME, stall_factor=stall_factor, now_s=0.0)
    history.take(News(lines=tuple(lines), changed_s=1000.0), now_s=0.0, wall_s=1000.0)
    return history.glance(now_s=age_s)


def write_run(folder: Path, lines: Iterable[bytes]) -> Path:
    path = folder / "metrics.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path
