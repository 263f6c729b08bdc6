"""Which windows were opened and filled, by collective or by phase of the pipeline; and a link on which they last.

Used by the journal tests. How much time a window leaves depends on what else the machine does; where it matters which
windows take something, each is held open until it has (`at_most`).
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from megatron.overlap.pipeline_windows import PipelineWindows
from megatron.overlap.window_log import Window
from megatron.overlap.windows import Windows
from megatron.pretrain.distributed.emulated_link import EmulatedLink, LinkedProcessGroups
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.runtime import Fill, RecomputeQueue

Name = tuple[WindowKind, str]
LATENCY_US = 4000.0
"""Longer than what a tiny layer takes to recompute, on a machine that does much else too."""


@contextlib.contextmanager
def slow_link() -> Iterator[None]:
    """Every transfer takes milliseconds, and no processor time."""
    with LinkedProcessGroups(EmulatedLink(10.0, LATENCY_US)):
        yield


class WindowsByName:
    """Counts while it is entered.

    Args:
        at_most: units that one window takes if there are any, however late the rank came to it; None: as many as fit.
    """

    def __init__(self, at_most: int | None) -> None:
        self.opened: Counter[Name] = Counter()
        self.filled: Counter[Name] = Counter()
        """Units that were recomputed."""
        self._at_most = at_most
        self._names: dict[int, str] = {}
        self._phase = ""
        self._patched = contextlib.ExitStack()

    def launched(self, work: Any, name: str) -> None:
        """A collective was started."""
        self._names[id(work)] = name

    def __enter__(self) -> "WindowsByName":
        finish, fill, wait, measure = Windows.finish, RecomputeQueue.fill, PipelineWindows.finish, Windows.measure

        def counted(stock: Callable[..., Window]) -> Callable[..., Window]:
            def call(windows: Windows, kind: WindowKind, work: Any, **options: Any) -> Window:
                # `finish` may call `measure`, which then finds no name any more.
                name = self._names.pop(id(work), "") or self._phase
                self._phase = ""
                window = stock(windows, kind, work, **options)
                if name:
                    self.opened[kind, name] += 1
                    self.filled[kind, name] += window.units
                return window

            return call

        def in_phase(waits: PipelineWindows, pending: Any, **options: Any) -> None:
            self._phase = options["phase"].name
            wait(waits, pending, **options)
            self._phase = ""

        def held_open(queue: RecomputeQueue, until: Callable[[], bool], *args: Any, **options: Any) -> Fill:
            if self._at_most is None:
                return fill(queue, until, *args, **options)
            units_left = itertools.chain([False] * self._at_most, itertools.repeat(True))
            return fill(queue, lambda: next(units_left), *args, **{**options, "left_ns": None})

        for owner, name, stock, ours in (
            (Windows, "finish", finish, counted(finish)),
            (Windows, "measure", measure, counted(measure)),
            (PipelineWindows, "finish", wait, in_phase),
            (RecomputeQueue, "fill", fill, held_open),
        ):
            setattr(owner, name, ours)
            self._patched.callback(setattr, owner, name, stock)
        return self

    def __exit__(self, *error: object) -> None:
        self._patched.close()
