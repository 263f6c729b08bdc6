"""Schedules as CSV: round trip, golden files, and what a file may get wrong."""

from pathlib import Path

import pytest
from hypothesis import given, settings

from overlap_recompute.plan.actions import ScheduleError
from overlap_recompute.plan.errors import DataError
from overlap_recompute.schedules import from_csv, one_f_one_b, read_csv, to_csv, validate, with_recompute, write_csv

from .goldens import FOLDER, goldens
from .layouts import Layout, layouts


@given(layouts())
@settings(max_examples=30, deadline=None)
def test_round_trip(layout: Layout) -> None:
    grid = with_recompute(layout.complete())
    assert from_csv(to_csv(grid)) == grid


@pytest.mark.parametrize("name", goldens())
def test_golden_file(name: str) -> None:
    assert validate(read_csv(FOLDER / name)) == goldens()[name], "python -m tests.unit.schedules.goldens writes it anew"


def test_no_golden_file_is_forgotten() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(goldens())


def test_one_line_for_each_rank_one_cell_for_each_action() -> None:
    assert to_csv(one_f_one_b(2, 2)) == "0F0,0F1,0B0,0B1\n0F0,0B0,0F1,0B1\n"


def test_what_a_spreadsheet_adds_does_not_count() -> None:
    assert from_csv("0F0, 0B0 ,,\r\n0F0,0B0\r\n\r\n,,\r\n") == one_f_one_b(2, 1)


@pytest.mark.parametrize(("text", "place"), [("0F0\n0F0,0X0\n", "line 2, cell 2"), ("0F0,,0B0\n", "line 1, cell 2")])
def test_a_cell_that_is_no_action_is_named(text: str, place: str) -> None:
    with pytest.raises(ScheduleError, match=f"a.csv, {place}"):
        from_csv(text, "a.csv")


def test_files_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.csv"):
        read_csv(tmp_path / "missing.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"binary\.csv"):
        read_csv(tmp_path / "binary.csv")
    with pytest.raises(DataError, match=r"b\.csv"):
        write_csv(tmp_path / "no folder" / "b.csv", one_f_one_b(1, 1))


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    path.chmod(0o640)
    write_csv(path, one_f_one_b(2, 1))
    assert read_csv(path) == one_f_one_b(2, 1)
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]
