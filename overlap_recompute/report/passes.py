"""The passes of a timeline as whole blocks: from spans, where windows cut them into many."""

import bisect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from overlap_recompute.simulator.timeline import Span

_PASS = re.compile(r"[0-9]+([FB])([0-9]+)(?:\.|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A forward or backward pass of one microbatch on one stage."""

    stage: int
    name: str
    """As the schedule's action, `0B3`."""
    kind: str
    """F or B."""
    microbatch: int
    begin_us: float
    end_us: float
    hidden_us: float = 0.0
    """Recompute in its windows."""
    exposed_us: float = 0.0
    """Recompute that it waited for."""


def blocks_of(spans: Iterable[Span]) -> tuple[tuple[Block, ...], tuple[Span, ...]]:
    """All passes by stage and begin, and the replays that lie in none of them (in waits for other stages)."""
    ends: dict[tuple[int, str], list[float]] = {}
    replays = []
    for span in spans:
        if span.lane == "recompute":
            replays.append(span)
        elif span.lane in ("compute", "wait") and (found := _PASS.match(span.name)):
            extent = ends.setdefault((span.stage, found[0].rstrip(".")), [span.begin_us, span.end_us])
            extent[0], extent[1] = min(extent[0], span.begin_us), max(extent[1], span.end_us)
    order = sorted(ends, key=lambda key: (key[0], ends[key][0]))
    return _with_replays(order, ends, replays)


def _with_replays(
    order: Sequence[tuple[int, str]], ends: dict[tuple[int, str], list[float]], replays: Iterable[Span]
) -> tuple[tuple[Block, ...], tuple[Span, ...]]:
    starts = [(stage, ends[stage, name][0]) for stage, name in order]
    inside = {key: [0.0, 0.0] for key in order}
    loose = []
    for span in replays:
        place = bisect.bisect_right(starts, (span.stage, span.begin_us)) - 1
        key = order[place] if place >= 0 else None
        if key is not None and key[0] == span.stage and span.begin_us < ends[key][1]:
            inside[key][not span.hidden] += span.end_us - span.begin_us
        else:
            loose.append(span)
    blocks = []
    for stage, name in order:
        found = _PASS.match(name)
        assert found is not None, "only passes were collected"
        begin_us, end_us = ends[stage, name]
        hidden_us, exposed_us = inside[stage, name]
        blocks.append(
            Block(
                stage=stage,
                name=name,
                kind=found[1],
                microbatch=int(found[2]),
                begin_us=begin_us,
                end_us=end_us,
                hidden_us=hidden_us,
                exposed_us=exposed_us,
            )  # fmt: skip
        )
    return tuple(blocks), tuple(loose)


def worth_a_look(blocks: Sequence[Block]) -> tuple[float, float]:
    """A stretch of time for a closer look: a backward pass in the middle of the iteration, on the stage that
    recomputes most, and the pass before it."""
    if not blocks:
        return 0.0, 1.0
    recompute_us = {block.stage: 0.0 for block in blocks}
    for block in blocks:
        recompute_us[block.stage] += block.hidden_us + block.exposed_us
    stage = max(recompute_us, key=lambda number: (recompute_us[number], -number))
    row = [block for block in blocks if block.stage == stage]
    backward = [place for place, block in enumerate(row) if block.kind == "B" and place > 0]
    if not backward:
        return row[0].begin_us, row[0].end_us
    middle_us = (row[0].begin_us + row[-1].end_us) / 2
    place = min(backward, key=lambda number: abs(row[number].begin_us - middle_us))
    return row[place - 1].begin_us, row[place].end_us
