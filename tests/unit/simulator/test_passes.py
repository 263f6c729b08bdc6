"""One pass by hand: a layer of norm (10 us), fc (50 us, 400 bytes for act only) and act (20 us, 400 bytes)."""

import dataclasses

import pytest

from overlap_recompute.plan.plan_file import StagePlan
from overlap_recompute.plan.storages import StorageRow
from overlap_recompute.simulator.passes import Outcome, Passes, Pending
from overlap_recompute.simulator.stage_model import FS_PER_US, build_stage, wanted_units
from overlap_recompute.simulator.stage_times import pass_times
from tests.unit.plan.samples import KIND, sample_profile
from tests.unit.simulator.models import WINDOW_KINDS, plan_of

SPLIT = ((0,), (2,), (0,))
"""The stage in the middle has two layers and no ends."""


def stage_plan(dropped: tuple[str, ...], cap_bytes: int, kinds: tuple[str, ...] = WINDOW_KINDS) -> StagePlan:
    plan = plan_of(sample_profile(SPLIT), 4, dropped, window_kinds=kinds, prefetch_cap_bytes=cap_bytes)
    return plan.stages[1]


def passes(dropped: tuple[str, ...], cap_bytes: int, kinds: tuple[str, ...] = WINDOW_KINDS) -> Passes:
    return Passes(build_stage(sample_profile(SPLIT), SPLIT, stage_plan(dropped, cap_bytes, kinds)), draws=True)


def times_us(outcome: Outcome) -> tuple[float, ...]:
    """Length, compute, hidden, exposed."""
    parts = (outcome.length_fs, outcome.compute_fs, outcome.hidden_fs, outcome.exposed_fs)
    return tuple(part / FS_PER_US for part in parts)


def test_a_window_is_filled_with_the_next_layer_and_may_be_overrun() -> None:
    outcome = passes(("fc", "act"), 10_000).backward((Pending(0, 0),))
    # Layer 1: fc and act on demand (70), 220 of compute. Its window of 60: fc, and 10 of the 20 of act of layer 0.
    assert times_us(outcome) == (70 + 220 + 70 + 220 + 60, 440, 60, 80)
    assert outcome.windows == (("tp_backward", 2, 120 * FS_PER_US, 60 * FS_PER_US),)
    shown = [
        (p.name, p.begin_fs // FS_PER_US, p.end_fs // FS_PER_US, p.hidden) for p in outcome.pieces if "R(" in p.name
    ]
    assert shown == [
        ("R(L1.fc)", 0, 50, False),
        ("R(L1.act)", 50, 70, False),
        ("R(L0.fc)", 290, 340, True),
        ("R(L0.act)", 340, 350, True),
        ("R(L0.act)", 350, 360, False),
    ]


def test_the_cap_ends_a_fill() -> None:
    outcome = passes(("fc", "act"), 400).backward((Pending(0, 0),))
    # fc of layer 0 fits; act would make it 800 bytes and runs on demand, behind the window's end.
    assert times_us(outcome) == (70 + 220 + 60 + 20 + 220 + 60, 440, 50, 90)
    assert outcome.ahead_peak_bytes == 400
    assert times_us(passes(("fc", "act"), 399).backward((Pending(0, 0),))) == (700, 440, 0, 140)


def test_what_only_a_replay_reads_makes_room_when_it_has_run() -> None:
    stage = passes(("fc", "act"), 800)
    # fc of layer 1 (400 bytes), act (800, then 400 because fc's output dies), fc of layer 0 (800); act does not fit.
    outcome = stage.wait((Pending(0, 0),), 1000 * FS_PER_US)
    assert times_us(outcome) == (120, 0, 120, 0)
    assert outcome.progress == (Pending(0, 0b111),)
    assert (outcome.ahead_bytes, outcome.ahead_peak_bytes) == (800, 800)


def test_a_forward_pass_prepares_the_microbatch_that_waits() -> None:
    outcome = passes(("fc", "act"), 10_000).forward(0, (Pending(0, 0),))
    # Windows of 40: fc of layer 1 overruns the first by 10; act (20) and fc of layer 0 the second by 30.
    assert times_us(outcome) == (130 + 50 + 130 + 70, 260, 80, 40)
    assert outcome.progress == (Pending(0, 0b111),)
    only_backward = passes(("fc", "act"), 10_000, ("tp_backward",)).forward(0, (Pending(0, 0),))
    assert times_us(only_backward) == (340, 260, 0, 0)


def test_the_running_microbatch_comes_before_the_next() -> None:
    outcome = passes(("act",), 10_000).backward((Pending(0, 0), Pending(0, 0)))
    # Window of layer 1: act of layer 0 (20), then of the next microbatch act of layers 1 and 0 (20 each).
    assert outcome.progress == (Pending(0, 0b11),)
    assert times_us(outcome) == (20 + 220 + 60 + 220 + 60, 440, 60, 20)


def test_sources_come_first_and_once() -> None:
    replays = build_stage(sample_profile(SPLIT), SPLIT, stage_plan(("norm", "fc", "act"), 0)).chunks[0].replays
    order = [(replay.layer, replay.unit) for replay in replays]
    assert order == [(layer, unit) for layer in (1, 0) for unit in ("norm", "fc", "act")]
    assert [replay.closure for replay in replays[:3]] == [0b1, 0b11, 0b111]


@pytest.mark.parametrize(
    ("dropped", "wanted"),
    [(("act",), ("act",)), (("fc",), ()), (("norm", "act"), ("act", "norm")), (("fc", "act"), ("fc", "act"))],
)
def test_what_nobody_reads_is_not_replayed(dropped: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """The output of fc is read by a replay of act only."""
    assert wanted_units(KIND, dropped) == wanted


def test_a_state_is_walked_through_once() -> None:
    stage = passes(("act",), 0)
    assert stage.backward((Pending(0, 0),)) is stage.backward((Pending(0, 0),))


def test_pass_times_of_a_steady_state() -> None:
    profile = sample_profile(SPLIT)
    everything = pass_times(profile, SPLIT, stage_plan(("act",), 10_000))
    # Two replays of 20 us for each microbatch, and windows of 2 x 40 and 2 x 60: all of it is hidden.
    assert (everything.forward_us, everything.backward_us) == (340, 560)
    assert (everything.hidden_us, everything.exposed_us, everything.stage_us) == (40, 0, 900)
    demand = pass_times(profile, SPLIT, stage_plan(("act",), 10_000, ()))
    assert (demand.hidden_us, demand.exposed_us, demand.stage_us) == (0, 40, 940)
    waiting = pass_times(profile, SPLIT, stage_plan(("act",), 10_000, ("pp_wait",)), wait_us=30.0)
    assert (waiting.hidden_us, waiting.exposed_us) == (30, 10)


def test_a_held_output_stays_until_backward_reads_it() -> None:
    rows = tuple(dataclasses.replace(row, held=True) for row in KIND.storages)
    kind = dataclasses.replace(KIND, storages=(*rows, StorageRow(name="more", nbytes=7, maker="act", held=True)))
    profile = dataclasses.replace(sample_profile(SPLIT), kinds=(kind,))
    stage = Passes(build_stage(profile, SPLIT, stage_plan(("fc", "act"), 10_000)))
    assert stage.wait((Pending(0, 0),), FS_PER_US).ahead_bytes == 400
    assert stage.wait((Pending(0, 0),), 60 * FS_PER_US).ahead_bytes == 807
