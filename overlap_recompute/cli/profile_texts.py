"""A profile as text."""

from collections.abc import Iterable

from overlap_recompute.cli.tables import table
from overlap_recompute.plan.profile import COMPUTE, EndCost, LayerKind, LinkFit, Pass, PassStep, Profile
from overlap_recompute.plan.split import layout_text
from overlap_recompute.plan.storages import brought_back_bytes_of, kept_bytes_of

US_PER_MS = 1e3
BYTES_PER_MIB = 1 << 20


def profile_text(profile: Profile) -> str:
    """Everything in a profile that a person may want to see, times in microseconds."""
    origin, layout = profile.origin, profile.layout
    head = [
        f"model     {profile.model} ({profile.model_fingerprint})",
        f"measured  {origin.taken} on {origin.hardware}"
        if origin.source == "measured"
        else f"source    {origin.source}",
        f"layout    tensor {layout.tensor_parallel} x pipeline {layout.pipeline_parallel} x data "
        f"{layout.data_parallel}, {layout.microbatches} microbatches, layers {layout_text(layout.split)}",
        f"note      {origin.note}" if origin.note else "",
    ]
    kinds = [
        _kind_text(kind, sum(number == index for number in profile.layers)) for index, kind in enumerate(profile.kinds)
    ]
    tail = [
        _end_text("embedding", profile.embedding),
        _end_text("head", profile.head),
        *map(_link_text, profile.links),
        f"update {profile.update_us / US_PER_MS:.1f} ms; between stages {_mib(profile.boundary_bytes)}; "
        f"before the model {_mib(profile.base_bytes)}; one microbatch through all layers: {_sums(profile)}",
    ]
    return "\n".join([*filter(None, head), "", *kinds, *tail, ""])


def _kind_text(kind: LayerKind, layers: int) -> str:
    units = [
        (
            unit.name, f"{unit.forward_us:.0f}", f"{unit.spread_us:.0f}",
            _mib(brought_back_bytes_of(kind.storages, frozenset({unit.name}))),
            ",".join(unit.reads) or "-", "random" if unit.is_random else "",
            f"kept: {unit.refusal}" if unit.refusal else "",
        )
        for unit in kind.units
    ]  # fmt: skip
    kept = kept_bytes_of(kind.storages, frozenset())
    least = kept_bytes_of(kind.storages, frozenset(unit.name for unit in kind.units if unit.refusal is None))
    return "\n".join(
        [
            f"{layers} layers: {kind.description}; keep {_mib(kept)}, at least {_mib(least)}",
            table(("unit", "us", "spread", "drops", "reads", "", ""), units),
            f"forward   {_steps_text(kind.forward)}",
            f"backward  {_steps_text(kind.backward)}",
            "",
        ]
    )


def _steps_text(steps: Pass) -> str:
    """Windows in brackets, with what compute hides of their communication behind a plus."""
    words = [f"{step.name} {step.duration_us:.0f}" if step.kind == COMPUTE else _window_text(step) for step in steps]
    return f"{_total_us(steps):.0f} us: " + "  ".join(words)


def _window_text(step: PassStep) -> str:
    hidden = f" +{step.hidden_us:.0f}" if step.hidden_us else ""
    return f"[{step.kind} {step.name} {step.duration_us:.0f}{hidden}]"


def _end_text(name: str, end: EndCost) -> str:
    return f"{name}: forward {_steps_text(end.forward)}; backward {_steps_text(end.backward)}"


def _link_text(fit: LinkFit) -> str:
    burst = f" beyond the first {fit.burst_bytes / 1024:.0f} KiB" if fit.burst_bytes else ""
    return f"link {fit.name}: {fit.alpha_us:.0f} us + {fit.beta_us_per_byte * BYTES_PER_MIB:.0f} us/MiB{burst}"


def _sums(profile: Profile) -> str:
    passes = [profile.embedding.forward, profile.embedding.backward, profile.head.forward, profile.head.backward]
    for layer in range(len(profile.layers)):
        passes += [profile.kind_of(layer).forward, profile.kind_of(layer).backward]
    windows = sum(step.duration_us for steps in passes for step in steps if step.kind != COMPUTE)
    total = sum(map(_total_us, passes))
    return f"{total / US_PER_MS:.1f} ms, of which windows {windows / US_PER_MS:.1f} ms"


def _total_us(steps: Iterable[PassStep]) -> float:
    return sum(step.duration_us for step in steps)


def _mib(nbytes: int) -> str:
    return f"{nbytes / BYTES_PER_MIB:.2f} MiB"
