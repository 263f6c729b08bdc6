"""A timeline as two pictures under one legend: all of it pass by pass, and a stretch of it piece by piece."""

from collections.abc import Sequence

from overlap_recompute.report import pictures
from overlap_recompute.report.markup import element, text
from overlap_recompute.report.passes import blocks_of, worth_a_look
from overlap_recompute.simulator.timeline import Span

_LEGEND = (
    ("forward", "forward pass"), ("backward", "backward pass"), ("hidden", "hidden recompute"),
    ("exposed", "exposed recompute"), ("wait", "waiting"), ("tp", "collective"), ("pp", "pipeline transfer"),
)  # fmt: skip


def timeline(spans: Sequence[Span], names: Sequence[str], close: str) -> list[str]:
    """Legend and pictures.

    Args:
        spans: their `stage` is the number of the row.
        names: of the rows.
        close: what to say about the closer look.
    """
    blocks, loose = blocks_of(spans)
    until_us = pictures.drawn_until_us(blocks)
    cut = "" if until_us >= max((block.end_us for block in blocks), default=0.0) else " Only the beginning is drawn."
    whole = (
        "Time in ms. A block is one pass with the number of its microbatch; at its foot the recompute in it, hidden "
        f"and exposed. Hold the pointer on a block for its times.{cut}"
    )
    lanes = {span.lane for span in spans}
    legend = [
        element("span", element("i", class_=css), text(name))
        for css, name in _LEGEND
        if css not in ("tp", "pp") or css in lanes
    ]
    begin_us, end_us = worth_a_look(blocks)
    return [
        element("div", *legend, class_="legend"),
        element("figure", pictures.overview(blocks, loose, names, until_us), element("figcaption", text(whole))),
        element("figure", pictures.lanes(spans, names, begin_us, end_us), element("figcaption", text(close))),
    ]
