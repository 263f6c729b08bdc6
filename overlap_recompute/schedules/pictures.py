"""Schedules as text for a terminal: over time, and as lists side by side with places marked."""

from collections.abc import Iterator, Mapping

from overlap_recompute.plan.actions import Grid, Kind
from overlap_recompute.schedules.execution import Span
from overlap_recompute.schedules.measures import Timeline

ERROR_MARK = "<-- ERROR HERE"
EXPOSED_MARK = "!"
IDLE, GOES_ON = ".", "="
_CONTEXT_ROWS = 4


def draw_timeline(timeline: Timeline, width: int = 120) -> str:
    """One line for each rank, time from left to right; wrapped into blocks when longer than `width` characters.

    An action's text stands in its first slot, `=` in its others and `.` where the rank does nothing; an R with `!` is
    exposed recompute.
    """
    length_slots = timeline.length_slots
    rows = [_cells(spans, length_slots) for spans in timeline.spans]
    cell = 1 + max([len(text) for row in rows for text in row] + [len(str(length_slots))])
    label = len(f"rank {len(rows) - 1}")
    per_block = max(1, (width - label) // cell)
    blocks = []
    for first in range(0, length_slots, per_block):
        last = min(first + per_block, length_slots)
        header = "slot".ljust(label) + "".join(str(slot).rjust(cell) for slot in range(first, last))
        lines = [
            f"rank {number}".ljust(label) + "".join(text.rjust(cell) for text in row[first:last])
            for number, row in enumerate(rows)
        ]
        blocks.append("\n".join([header, *lines]))
    return "\n\n".join(blocks)


def _cells(spans: tuple[Span, ...], length_slots: int) -> list[str]:
    cells = [IDLE] * length_slots
    for span in spans:
        cells[span.start_slot : span.end_slot] = [GOES_ON] * span.slots
        exposed = span.action.kind is Kind.R and not span.hidden
        cells[span.start_slot] = f"{span.action}{EXPOSED_MARK if exposed else ''}"
    return cells


def draw_lists(grid: Grid, marks: Mapping[tuple[int, int], str] | None = None) -> str:
    """The lists side by side, one column for each rank, the index in the list at the left.

    Args:
        grid: what to draw.
        marks: text to put behind the action at (rank, index); an index behind the end of a list has a cell too. With
            marks only the lines near them are drawn.
    """
    marks = marks or {}
    rows = max([len(row) for row in grid] + [index + 1 for _, index in marks])
    columns = [_column(grid, rank, rows, marks) for rank in range(len(grid))]
    shown = _near({index for _, index in marks}, rows) if marks else range(rows)
    widths = [max(len(column[index]) for index in (*shown, -1)) for column in columns]
    label = max(len("step"), len(str(rows)))
    lines = [_line("step".rjust(label), [f"rank {rank}" for rank in range(len(grid))], widths)]
    previous = -1
    for index in shown:
        if index != previous + 1:
            lines.append("...".rjust(label))
        lines.append(_line(str(index).rjust(label), [column[index] for column in columns], widths))
        previous = index
    if previous != rows - 1:
        lines.append("...".rjust(label))
    return "\n".join(lines)


def _column(grid: Grid, rank: int, rows: int, marks: Mapping[tuple[int, int], str]) -> list[str]:
    cells = [*map(str, grid[rank]), *[""] * (rows - len(grid[rank]))]
    marked = [f"{text} {marks.get((rank, index), '')}".strip() for index, text in enumerate(cells)]
    return [*marked, f"rank {rank}"]


def _near(places: set[int], rows: int) -> tuple[int, ...]:
    def spread() -> Iterator[int]:
        for place in places:
            yield from range(max(0, place - _CONTEXT_ROWS), min(rows, place + _CONTEXT_ROWS + 1))

    return tuple(sorted(set(spread())))


def _line(label: str, cells: list[str], widths: list[int]) -> str:
    return "  ".join([label, *(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))]).rstrip()
