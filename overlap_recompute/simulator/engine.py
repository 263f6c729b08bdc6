"""Runs the action lists of all pipeline stages against a clock: the lists that the trainer's interpreter runs.

NOTE [ resources and order ]
1. Each stage has one device, which runs one pass or one replay at a time, in the order of its list. Links between
   neighbour stages have a queue for each sender and receiver; a transfer begins when both ends have started it and the
   one before it is over, and takes the same time for every message. Both directions run at once.
2. A wait for a receive with an R before it is filled by the stage's `Passes` until the tensor is there; a wait without
   one, or on a stage whose plan does not fill `pp_wait`, stays empty.
3. Events are a heap of (time, stage): the stage goes on then. At the same time the lower stage goes first. Nothing
   depends on that: a link has one sender and one receiver, both start its messages in the same order, and what a stage
   does depends on arrivals alone.
"""

import heapq
from collections.abc import Callable, Mapping
from typing import NamedTuple

from overlap_recompute.plan.actions import POST_OF, WAIT_OF, Action, Grid, Kind
from overlap_recompute.schedules import PipelineShape, message_of
from overlap_recompute.simulator.passes import Passes
from overlap_recompute.simulator.stage_run import Done, StageRun

MessageKey = tuple[int, int, int]
"""Traffic, virtual stage behind which the tensor lies, microbatch."""
Link = tuple[int, int]
"""Stage that sends, stage that receives."""


class Transfer(NamedTuple):
    """A message on its way."""

    link: Link
    message: MessageKey
    begin_fs: int
    end_fs: int


class Run(NamedTuple):
    """What came of an execution."""

    done: tuple[list[Done], ...]
    """By stage, in the order of its list."""
    transfers: list[Transfer]
    """In the order in which they became possible."""

    @property
    def end_fs(self) -> int:
        """When the last stage is done."""
        return max(rows[-1].end_fs for rows in self.done)


class Engine:
    """One execution.

    Args:
        stages: the passes of each stage.
        grid: a list for each stage, valid and with its communication.
        shape: size of the schedule.
        transfer_fs: time of a message.
        higher_first: turn the tie-break round; for the test that nothing depends on it.
    """

    def __init__(
        self,
        stages: tuple[Passes, ...],
        grid: Grid,
        shape: PipelineShape,
        transfer_fs: int,
        *,
        higher_first: bool = False,
    ) -> None:
        self.grid, self.transfer_fs = grid, transfer_fs
        self.stages = tuple(StageRun(passes, row) for passes, row in zip(stages, grid, strict=True))
        self.positions = [0] * len(grid)
        """Of the next action in each list."""
        self.routes = _routes(shape)
        self.sign = -1 if higher_first else 1
        self.heap: list[tuple[int, int]] = []
        self.posted_fs: dict[MessageKey, int] = {}
        """When one end of a message was started, until the other one is."""
        self.arrival_fs: dict[MessageKey, int] = {}
        self.free_fs: dict[Link, int] = {}
        self.waiting: dict[MessageKey, list[int]] = {}
        """Stages that wait for a message whose arrival is not known yet."""
        self.transfers: list[Transfer] = []

    def run(self) -> Run:
        """Do everything."""
        for number in range(len(self.stages)):
            self._go_on_at(0, number)
        while self.heap:
            _, number = heapq.heappop(self.heap)
            self._go_on(number * self.sign)
        stuck = [number for number, row in enumerate(self.grid) if self.positions[number] < len(row)]
        assert not stuck, f"stages {stuck} wait for ever: the lists were not valid"
        return Run(tuple(stage.done for stage in self.stages), self.transfers)

    def _go_on_at(self, time_fs: int, number: int) -> None:
        heapq.heappush(self.heap, (time_fs, number * self.sign))

    def _go_on(self, number: int) -> None:
        """Up to the end of the next pass, or to a wait for a message whose arrival is not known yet."""
        row, position = self.grid[number], self.positions[number]
        while position < len(row):
            action = row[position]
            if not _HANDLERS[action.kind](self, number, action):
                break
            position += 1
            if action.kind is Kind.F or action.kind is Kind.B:
                self._go_on_at(self.stages[number].now_fs, number)
                break
        self.positions[number] = position

    def forward(self, number: int, action: Action) -> bool:
        """F."""
        self.stages[number].forward(action)
        return True

    def backward(self, number: int, action: Action) -> bool:
        """B."""
        self.stages[number].backward(action)
        return True

    def recompute(self, number: int, action: Action) -> bool:
        """R."""
        self.stages[number].recompute(action)
        return True

    def post(self, number: int, action: Action) -> bool:
        """SEND, RECV: one end of a message; with the second one its arrival is known."""
        message, link = self._route(number, action)
        now_fs = self.stages[number].now_fs
        first_fs = self.posted_fs.pop(message, None)
        if first_fs is None:
            self.posted_fs[message] = now_fs
            return True
        begin_fs = max(first_fs, now_fs, self.free_fs.get(link, 0))
        end_fs = self.free_fs[link] = self.arrival_fs[message] = begin_fs + self.transfer_fs
        self.transfers.append(Transfer(link, message, begin_fs, end_fs))
        for other in self.waiting.pop(message, ()):
            self._go_on_at(max(now_fs, self.stages[other].now_fs), other)
        return True

    def wait(self, number: int, action: Action) -> bool:
        """WAIT; whether the arrival is known."""
        message, _ = self._route(number, action)
        arrival_fs = self.arrival_fs.get(message)
        if arrival_fs is None:
            self.waiting.setdefault(message, []).append(number)
            return False
        self.stages[number].wait(action, arrival_fs)
        return True

    def _route(self, number: int, action: Action) -> tuple[MessageKey, Link]:
        traffic, stage, link = self.routes[number, action.kind, action.chunk]
        return (traffic, stage, action.microbatch), link


def _routes(shape: PipelineShape) -> dict[tuple[int, Kind, int], tuple[int, int, Link]]:
    """Traffic, stage and link of the messages that actions of a stage, kind and chunk name."""
    routes = {}
    for number in range(shape.ranks):
        for kind in (*WAIT_OF, *POST_OF):
            for chunk in range(shape.chunks):
                message = message_of(Action(kind=kind, chunk=chunk, microbatch=0), number, shape)
                if message is not None:
                    link = (message.source_rank, message.destination_rank)
                    routes[number, kind, chunk] = (message.traffic.value, message.stage, link)
    return routes


_HANDLERS: Mapping[Kind, Callable[[Engine, int, Action], bool]] = {
    Kind.F: Engine.forward,
    Kind.B: Engine.backward,
    Kind.R: Engine.recompute,
    **dict.fromkeys(WAIT_OF, Engine.post),
    **dict.fromkeys(POST_OF, Engine.wait),
}
