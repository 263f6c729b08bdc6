"""A timeline as text: one line for each stage, time from left to right."""

from overlap_recompute.simulator.timeline import SimulationResult, Span

IDLE, RECOMPUTE, EXPOSED = ".", "r", "!"
LEGEND = "0-9: forward pass (last digit of the microbatch), a-j: backward pass, r: recompute in a wait, !: exposed"
_FORWARD, _BACKWARD = "0123456789", "abcdefghij"


def draw(result: SimulationResult, width: int = 120) -> str:
    """The whole iteration, scaled to `width` characters; of a result with a timeline.

    Each character shows what took most of its time.
    """
    label = max(len(f"stage {stage.stage}") for stage in result.stages)
    columns = max(10, width - label - 1)
    length_us = max(result.iteration_us - result.update_us, 1e-9)
    lines = []
    for stage in result.stages:
        spans = [span for span in result.spans if span.stage == stage.stage and span.lane in ("compute", "recompute")]
        lines.append(f"stage {stage.stage}".ljust(label) + " " + _line(spans, length_us / columns, columns))
    return "\n".join([*lines, LEGEND])


def _line(spans: list[Span], column_us: float, columns: int) -> str:
    shares: list[dict[str, float]] = [{} for _ in range(columns)]
    for span in spans:
        mark = _mark(span)
        first, last = int(span.begin_us / column_us), int(span.end_us / column_us)
        for column in range(first, min(last, columns - 1) + 1):
            begin_us, end_us = column * column_us, (column + 1) * column_us
            share_us = min(span.end_us, end_us) - max(span.begin_us, begin_us)
            shares[column][mark] = shares[column].get(mark, 0.0) + share_us
    return "".join(_most(share, column_us) for share in shares)


def _most(share: dict[str, float], column_us: float) -> str:
    idle_us = column_us - sum(share.values())
    return max([*share.items(), (IDLE, idle_us)], key=lambda entry: entry[1])[0]


def _mark(span: Span) -> str:
    if span.lane == "recompute":
        return RECOMPUTE if span.hidden else EXPOSED
    digits = "".join(char if char.isdigit() else " " for char in span.name).split()
    place = int(digits[1]) % 10
    return (_FORWARD if "F" in span.name else _BACKWARD)[place]
