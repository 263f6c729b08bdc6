"""The page by its parts: complete, escaped, self-contained, every peak in the curve."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from overlap_recompute.report import render
from overlap_recompute.report.axes import round_ticks, shown
from overlap_recompute.report.passes import blocks_of, worth_a_look
from overlap_recompute.report.pictures import drawn_until_us, lanes, thinned
from overlap_recompute.simulator.timeline import Lane, MemoryPoint, Span
from tests.unit.report.samples import sample_report

_VOID = {"meta"}


class _Balance(HTMLParser):
    """Counts elements; fails on one that is closed in the wrong place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_markup_is_balanced_and_complete() -> None:
    page = render(sample_report())
    found = _Balance()
    found.feed(page)
    assert not found.open and page.startswith("<!doctype html>")
    assert found.counts["svg"] == 3 and found.counts["h2"] == 6
    for words in ("Arms in 2.20 GiB", "Timeline of heu", "1.148", "needs 0.3 GiB more", "simulated from a profile"):
        assert words in page


def test_what_is_shown_is_escaped() -> None:
    page = render(sample_report())
    assert "<script" not in page and "&lt;script&gt;" in page


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = render(sample_report())
    assert not re.search(r"https?:|//[a-z]|src=|@import|url\(|<link|<iframe", page)


def test_every_pass_is_a_block_with_its_times_and_recompute() -> None:
    report = sample_report()
    page = render(report)
    blocks, loose = blocks_of(report.arms[1].result.spans)
    assert len(blocks) == 2 * 8
    for block in blocks:
        assert f"<title>{block.name}: {block.begin_us / 1000:.2f} to {block.end_us / 1000:.2f} ms" in page
    # The sample's replays lie in waits for other stages, none in a pass.
    assert len(loose) == 16 and all(f"<title>{span.name}: " in page for span in loose)


def test_the_closer_look_shows_each_span_of_its_stretch() -> None:
    report = sample_report()
    result = report.arms[1].result
    begin_us, end_us = worth_a_look(blocks_of(result.spans)[0])
    drawing = lanes(result.spans, ("stage 0", "stage 1"), begin_us, end_us)
    inside = [span for span in result.spans if span.begin_us < end_us and span.end_us > begin_us]
    assert 0 < len(inside) < len(result.spans) and drawing.count("<title>") == len(inside) + 1
    assert all(f"<title>{span.name}: " in drawing for span in inside)


def test_replays_count_for_the_pass_they_lie_in() -> None:
    def span(lane: Lane, name: str, begin_us: float, end_us: float, hidden: bool = False) -> Span:
        return Span(stage=0, lane=lane, name=name, begin_us=begin_us, end_us=end_us, hidden=hidden)

    blocks, loose = blocks_of(
        (
            span("compute", "0F1", 0, 10), span("tp", "0F1.all_reduce", 10, 20), span("wait", "0F1.all_reduce", 10, 20),
            span("recompute", "R(L0.activation) 0.0", 12, 18, hidden=True), span("compute", "0F1", 20, 30),
            span("wait", "0WAIT_RECV_B0", 30, 50), span("recompute", "R(L1.activation) 0.0", 35, 40, hidden=True),
            span("compute", "0B0", 50, 60), span("recompute", "R(L2.activation) 0.0", 60, 64),
            span("compute", "0B0", 64, 80),
        )
    )  # fmt: skip
    assert [(block.name, block.begin_us, block.end_us, block.hidden_us, block.exposed_us) for block in blocks] == [
        ("0F1", 0, 30, 6, 0),
        ("0B0", 50, 80, 0, 4),
    ]
    assert [span.begin_us for span in loose] == [35]
    assert worth_a_look(blocks) == (0, 80)


def test_a_long_timeline_is_cut_and_says_so() -> None:
    report = sample_report()
    arm = report.arms[1]
    spans = tuple(
        Span(stage=0, lane="compute", name=f"0F{number}", begin_us=number * 10.0, end_us=number * 10.0 + 9)
        for number in range(4000)
    )
    result = dataclasses.replace(arm.result, spans=spans, iteration_us=40_000.0)
    assert drawn_until_us(blocks_of(spans)[0]) == 30_000.0
    assert "Only the beginning is drawn" in render(
        dataclasses.replace(report, arms=(dataclasses.replace(arm, result=result),))
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]), (27.3, 37.1, [28, 30, 32, 34, 36]), (5, 5, [5])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert round_ticks(low, high, 10 if low == 0 else 6) == pytest.approx(expected)


def test_figures_have_no_exponents() -> None:
    assert (shown(11_600.4), shown(0.123456), shown(1_234_567.0)) == ("11,600", "0.1235", "1,234,567")
    report = sample_report()
    fast = dataclasses.replace(report.arms[1].result, tokens_per_s=11_600.4)
    page = render(dataclasses.replace(report, arms=(dataclasses.replace(report.arms[1], result=fast),)))
    assert page.count("11,600") == 3 and "e+04" not in page  # tile, table and bar


def test_thinning_keeps_the_peak() -> None:
    points = [MemoryPoint(float(number), number % 1000) for number in range(10_000)]
    points[5003] = MemoryPoint(5003.0, 12_345)
    thin = thinned(points, 300)
    assert len(thin) <= 300 and max(point.nbytes for point in thin) == 12_345
