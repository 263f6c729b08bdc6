"""Recompute ahead of need: where it stands in the lists, and what it hides on the abstract clock."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlap_recompute.plan.actions import COMPUTE, Kind, ScheduleError, parse_actions
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.schedules import (
    Costs,
    Phase,
    RecomputeAhead,
    find_faults,
    one_f_one_b,
    phases_of,
    timeline,
    with_communication,
    with_recompute,
    without_recompute,
)

from .layouts import Layout, layouts

choices = st.builds(RecomputeAhead, phases=st.frozensets(st.sampled_from(Phase)), microbatches=st.integers(1, 3))


@given(layouts(), choices)
@settings(max_examples=60, deadline=None)
def test_it_adds_r_in_the_chosen_waits_and_nothing_else(layout: Layout, choice: RecomputeAhead) -> None:
    grid = layout.complete()
    filled = with_recompute(grid, choice)
    assert without_recompute(filled) == grid
    assert not find_faults(filled, shape=layout.shape)
    for row in filled:
        phases = phases_of(row)
        for index, action in enumerate(row):
            if action.kind is Kind.R:
                assert phases[index] in choice.phases
                wait = next(each for each in row[index:] if each.kind is not Kind.R)
                assert wait.kind in (Kind.WAIT_RECV_F, Kind.WAIT_RECV_B)
                coming = [each for each in row[index:] if each.kind is Kind.B][: choice.microbatches]
                assert action.as_kind(Kind.B) in coming
                assert action.as_kind(Kind.F) in row[:index]


@given(layouts(forward_only=False), choices, st.integers(1, 3), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_all_recompute_is_done_once_and_ahead_is_never_slower(
    layout: Layout, choice: RecomputeAhead, recompute: int, transfer: int
) -> None:
    costs = Costs(recompute_slots=recompute, transfer_slots=transfer)
    grid = layout.complete()
    on_demand, ahead = timeline(grid, costs), timeline(with_recompute(grid, choice), costs)
    each_rank = recompute * layout.vpp * layout.microbatches
    assert on_demand.exposed_recompute_slots == (each_rank,) * layout.pp
    done = zip(ahead.hidden_recompute_slots, ahead.exposed_recompute_slots, strict=True)
    assert [hidden + exposed for hidden, exposed in done] == [each_rank] * layout.pp
    assert ahead.length_slots <= on_demand.length_slots
    passes = [[span for span in spans if span.action.kind in COMPUTE] for spans in ahead.spans]
    late = [[span for span in spans if span.action.kind in COMPUTE] for spans in on_demand.spans]
    pairs = ((one, other) for early, all_late in zip(passes, late, strict=True) for one, other in zip(early, all_late))  # noqa: B905
    assert all(one.end_slot <= other.end_slot for one, other in pairs)


def test_1f1b_hides_everything_but_the_last_rank_s() -> None:
    costs = Costs(recompute_slots=1)
    grid = with_communication(one_f_one_b(4, 8))
    ahead = timeline(with_recompute(grid), costs)
    assert ahead.hidden_recompute_slots == (8, 8, 8, 0)
    assert ahead.exposed_recompute_slots == (0, 0, 0, 8)
    # The last rank sets the pace with F, R and B in turn; the others only fill the pipeline and run it empty.
    assert ahead.length_slots == 8 * (1 + 1 + 2) + 3 * 1 + 3 * 2
    assert timeline(grid, costs).length_slots == ahead.length_slots + 3 * 1


def test_each_phase_fills_its_own_waits() -> None:
    grid = with_communication(one_f_one_b(2, 4))
    rows = {phase: with_recompute(grid, RecomputeAhead(phases=frozenset({phase})))[0] for phase in Phase}
    recomputed = {phase: [str(action) for action in row if action.kind is Kind.R] for phase, row in rows.items()}
    assert recomputed == {
        Phase.WARM_UP: ["0R0"],
        Phase.STEADY: ["0R1", "0R2"],
        Phase.COOL_DOWN: ["0R3"],
    }


def test_a_wait_may_prepare_several_backward_passes() -> None:
    grid = with_communication(one_f_one_b(3, 3))
    row = with_recompute(grid, RecomputeAhead(phases=frozenset({Phase.WARM_UP}), microbatches=2))[0]
    index = row.index(parse_actions("0R0")[0])
    assert row[index : index + 3] == parse_actions("0R0 0R1 0WAIT_RECV_B0")


def test_phases_by_the_rank_s_own_passes() -> None:
    row = parse_actions("0F0 0F1 0B0 0F2 0B1 0B2")
    assert [phase.name for phase in phases_of(row)] == ["WARM_UP"] * 3 + ["STEADY"] * 2 + ["COOL_DOWN"]
    assert [phase.name for phase in phases_of(parse_actions("0F0 0F1 0B0 0B1"))] == ["WARM_UP"] * 3 + ["COOL_DOWN"]
    assert set(phases_of(parse_actions("0F0 0F1"))) == {Phase.WARM_UP}
    assert phases_of(()) == ()


@given(layouts())
@settings(max_examples=40, deadline=None)
def test_phases_cover_the_list_in_order(layout: Layout) -> None:
    for row in layout.complete():
        phases = phases_of(row)
        assert len(phases) == len(row)
        order = [list(Phase).index(phase) for phase in phases]
        assert order == sorted(order)


def test_misuse_is_refused() -> None:
    with pytest.raises(ScheduleError, match="with_communication"):
        with_recompute(one_f_one_b(2, 2))
    with pytest.raises(ScheduleError, match="without_recompute"):
        with_recompute(with_recompute(with_communication(one_f_one_b(2, 2))))
    with pytest.raises(ConfigError, match="0 microbatches"):
        RecomputeAhead(microbatches=0)
    with pytest.raises(ConfigError, match="0 slots for forward"):
        Costs(forward_slots=0)
