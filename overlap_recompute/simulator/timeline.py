"""What a simulation yields: times of an iteration, where each stage's time goes, spans and memory over time."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Lane = Literal["compute", "recompute", "tp", "pp", "wait"]
"""What a span occupies: the device by passes or by replays; a link inside of a stage; a link to a neighbour stage;
nothing (the stage waits)."""

LANES: tuple[Lane, ...] = ("compute", "recompute", "tp", "pp", "wait")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of simulated time."""

    stage: int
    """Pipeline stage; of a transfer the one that sends."""
    lane: Lane
    name: str
    """Of a pass or a wait the schedule's action (`0B3`); of a replay `R(L7.activation) 0.3`, as in measured traces: for
    chunk 0 and microbatch 3; of a transfer its send (`0SEND_F3`); of a collective, and of a window that nothing filled,
    `0B3.all_reduce`."""
    begin_us: float
    end_us: float
    hidden: bool = False
    """Of a replay: it lay in a window. One that outlives its window is two spans, the second of them exposed."""


@dataclass(frozen=True, slots=True)
class WindowUse:
    """All windows of one kind on one stage in one iteration."""

    kind: str
    """Value of `WindowKind`."""
    count: int
    length_us: float
    """Together; what a replay overran is not part of it."""
    filled_us: float
    """Time of it in which a replay ran."""


class MemoryPoint(NamedTuple):
    """From this time on the stage holds so much, until the next point."""

    time_us: float
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """One pipeline stage in one iteration."""

    stage: int
    compute_us: float
    """Passes, without recompute and without windows."""
    hidden_us: float
    """Recompute inside of windows."""
    exposed_us: float
    """Recompute on demand, and what outlived its window."""
    wait_us: float
    """The rest of the iteration without the update: windows that nothing filled, and waiting for other stages."""
    bubble_us: float = 0.0
    """The part of it without windows inside of passes: waiting for other stages, and having nothing left to do."""
    windows: tuple[WindowUse, ...]
    """One entry for each kind that occurs."""
    memory: tuple[MemoryPoint, ...]
    """Over time; empty unless a timeline was asked for."""
    peak_bytes: int
    """Most that it must have room for: what it holds at any time, with the whole cap for what is recomputed ahead."""
    held_peak_bytes: int = 0
    """Most that it really holds at any time."""

    @property
    def recompute_us(self) -> float:
        """Hidden and exposed."""
        return self.hidden_us + self.exposed_us


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """One iteration."""

    iteration_us: float
    """Passes of all microbatches and the update behind them."""
    bubble_fraction: float
    """Share of all stages' time, update left out, in which a stage waits for another stage and recomputes nothing."""
    tokens_per_s: float
    """Of all data-parallel ranks together."""
    tflops_per_gpu: float
    """From the model's operations without recompute; 0 if the profile does not say how many these are."""
    mfu: float
    """Of the device's peak, 0 to 1; 0 if the peak is not known."""
    stages: tuple[StageResult, ...]
    spans: tuple[Span, ...]
    """By stage and begin; empty unless a timeline was asked for."""
    update_us: float
    """Gradient reduction that nothing hides, and optimizer."""
    microbatches: int
    simulated_microbatches: int
    """Fewer than `microbatches` where the rest repeats a period that was seen to be exact."""
    period_us: float = 0.0
    """Time of one microbatch in the steady state, where it was found."""

    @property
    def peak_bytes(self) -> int:
        """Most that any stage must have room for."""
        return max(stage.peak_bytes for stage in self.stages)
