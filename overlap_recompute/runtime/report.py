"""What a step did, in numbers."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from overlap_recompute.runtime.calls import Microbatch
from overlap_recompute.runtime.ledger import Ledger
from overlap_recompute.runtime.state import ReplayCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBytes:
    """What one layer kept and dropped for one microbatch, each storage counted once, where it was first saved."""

    microbatch: Hashable
    layer: int
    """-1: outside of every layer."""
    kept_bytes: int
    dropped_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One step: from the first microbatch after a `step_end` to the next `step_end`."""

    layers: tuple[LayerBytes, ...]
    """By microbatch, in forward order, and by layer."""
    hidden_replays: int
    """Replays that a fill ran."""
    exposed_replays: int
    """Replays that backward waited for."""
    hidden_us: float
    """Host time of hidden replays (on a GPU: the time to launch them)."""
    exposed_us: float
    """Host time of exposed replays."""
    kept_peak_bytes: int
    held_peak_bytes: int
    """Peak of kept and recomputed bytes together."""
    prefetched_peak_bytes: int

    @property
    def kept_bytes(self) -> int:
        """Kept bytes of all layers and microbatches."""
        return sum(layer.kept_bytes for layer in self.layers)

    @property
    def dropped_bytes(self) -> int:
        """Dropped bytes of all layers and microbatches."""
        return sum(layer.dropped_bytes for layer in self.layers)


def report_step(microbatches: Iterable[Microbatch], ledger: Ledger, replays: ReplayCounts) -> StepReport:
    """The report of a step that ends now."""
    layers = tuple(
        LayerBytes(microbatch=microbatch.key, layer=layer, kept_bytes=kept_bytes, dropped_bytes=dropped_bytes)
        for microbatch in microbatches
        for layer, kept_bytes, dropped_bytes in microbatch.totals
    )
    return StepReport(
        layers=layers,
        hidden_replays=replays.hidden,
        exposed_replays=replays.exposed,
        hidden_us=replays.hidden_ns / 1000,
        exposed_us=replays.exposed_ns / 1000,
        kept_peak_bytes=ledger.kept_peak_bytes,
        held_peak_bytes=ledger.held_peak_bytes,
        prefetched_peak_bytes=ledger.prefetched_peak_bytes,
    )
