"""Records as lines of text, in the words and the order of Megatron-LM's log, so that its log readers work here too."""

from collections.abc import Iterator, Mapping

from megatron.pretrain.logs.records import EvaluationRecord, EventRecord, IterationRecord

OVERLAP = "overlap/"
"""How names of figures of overlapped recompute begin."""
BYTES_PER_MIB = 1 << 20


def iteration_line(record: IterationRecord, *, device_type: str, throughput: bool) -> str:
    """Return the line of one interval.

    Args:
        record: the interval's figures.
        device_type: "cuda" says GPU where "cpu" says rank.
        throughput: add tokens/s and TFLOP/s (`--log-throughput`).
    """
    parts = [
        f"iteration {record.iteration:8d}/{record.train_iters:8d}",
        f"consumed samples: {record.consumed_samples:12d}",
        f"elapsed time per iteration (ms): {record.elapsed_ms:.1f}",
        *(_throughput(record, device_type) if throughput else ()),
        f"learning rate: {record.learning_rate:.6E}",
        f"global batch size: {record.global_batch_size:5d}",
        *_optional("lm loss: {:.6E}", record.loss),
        *(f"{name}: {loss:.6E}" for name, loss in record.auxiliary_losses.items()),
        f"loss scale: {record.loss_scale:.1f}",
        *_optional("grad norm: {:.3f}", record.grad_norm),
        *_optional("num zeros: {}", record.num_zeros),
        *_optional("params norm: {:.3f}", record.params_norm),
        f"number of skipped iterations: {record.skipped_iterations:3d}",
        f"number of nan iterations: {record.nan_iterations:3d}",
    ]
    return " " + " | ".join(parts) + " |"


def evaluation_line(record: EvaluationRecord) -> str:
    """Return the line of one evaluation."""
    return (
        f" {record.split} loss at iteration {record.iteration} on {record.split} set"
        f" | lm loss value: {record.loss:.6E} | lm loss PPL: {record.perplexity:.6E} |"
    )


def event_line(record: EventRecord) -> str:
    """Return the line of one event."""
    return f" {record.message} (iteration {record.iteration})"


def timer_lines(record: IterationRecord) -> tuple[str, ...]:
    """Return a heading and the timers, as --timing-log-option asks for them, or nothing when none ran."""
    if not record.timers_ms:
        return ()
    if record.timers_by_rank_ms:
        return ("times across ranks (ms):", *_timers_of_ranks(record.timers_by_rank_ms))
    width = max(len(name) for name in record.timers_ms)
    least = record.timers_min_ms
    times = (
        f"    {name:.<{width + 4}}: " + (f"({least[name]:.2f}, {time_ms:.2f})" if least else f"{time_ms:.2f}")
        for name, time_ms in sorted(record.timers_ms.items())
    )
    return ("(min, max) time across ranks (ms):" if least else "max time across ranks (ms):", *times)


def overlap_lines(record: IterationRecord) -> tuple[str, ...]:
    """Return what overlapped recompute did, per iteration, beside what its plan predicted; nothing without it."""
    found = {name.removeprefix(OVERLAP): value for name, value in record.extra.items() if name.startswith(OVERLAP)}
    if not found:
        return ()
    parts = [
        f"recompute (ms): hidden {found['hidden_recompute_ms']:.1f}, exposed {found['exposed_recompute_ms']:.1f}",
        *_optional("predicted exposed (ms): {:.1f}", found.get("predicted_exposed_ms")),
        *_optional("predicted time per iteration (ms): {:.1f}", found.get("predicted_iteration_ms")),
        *_optional("weight gradients behind communication (ms): {:.1f}", found.get("delayed_wgrad_ms")),
        *_optional("bubble: {:.1%}", found.get("bubble_fraction")),
        f"kept per microbatch (MiB): {found['kept_bytes_per_microbatch'] / BYTES_PER_MIB:.2f}",
        f"most recomputed ahead (MiB): {found['prefetched_peak_bytes'] / BYTES_PER_MIB:.2f}",
        *_windows(found),
    ]
    return (" " + " | ".join(parts) + " |",)


def _timers_of_ranks(timers_ms: Mapping[str, tuple[float, ...]]) -> Iterator[str]:
    for name, times_ms in sorted(timers_ms.items()):
        yield f"  {name}:"
        yield from (f"     rank {rank:2d}: {time_ms:.2f}" for rank, time_ms in enumerate(times_ms) if time_ms > 0)


def _windows(found: Mapping[str, float]) -> Iterator[str]:
    for name, number in found.items():
        what, _, kind = name.partition("/")
        if what == "windows":
            length_ms, filled_ms = found[f"window_ms/{kind}"], found[f"filled_ms/{kind}"]
            yield f"{kind}: {number:g} windows of {length_ms:.1f} ms, {filled_ms:.1f} filled"


def _throughput(record: IterationRecord, device_type: str) -> Iterator[str]:
    unit, digits = ("GPU", 1) if device_type == "cuda" else ("rank", 4)
    yield f"throughput per {unit} (TFLOP/s/{unit}): {record.tflops_per_rank:.{digits}f}"
    yield f"tokens per second: {record.tokens_per_s:.1f}"


def _optional(template: str, value: float | None) -> Iterator[str]:
    if value is not None:
        yield template.format(value)
