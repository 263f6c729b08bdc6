"""The section about a real run: its timeline, and its times beside those that the simulation predicts."""

from overlap_recompute.report.markup import element, table, text
from overlap_recompute.report.measured import Measured
from overlap_recompute.report.timelines import timeline
from overlap_recompute.report.trace_checks import name_of
from overlap_recompute.simulator.timeline import SimulationResult

Row = tuple[str, float, float]
"""(what, measured, predicted), in microseconds."""


def compared(measured: Measured, predicted: SimulationResult) -> list[Row]:
    """Every time that both have; a kind of window that only one of them has counts as 0 on the other side."""
    rows = [("passes of an iteration", measured.length_us, predicted.iteration_us - predicted.update_us)]
    if measured.iteration_us is not None:
        rows.append(("iteration", measured.iteration_us, predicted.iteration_us))
    for times, stage in zip(measured.stages, predicted.stages, strict=True):
        place = f"stage {times.stage}, "
        rows.append((f"{place}hidden recompute", times.hidden_us, stage.hidden_us))
        rows.append((f"{place}exposed recompute", times.exposed_us, stage.exposed_us))
        found, expected = dict(times.windows_us), {use.kind: use.length_us for use in stage.windows}
        for kind in sorted(found.keys() | expected.keys()):
            rows.append((f"{place}{kind} windows", found.get(kind, 0.0), expected.get(kind, 0.0)))
    return rows


def section(measured: Measured, predicted: SimulationResult) -> list[str]:
    """The whole section.

    Args:
        measured: the run.
        predicted: an iteration of its plan, simulated.
    """
    origin = measured.origin
    ranks = "1 rank" if origin.ranks == 1 else f"{origin.ranks} ranks"
    badge = f"measured: {ranks}, {origin.taken[:10]}, {name_of(origin).removeprefix('the ')}"
    typical = (
        f"Step {measured.number} of the trace, of median length among {measured.steps} "
        f"(they took {measured.shortest_us / 1000:,.2f} to {measured.longest_us / 1000:,.2f} ms)."
    )
    if len(measured.rows) < origin.ranks:
        typical += " Of each stage the first rank is drawn."
    if origin.note:
        typical += f" {origin.note[:1].upper()}{origin.note[1:]}."
    if origin.device == "cuda":
        typical += " Times are those of the host: a recompute is as long as its launch."
    close = "Two passes in the middle of it, piece by piece: windows and what fills them"
    if any(span.lane == "tp" for span in measured.spans):
        close += ", under each rank the collectives that it waits for"
    if origin.stages > 1:
        close += ". Transfers between stages are not in a trace, waits for them are"
    close += ". Where it is blank a rank was between two passes and did not wait."
    rows = [
        [what, f"{found_us / 1000:,.2f} ms", f"{expected_us / 1000:,.2f} ms", _ratio(found_us, expected_us)]
        for what, found_us, expected_us in compared(measured, predicted)
    ]
    caption = (
        "One iteration, from the first pass on any rank. Measured: of a stage the mean of its ranks, medians over "
        f"{measured.steps} steps. Recompute that outlives its window counts as hidden and as part of the window where "
        "it was measured, as exposed where it is predicted. An iteration lasts to the begin of the next one."
    )
    return [
        element("h2", text("Measured")),
        element("p", element("span", text(badge), class_="badge measured")),
        element("p", text(typical)),
        *timeline(measured.spans, measured.rows, close),
        table(["time", "measured", "predicted", "ratio"], rows, caption),
    ]


def _ratio(found_us: float, expected_us: float) -> str:
    return f"{found_us / expected_us:.2f}" if expected_us > 0 else "-"
