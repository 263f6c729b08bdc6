"""A schedule as a CSV file: one line for each rank, one cell for each action in its text form."""

import csv
import io
from pathlib import Path

from overlap_recompute.plan.actions import Actions, Grid, ScheduleError, parse_action
from overlap_recompute.plan.errors import DataError
from overlap_recompute.plan.files import save_text


def to_csv(grid: Grid) -> str:
    """The text of the file; `from_csv` reads it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([map(str, row) for row in grid])
    return text.getvalue()


def from_csv(text: str, name: str = "the schedule") -> Grid:
    """The schedule in `text`. White space around an action and empty cells at the end of a line do not count.

    Args:
        text: what `to_csv` wrote, or a person.
        name: of the file, for messages.

    Raises:
        ScheduleError: a cell holds no action; line and cell are named.
    """
    try:
        lines = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise ScheduleError(f"{name}, which is no CSV ({error})", "cells separated by commas", "correct it") from error
    while lines and not any(lines[-1]):
        lines.pop()
    return tuple(_row(cells, f"{name}, line {number}") for number, cells in enumerate(lines, start=1))


def write_csv(path: Path, grid: Grid) -> None:
    """Write the file in one step.

    Raises:
        DataError: it cannot be written.
    """
    save_text(path, to_csv(grid))


def read_csv(path: Path) -> Grid:
    """The schedule in a file; `validate` says whether it can be run.

    Raises:
        DataError: it cannot be read.
        ScheduleError: a cell holds no action.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the schedule file {path}, which cannot be read ({error})",
            "a CSV file as `overlap-recompute schedule --csv` writes it",
            "correct the path or write the file again",
        ) from error
    return from_csv(text, str(path))


def _row(cells: list[str], place: str) -> Actions:
    words = [cell.strip() for cell in cells]
    while words and not words[-1]:
        words.pop()
    actions = []
    for number, word in enumerate(words, start=1):
        try:
            actions.append(parse_action(word))
        except ScheduleError as error:
            raise ScheduleError(f"{error.found} in {place}, cell {number}", error.expected, error.next_step) from None
    return tuple(actions)
