"""Schedules as text."""

from overlap_recompute.plan.actions import parse_actions
from overlap_recompute.schedules import (
    Costs,
    draw_lists,
    draw_timeline,
    interleaved_one_f_one_b,
    one_f_one_b,
    timeline,
    with_communication,
    with_recompute,
)


def test_a_timeline_shows_starts_lengths_and_idle_slots() -> None:
    assert draw_timeline(timeline(one_f_one_b(2, 2))) == "\n".join(
        [
            "slot     0   1   2   3   4   5   6   7   8",
            "rank 0 0F0 0F1   .   . 0B0   =   . 0B1   =",
            "rank 1   . 0F0 0B0   = 0F1 0B1   =   .   .",
        ]
    )


def test_hidden_and_exposed_recompute_look_different() -> None:
    grid = with_recompute(with_communication(one_f_one_b(2, 1)))
    assert draw_timeline(timeline(grid, Costs(recompute_slots=2, backward_slots=1))) == "\n".join(
        [
            "slot      0    1    2    3    4    5",
            "rank 0  0F0  0R0    =    .    .  0B0",
            "rank 1    .  0F0 0R0!    =  0B0    .",
        ]
    )


def test_a_long_timeline_is_wrapped_and_loses_nothing() -> None:
    times = timeline(interleaved_one_f_one_b(4, 2, 8))
    drawing = draw_timeline(times, width=60)
    assert max(map(len, drawing.splitlines())) <= 60
    blocks = [block.splitlines() for block in drawing.split("\n\n")]
    assert len(blocks) > 1
    words = [word for block in blocks for line in block[1:] for word in line.split()[2:] if word not in "=."]
    assert sorted(words) == sorted(str(span.action) for spans in times.spans for span in spans)
    slots = [int(word) for block in blocks for word in block[0].split()[1:]]
    assert slots == list(range(times.length_slots))


def test_a_narrow_terminal_gets_one_slot_a_line() -> None:
    assert draw_timeline(timeline(one_f_one_b(1, 1)), width=1).count("rank 0") == 3


def test_lists_stand_side_by_side() -> None:
    grid = (parse_actions("0F0 0SEND_F0 0B0"), parse_actions("0F0"))
    assert draw_lists(grid) == "\n".join(
        [
            "step  rank 0    rank 1",
            "   0  0F0       0F0",
            "   1  0SEND_F0",
            "   2  0B0",
        ]
    )


def test_marks_stand_behind_their_cell_and_far_lines_are_left_out() -> None:
    row = parse_actions(" ".join(f"0F{i}" for i in range(20)))
    drawing = draw_lists((row, row[:5]), {(0, 10): "<-- HERE", (1, 5): "<-- THERE"})
    lines = drawing.splitlines()
    assert "  10  0F10 <-- HERE" in lines
    assert "   5  0F5            <-- THERE" in lines
    assert [line.split()[0] for line in lines] == ["step", "...", *map(str, range(1, 15)), "..."]
