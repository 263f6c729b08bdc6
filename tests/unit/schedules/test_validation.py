"""The validator finds what is wrong, and marks the right cell."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlap_recompute.plan.actions import (
    WAIT_OF,
    Action,
    Actions,
    Grid,
    Kind,
    ScheduleError,
    format_actions,
    parse_action,
    parse_actions,
)
from overlap_recompute.schedules import (
    PipelineShape,
    find_faults,
    one_f_one_b,
    validate,
    with_communication,
    with_recompute,
)

from .layouts import Layout, layouts

GRID = with_recompute(with_communication(one_f_one_b(2, 3)))
FORWARD, BACKWARD = GRID


def without(row: Actions, *texts: str) -> Actions:
    return tuple(action for action in row if str(action) not in texts)


def moved(row: Actions, text: str, before: str) -> Actions:
    rest = list(without(row, text))
    rest.insert(rest.index(parse_action(before)), parse_action(text))
    return tuple(rest)


# Name, the lists, and the cells: rank, text of the action there ("" for the end of the list), part of the problem.
FAULTS: list[tuple[str, Grid, list[tuple[int, str, str]]]] = [
    ("forward twice", ((*FORWARD, parse_action("0F0")), BACKWARD), [(0, "0F0", "twice")]),
    ("no forward", (without(FORWARD, "0F1"), BACKWARD), [(0, "0SEND_F1", "0F1 is missing")]),
    ("no backward", (FORWARD, without(BACKWARD, "0B2")), [(1, "0SEND_B2", "0B2 is missing")]),
    ("no last backward", (without(FORWARD, "0B2"), BACKWARD), [(0, "", "0B2 is missing")]),
    ("backward too early", (FORWARD, moved(BACKWARD, "0B1", "0F1")), [(1, "0B1", "comes before 0F1")]),
    ("recompute too late", ((*FORWARD, parse_action("0R0")), BACKWARD), [(0, "0R0", "comes after 0B0")]),
    ("recompute too early", ((parse_action("0R0"), *FORWARD), BACKWARD), [(0, "0R0", "comes before 0F0")]),
    ("no receive", (FORWARD, without(BACKWARD, "0RECV_F1")), [(1, "0WAIT_RECV_F1", "has not started")]),
    (
        "no wait for a receive",
        (FORWARD, without(BACKWARD, "0WAIT_RECV_F1")),
        [(1, "0RECV_F1", "nothing waits"), (1, "0F1", "does not wait")],
    ),
    (
        "no wait for a send",
        (without(FORWARD, "0WAIT_SEND_F1"), BACKWARD),
        [(0, "0SEND_F1", "nothing waits")],
    ),
    ("wait too late", (FORWARD, moved(BACKWARD, "0WAIT_RECV_F1", "0B1")), [(1, "0F1", "does not wait")]),
    (
        "never sent",
        (without(FORWARD, "0SEND_F1", "0WAIT_SEND_F1"), BACKWARD),
        [(0, "0F1", "never sent")],
    ),
    (
        "sent until after backward",
        ((*without(FORWARD, "0WAIT_SEND_F2"), parse_action("0WAIT_SEND_F2")), BACKWARD),
        [(0, "0WAIT_SEND_F2", "comes after 0B2, which frees the output")],
    ),
    ("sent too early", (moved(FORWARD, "0SEND_F1", "0F1"), BACKWARD), [(0, "0SEND_F1", "comes before 0F1")]),
    (
        "sent beyond the end",
        (FORWARD, parse_actions(format_actions(BACKWARD).replace(" 0F0 ", " 0F0 0SEND_F0 0WAIT_SEND_F0 "))),
        [(1, "0SEND_F0", "no peer"), (1, "0WAIT_SEND_F0", "no peer")],
    ),
    (
        "receives swapped",
        (FORWARD, moved(BACKWARD, "0RECV_F1", "0RECV_F0")),
        [(1, "0RECV_F1", "number 1 in its queue, where rank 0 has 0SEND_F0")],
    ),
]


@pytest.mark.parametrize(("grid", "cells"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_a_seeded_fault_is_marked_where_it_is(grid: Grid, cells: list[tuple[int, str, str]]) -> None:
    found = find_faults(grid)
    places = [
        (fault.rank, str(grid[fault.rank][fault.position]) if fault.position < len(grid[fault.rank]) else "")
        for fault in found
    ]
    assert places == [(rank, text) for rank, text, _ in cells]
    for fault, (_, _, problem) in zip(found, cells, strict=True):
        assert problem in fault.problem
    with pytest.raises(ScheduleError) as caught:
        validate(grid)
    for _, text, _ in cells:
        assert f"{text} <-- ERROR HERE".strip() in str(caught.value)
    assert str(caught.value).count("<-- ERROR HERE") == len(cells)


def test_passes_that_wait_for_each_other_are_a_deadlock() -> None:
    grid = (parse_actions("0F0 0B0 0F1 0B1"), parse_actions("0F1 0F0 0B0 0B1"))
    first, second = find_faults(grid)
    assert (first.rank, first.position, second.rank, second.position) == (0, 1, 1, 0)
    assert first.problem == "deadlock: 0B0 waits for rank 1, which never runs 0B0"
    assert second.problem == "deadlock: 0F1 waits for rank 0, which never runs 0F1"


def test_sends_that_wait_for_each_other_are_a_deadlock() -> None:
    first = parse_actions(
        "0F0 0SEND_F0 0F1 0SEND_F1 0WAIT_SEND_F0 0WAIT_SEND_F1 0RECV_B0 0WAIT_RECV_B0 0B0 0RECV_B1 0WAIT_RECV_B1 0B1"
    )
    second = parse_actions(
        "0RECV_F0 0WAIT_RECV_F0 0F0 0B0 0SEND_B0 0WAIT_SEND_B0 0RECV_F1 0WAIT_RECV_F1 0F1 0B1 0SEND_B1 0WAIT_SEND_B1"
    )
    found = find_faults((first, second))
    assert [(fault.rank, str((first, second)[fault.rank][fault.position])) for fault in found] == [
        (0, "0WAIT_SEND_F1"),
        (1, "0WAIT_SEND_B0"),
    ]
    assert "rank 1, which never receives the activation between stages 0 and 1 of microbatch 1" in found[0].problem


@given(layouts(least_pp=2), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_no_action_can_be_lost(layout: Layout, random: Random) -> None:
    grid = with_recompute(layout.complete())
    rank = random.randrange(layout.pp)
    index = random.choice([i for i, action in enumerate(grid[rank]) if action.kind is not Kind.R])
    lost = grid[rank][index]
    broken = (*grid[:rank], grid[rank][:index] + grid[rank][index + 1 :], *grid[rank + 1 :])
    found = find_faults(broken, shape=layout.shape)
    assert found
    assert {fault.rank for fault in found} == {rank}
    assert any(str(lost) in fault.problem or str(related(lost)) in fault.problem for fault in found)


def related(action: Action) -> Action:
    """What is left of a transfer when one half of it is lost."""
    return action.as_kind({**WAIT_OF, **{wait: post for post, wait in WAIT_OF.items()}}.get(action.kind, action.kind))


@given(layouts(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_no_action_can_be_there_twice(layout: Layout, random: Random) -> None:
    grid = layout.complete()
    rank = random.randrange(layout.pp)
    index = random.randrange(len(grid[rank]))
    place = random.randrange(index + 1, len(grid[rank]) + 1)
    row = [*grid[rank][:place], grid[rank][index], *grid[rank][place:]]
    found = find_faults((*grid[:rank], tuple(row), *grid[rank + 1 :]))
    assert (rank, place) in {(fault.rank, fault.position) for fault in found if "twice" in fault.problem}


@given(layouts(least_pp=2), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_receives_from_one_peer_cannot_change_places(layout: Layout, random: Random) -> None:
    grid = layout.complete()
    rank = random.randrange(layout.pp)
    kind = random.choice([Kind.RECV_F, Kind.RECV_B])
    places = [index for index, action in enumerate(grid[rank]) if action.kind is kind]
    if len(places) < 2:
        return
    one, other = sorted(random.sample(places, 2))
    row = list(grid[rank])
    row[one], row[other] = row[other], row[one]
    found = find_faults((*grid[:rank], tuple(row), *grid[rank + 1 :]))
    assert found
    assert found[0].rank == rank


def test_what_lies_outside_of_the_wanted_shape_is_a_fault() -> None:
    shape = PipelineShape(ranks=2, chunks=1, microbatches=2)
    found = find_faults(GRID, shape=shape)
    assert {str(GRID[fault.rank][fault.position])[-1] for fault in found} == {"2"}
    assert find_faults(one_f_one_b(2, 2), shape=PipelineShape(ranks=2, chunks=1, microbatches=3))
    with pytest.raises(ScheduleError, match="2 lists"):
        find_faults(GRID, shape=PipelineShape(ranks=3, chunks=1, microbatches=3))


def test_schedules_without_sense_are_refused() -> None:
    with pytest.raises(ScheduleError, match="without actions"):
        validate(())
    with pytest.raises(ScheduleError, match="2 model chunks on a pipeline of one rank"):
        validate((parse_actions("0F0 1F0"),))


def test_many_faults_are_cut_short_and_counted() -> None:
    grid = (parse_actions(" ".join(f"0B{i}" for i in range(30))),)
    with pytest.raises(ScheduleError) as caught:
        validate(grid)
    assert "found 30 fault(s) in a schedule, the first on rank 0: 0F0 is missing" in str(caught.value)
    assert "... and 20 more" in str(caught.value)
    assert str(caught.value).count("<-- ERROR HERE") == 10
