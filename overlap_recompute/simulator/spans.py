"""What a run did as spans: named after the schedule's actions, with the replays and collectives inside of them."""

from bisect import bisect
from collections.abc import Iterator

from overlap_recompute.plan.actions import Action, Kind
from overlap_recompute.schedules import Traffic
from overlap_recompute.simulator.engine import Run, Transfer
from overlap_recompute.simulator.stage_model import to_us
from overlap_recompute.simulator.stage_run import Done
from overlap_recompute.simulator.timeline import Span

_SENDS = {Traffic.ACTIVATION.value: Kind.SEND_F, Traffic.GRADIENT.value: Kind.SEND_B}


def spans_of(run: Run) -> tuple[Span, ...]:
    """All spans of a run whose passes were told to draw, by stage and begin."""
    spans = [span for stage, rows in enumerate(run.done) for span in _of_stage(stage, rows)]
    spans += [_of_transfer(transfer, len(run.done)) for transfer in run.transfers]
    return tuple(sorted(spans, key=lambda span: (span.stage, span.begin_us, span.end_us, span.lane)))


def _of_stage(stage: int, rows: list[Done]) -> Iterator[Span]:
    backward = [done.action for done in rows if done.action.kind is Kind.B]
    turns = {(action.chunk, action.microbatch): turn for turn, action in enumerate(backward)}
    order: list[int] = []
    for done in rows:
        action = done.action
        yield from _of_row(stage, done, [backward[turn] for turn in order])
        if action.kind is Kind.F:
            turn = turns[action.chunk, action.microbatch]
            order.insert(bisect(order, turn), turn)
        elif action.kind is Kind.B:
            order.pop(0)


def _of_row(stage: int, done: Done, pending: list[Action]) -> Iterator[Span]:
    begin_fs, free_fs = done.begin_fs, done.begin_fs
    for piece in done.outcome.pieces if done.outcome is not None else ():
        if piece.lane == "recompute":
            use = pending[piece.pending]
            name = f"{piece.name} {use.chunk}.{use.microbatch}"
        else:
            name = f"{done.action}.{piece.name}" if piece.name else str(done.action)
        yield Span(
            stage=stage,
            lane=piece.lane,
            name=name,
            begin_us=to_us(begin_fs + piece.begin_fs),
            end_us=to_us(begin_fs + piece.end_fs),
            hidden=piece.hidden,
        )
    if done.action.kind not in (Kind.F, Kind.B):
        free_fs += done.outcome.length_fs if done.outcome is not None else 0
        if free_fs < done.arrival_fs:
            yield Span(
                stage=stage,
                lane="wait",
                name=str(done.action),
                begin_us=to_us(free_fs),
                end_us=to_us(done.arrival_fs),
            )


def _of_transfer(transfer: Transfer, stages: int) -> Span:
    traffic, behind, microbatch = transfer.message
    kind = _SENDS[traffic]
    sender = behind if kind is Kind.SEND_F else behind + 1
    return Span(
        stage=transfer.link[0],
        lane="pp",
        name=str(Action(kind=kind, chunk=sender // stages, microbatch=microbatch)),
        begin_us=to_us(transfer.begin_fs),
        end_us=to_us(transfer.end_fs),
    )
