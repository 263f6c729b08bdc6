"""1F1B and interleaved 1F1B: what must hold for every layout."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlap_recompute.plan.actions import Action, Kind
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.schedules import (
    Costs,
    in_flight_microbatches,
    interleaved_one_f_one_b,
    one_f_one_b,
    pipeline_schedule,
    timeline,
)

from .layouts import Layout, layouts

sizes = st.tuples(st.integers(1, 8), st.integers(1, 20))


@given(layouts())
@settings(max_examples=60, deadline=None)
def test_every_pass_runs_once_on_every_rank(layout: Layout) -> None:
    kinds = (Kind.F,) if layout.forward_only else (Kind.F, Kind.B)
    expected = {
        Action(kind=kind, chunk=chunk, microbatch=microbatch)
        for kind in kinds
        for chunk in range(layout.vpp)
        for microbatch in range(layout.microbatches)
    }
    for row in layout.passes():
        assert len(row) == len(expected)
        assert set(row) == expected


@given(sizes)
@settings(max_examples=50, deadline=None)
def test_1f1b_has_the_bubble_of_the_closed_form(size: tuple[int, int]) -> None:
    pp, microbatches = size
    equal = timeline(one_f_one_b(pp, microbatches), Costs(forward_slots=1, backward_slots=1))
    assert Fraction(sum(equal.bubble_slots), equal.length_slots * pp) == Fraction(pp - 1, microbatches + pp - 1)
    usual = timeline(one_f_one_b(pp, microbatches))
    assert usual.length_slots == 3 * (microbatches + pp - 1)


@given(st.integers(2, 5), st.integers(2, 4), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_interleaving_divides_the_bubble_by_the_number_of_chunks(pp: int, vpp: int, groups: int) -> None:
    times = timeline(interleaved_one_f_one_b(pp, vpp, pp * groups), Costs(forward_slots=1, backward_slots=1))
    # A slot is one chunk's pass, 1/vpp of a stage's: the bubble of each rank is 2 (pp - 1) of them, as in 1F1B.
    assert times.bubble_slots == (2 * (pp - 1),) * pp


@given(sizes)
@settings(max_examples=50, deadline=None)
def test_1f1b_holds_one_microbatch_less_on_each_later_rank(size: tuple[int, int]) -> None:
    pp, microbatches = size
    peaks = [in_flight_microbatches(row).peak for row in one_f_one_b(pp, microbatches)]
    assert peaks == [min(microbatches, pp - rank) for rank in range(pp)]


def test_interleaving_holds_what_its_warm_up_ran_and_one_more() -> None:
    pp, vpp = 4, 2
    held = [in_flight_microbatches(row) for row in interleaved_one_f_one_b(pp, vpp, 16)]
    assert [each.peak for each in held] == [2 * (pp - rank - 1) + (vpp - 1) * pp + 1 for rank in range(pp)]
    assert held[0].peak_by_chunk == (8, 4)
    assert [sum(each.peak_by_chunk) >= each.peak for each in held] == [True] * pp


def test_an_evaluation_holds_nothing() -> None:
    assert [in_flight_microbatches(row).peak for row in one_f_one_b(3, 5, forward_only=True)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 1, 4, None), "0 pipeline ranks"),
        ((2, 0, 4, None), "0 model chunks"),
        ((2, 1, 0, None), "0 microbatches"),
        ((1, 2, 4, None), "1 pipeline ranks with interleaving"),
        ((2, 1, 4, 2), "group size of 2 with one model chunk"),
        ((4, 2, 3, None), "groups of 4 among 3"),
        ((4, 2, 8, 3), "groups of 3 among 8"),
        ((4, 2, 8, 9), "groups of 9 among 8"),
        ((4, 2, 10, None), "choose 8 or 12 microbatches"),
        ((4, 2, 13, 5), "choose 10 or 14 microbatches"),
    ],
)
def test_layouts_that_do_not_exist_are_refused(arguments: tuple[int, int, int, int | None], words: str) -> None:
    pp, vpp, microbatches, group = arguments
    with pytest.raises(ConfigError) as caught:
        pipeline_schedule(pp, vpp, microbatches, group_size=group)
    assert words in str(caught.value)


@pytest.mark.parametrize("microbatches", [8, 12, 10, 14])
def test_the_numbers_that_a_refusal_recommends_are_accepted(microbatches: int) -> None:
    group = None if microbatches % 4 == 0 else 5
    assert pipeline_schedule(4, 2, microbatches, group_size=group)
