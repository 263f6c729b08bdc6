"""Where transfers start and end (the NOTE in communication.py, rule by rule)."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlap_recompute.plan.actions import COMPUTE, POST_OF, WAIT_OF, Actions, Kind, ScheduleError, parse_actions
from overlap_recompute.schedules import (
    Costs,
    Queues,
    Traffic,
    find_faults,
    has_communication,
    message_of,
    one_f_one_b,
    passes_only,
    shape_of,
    timeline,
    validate,
    with_communication,
)

from .layouts import Layout, layouts

RECEIVES = (Kind.RECV_F, Kind.RECV_B)


@given(layouts())
@settings(max_examples=60, deadline=None)
def test_it_adds_only_what_is_needed_and_takes_no_time(layout: Layout) -> None:
    passes, grid = layout.passes(), layout.complete()
    validate(grid, shape=layout.shape)
    assert passes_only(grid) == passes
    assert has_communication(grid) is (layout.pp > 1)
    crossings = (layout.shape.stages - 1) * layout.microbatches * (1 if layout.forward_only else 2)
    counts = Counter(action.kind for row in grid for action in row)
    sent = counts[Kind.SEND_F] + counts[Kind.SEND_B]
    assert sent == crossings
    assert sum(map(len, grid)) - sum(map(len, passes)) == 4 * crossings
    # No wait for a send, and no receive that starts too late, delays any pass.
    assert timeline(grid) == timeline(passes)


@given(layouts(least_pp=2), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_it_is_right_for_other_costs_too(layout: Layout, forward: int, backward: int, transfer: int) -> None:
    costs = Costs(forward_slots=forward, backward_slots=backward, transfer_slots=transfer)
    validate(with_communication(layout.passes(), costs), shape=layout.shape)


@given(layouts(least_pp=2))
@settings(max_examples=40, deadline=None)
def test_receives_start_a_pass_ahead_and_sends_are_waited_for_late(layout: Layout) -> None:
    for row in layout.complete():
        first_pass = next(index for index, action in enumerate(row) if action.kind in COMPUTE)
        for index, action in enumerate(row):
            if action.kind in RECEIVES:
                wait = row.index(action.as_kind(WAIT_OF[action.kind]), index)
                passes_between = sum(each.kind in COMPUTE for each in row[index:wait])
                assert passes_between >= 1 or index < first_pass
            if action.kind in (Kind.WAIT_RECV_F, Kind.WAIT_RECV_B):
                following = next(each for each in row[index:] if each.kind in COMPUTE)
                assert following == action.as_kind(Kind.F if action.kind is Kind.WAIT_RECV_F else Kind.B)
        _check_sends(row)


def _check_sends(row: Actions) -> None:
    """Never more than two of a kind on their way, and none is left when the output's backward pass comes."""
    on_the_way: Counter[Kind] = Counter()
    for index, action in enumerate(row):
        if action.kind is Kind.B and action.as_kind(Kind.SEND_F) in row:
            assert action.as_kind(Kind.WAIT_SEND_F) in row[:index]
        if action.kind in (Kind.SEND_F, Kind.SEND_B):
            on_the_way[action.kind] += 1
            assert on_the_way[action.kind] <= 2
        elif POST_OF.get(action.kind) in (Kind.SEND_F, Kind.SEND_B):
            on_the_way[POST_OF[action.kind]] -= 1
    assert not on_the_way.total()


def test_one_receive_at_a_time_waits_beside_compute_in_1f1b() -> None:
    for row in with_communication(one_f_one_b(4, 16)):
        started = 0
        for action in row:
            started += (action.kind in RECEIVES) - (action.kind in (Kind.WAIT_RECV_F, Kind.WAIT_RECV_B))
            assert started <= 2  # one input and one gradient


def test_the_lists_of_the_smallest_pipeline() -> None:
    first, second = with_communication(one_f_one_b(2, 2))
    assert first == parse_actions(
        "0F0 0RECV_B0 0SEND_F0 0F1 0RECV_B1 0SEND_F1 0WAIT_RECV_B0 0WAIT_SEND_F0 0B0 0WAIT_RECV_B1 0WAIT_SEND_F1 0B1"
    )
    assert second == parse_actions(
        "0RECV_F0 0WAIT_RECV_F0 0F0 0RECV_F1 0B0 0SEND_B0 0WAIT_RECV_F1 0F1 0B1 0SEND_B1 0WAIT_SEND_B0 0WAIT_SEND_B1"
    )


@given(layouts(least_pp=2))
@settings(max_examples=40, deadline=None)
def test_order_holds_without_tags_but_not_on_one_communicator_for_both_directions(layout: Layout) -> None:
    grid = layout.complete()
    assert not find_faults(grid, queues=Queues.PER_TRAFFIC)
    assert not find_faults(grid, queues=Queues.PER_DIRECTION)
    if layout.pp == 2 and not layout.forward_only and layout.microbatches > 1:
        assert find_faults(grid, queues=Queues.PER_PAIR)


@given(layouts(least_pp=2))
@settings(max_examples=30, deadline=None)
def test_both_ends_of_a_transfer_name_the_same_message(layout: Layout) -> None:
    grid, ends = layout.complete(), Counter[object]()
    shape = shape_of(grid)
    for rank, row in enumerate(grid):
        for action in row:
            if action.kind in WAIT_OF:
                message = message_of(action, rank, shape)
                assert message is not None
                sends = action.kind in (Kind.SEND_F, Kind.SEND_B)
                assert rank == (message.source_rank if sends else message.destination_rank)
                step = 1 if message.traffic is Traffic.ACTIVATION else -1
                assert message.destination_rank == (message.source_rank + step) % layout.pp
                ends[message] += 1
    assert set(ends.values()) == {2}


def test_what_cannot_get_communication_is_refused() -> None:
    with pytest.raises(ScheduleError, match="passes_only"):
        with_communication(with_communication(one_f_one_b(2, 2)))
    with pytest.raises(ScheduleError, match="rank 0 waits at 0B0"):
        with_communication((parse_actions("0F0 0B0 0F1 0B1"), parse_actions("0F1 0F0 0B0 0B1")))
    with pytest.raises(ScheduleError, match="without actions"):
        with_communication(((), ()))
