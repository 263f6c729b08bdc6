"""The page by its parts: complete, escaped, self-contained, every peak in the curve."""

import dataclasses
import re
from html.parser import HTMLParser

from overlap_recompute.report import render
from overlap_recompute.report.pictures import shown_until_us, thinned
from overlap_recompute.simulator.timeline import MemoryPoint, Span
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


def test_each_span_is_drawn_with_its_name_and_kind() -> None:
    report = sample_report()
    page = render(report)
    for span in report.arms[1].result.spans:
        assert f"<title>{span.name}: " in page
    assert page.count('class="hidden"') == 8 + 1 and page.count('class="exposed"') == 8 + 1  # and the legend


def test_a_long_timeline_is_cut_and_says_so() -> None:
    report = sample_report()
    arm = report.arms[1]
    spans = tuple(
        Span(stage=0, lane="compute", name=f"0F{number}", begin_us=number * 10.0, end_us=number * 10.0 + 9)
        for number in range(9000)
    )
    result = dataclasses.replace(arm.result, spans=spans, iteration_us=90_000.0)
    assert shown_until_us(result) == 60_000.0
    assert "Only the beginning is drawn" in render(
        dataclasses.replace(report, arms=(dataclasses.replace(arm, result=result),))
    )


def test_thinning_keeps_the_peak() -> None:
    points = [MemoryPoint(float(number), number % 1000) for number in range(10_000)]
    points[5003] = MemoryPoint(5003.0, 12_345)
    thin = thinned(points, 300)
    assert len(thin) <= 300 and max(point.nbytes for point in thin) == 12_345
