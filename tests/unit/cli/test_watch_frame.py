"""What the picture looks like; `python -m tests.unit.cli.test_watch_frame` writes the golden files anew."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from overlap_recompute.cli.watching.alarms import Rules, find_alarms
from overlap_recompute.cli.watching.drawing import (
    ASCII,
    UNICODE,
    bar,
    bytes_text,
    charset_of,
    clip,
    duration_text,
    sparkline,
)
from overlap_recompute.cli.watching.frame import FrameLine, Style, _fitted, draw
from overlap_recompute.cli.watching.history import Glance
from overlap_recompute.cli.watching.screen import as_text
from tests.unit.cli.watch_support import NAME, event_line, glance_of, run_line, sample_line

GOLDEN = Path(__file__).parent / "golden"
RULES = Rules(threshold=0.2, window=5)
FIRST = [run_line(), *(sample_line(n) for n in range(1, 41))]
BROKEN = [
    run_line(),
    *(sample_line(n) for n in range(1, 20)),
    *(
        sample_line(
            n,
            loss="nan",
            elapsed_ms=600.0,
            extra={"overlap/exposed_recompute_ms": 40.0, "overlap/window_ms/pp_wait": 20.0},
        )
        for n in range(20, 25)
    ),
    b"{ half",
]
BARE = [
    run_line(layout={}, parameters=None),
    sample_line(1, train_iters=None, loss=None, tflops_per_rank=None, peak_memory_min_bytes=None)
    .replace(b'"overlap/', b'"other/')
    .replace(b'"peak_memory_max_bytes": 1610612736', b'"peak_memory_max_bytes": null'),
]
PICTURES: Mapping[str, Glance] = {
    "running": glance_of(FIRST),
    "broken": glance_of(BROKEN, age_s=75.0),
    "bare": glance_of(BARE),
    "waiting": glance_of([], age_s=61.0),
    "stopped": glance_of([*FIRST, run_line(40), event_line(40, "exit", "signal\x1b[2J 15 at iteration 40")]),
}


def picture(name: str, width: int = 80) -> tuple[FrameLine, ...]:
    glance = PICTURES[name]
    return draw(NAME, glance, find_alarms(glance, RULES), window=5, width=width, charset=UNICODE)


@pytest.mark.parametrize("name", PICTURES)
def test_picture_at_80_columns(name: str) -> None:
    assert as_text(picture(name), colour=False) == (GOLDEN / f"watch_{name}.txt").read_text()


@pytest.mark.parametrize("width", [20, 40, 57, 80, 100, 200])
@pytest.mark.parametrize("name", PICTURES)
def test_no_line_passes_the_width_and_none_moves_the_cursor(name: str, width: int) -> None:
    for line in picture(name, width):
        assert len(line.text) <= max(40, width)
        assert line.text.isprintable()


def test_a_wider_terminal_gets_longer_bars() -> None:
    def filled(width: int) -> int:
        return max(line.text.count("█") for line in picture("running", width) if line.text.startswith("pp_wait"))

    assert filled(60) < filled(80)


def test_only_alarms_are_red() -> None:
    coloured = as_text(picture("broken"), colour=True).splitlines()
    assert all(line.startswith("\x1b[1;31m") is ("ALARM" in line) for line in coloured)
    assert sum("ALARM" in line for line in coloured) >= 4
    assert [line.style for line in picture("running") if line.text == "no alarm"] == [Style.GOOD]
    assert "\x1b" not in as_text(picture("broken"), colour=False)


def test_what_is_too_wide_goes_on_in_the_next_line() -> None:
    long = FrameLine(text="recompute   hidden 51.8 ms   exposed 14.4 ms   ####.. 78 % hidden")
    assert [line.text for line in _fitted(long, 48)] == [
        "recompute   hidden 51.8 ms   exposed 14.4 ms",
        "            ####.. 78 % hidden",
    ]
    alarm = FrameLine(text="ALARM tp_forward windows 146.8 ms, 139 % above its earlier 61.3 ms", style=Style.BAD)
    lines = list(_fitted(alarm, 50))
    assert [line.text for line in lines] == [
        "ALARM tp_forward windows 146.8 ms, 139 % above its",
        "      earlier 61.3 ms",
    ]
    assert all(line.style is Style.BAD for line in lines)
    assert [line.text for line in _fitted(FrameLine(text="x" * 60), 50)] == ["x" * 50]


def test_sparkline_shows_the_course_in_the_room_there_is() -> None:
    assert sparkline([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 20, UNICODE) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0] * 50 + [2.0] * 50, 4, UNICODE) == "▁▁██"
    assert sparkline([3.0, 3.0], 4, ASCII) == "__"
    assert sparkline([1.0, float("nan"), 2.0, float("inf")], 4, ASCII) == "_x#x"
    assert sparkline([], 4, ASCII) == ""


def test_bars_and_numbers() -> None:
    assert bar(0.5, 4, ASCII) == "##.."
    assert bar(7.0, 4, ASCII) == "####"
    assert bar(float("nan"), 4, ASCII) == "...."
    assert [bytes_text(count) for count in (0, 2048, 3 << 20, 5 << 29)] == ["0 B", "2.0 KiB", "3.0 MiB", "2.50 GiB"]
    times = [duration_text(seconds) for seconds in (7, 200, 7500, 273600, float("inf"))]
    assert times == ["7 s", "3 min 20 s", "2 h 05 min", "3 d 4 h", "?"]
    assert clip("日本語", 5) == "日本"
    assert (charset_of("utf-8"), charset_of("latin-1"), charset_of(None)) == (UNICODE, ASCII, ASCII)


if __name__ == "__main__":
    for each in PICTURES:
        (GOLDEN / f"watch_{each}.txt").write_text(as_text(picture(each), colour=False))
