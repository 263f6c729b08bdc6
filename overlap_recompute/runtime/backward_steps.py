"""Where in a layer's backward pass its bytes are: steps between the times at which backward reads what units made.

NOTE [ steps ]
1. A step begins when backward reads what a unit made, and lasts until it reads what another one made.
2. It ends as well when a kept storage of no unit dies, or the gradient of the layer's output, so that either is there
   through all of a step or gone.
3. What backward holds besides is all that lives, less what the memory expression takes for held in this step. It takes
   all that a unit made for held until the last step that reads any of it is followed by another.
4. So a storage that backward has done with earlier makes room, in the same way whether its unit was dropped or not;
   except if a replay may read it later than backward does.
"""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from overlap_recompute.plan.storages import MemoryStep, StorageRow
from overlap_recompute.runtime.live_bytes import LiveBytes
from overlap_recompute.runtime.storages import storage_of

Group = tuple[int, str | None]
"""Of kept storages: the part that sees them first, and the unit that made them."""


@dataclass(slots=True, kw_only=True)
class _Span:
    """A step while it is followed."""

    needs: list[str]
    of_no_unit_bytes: int
    gradient_bytes: int
    samples: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    """Bytes besides kept ones, and kept bytes by unit, each time that more lived."""


class BackwardSteps:
    """Follows backward passes, part after part.

    Args:
        live: counts; what is kept was declared by `Group`.
    """

    def __init__(self, live: LiveBytes) -> None:
        self._live = live
        self._spans: dict[int, list[_Span]] = {}
        self._units: dict[int, tuple[str, ...]] = {}
        self._part: int | None = None
        self._gradient: weakref.ref[object] | None = None
        self._gradient_bytes = 0

    def begin(self, part: int, gradient: Tensor | None) -> None:
        """The backward pass of a part begins; `gradient`: of its output."""
        storage = None if gradient is None else storage_of(gradient)
        self._part = part
        self._gradient = None if storage is None else weakref.ref(storage)
        self._gradient_bytes = 0 if storage is None else storage.nbytes()
        self._spans[part] = []
        kept = [group for group in self._live.kept_of if isinstance(group, tuple) and group[0] == part]
        self._units[part] = tuple(unit for _, unit in kept if unit is not None)
        self._open([])

    def read(self, part: int, maker: str) -> None:
        """Backward reads what a unit of a part made."""
        if part != self._part:
            return
        self.sample()
        last = self._spans[part][-1]
        if last.needs == [maker]:
            return
        if len(last.samples) > 1 or self._is_other(last):
            self._open([maker])
        elif maker not in last.needs:
            last.needs.append(maker)

    def sample(self) -> None:
        """More lives than before."""
        if self._part is None:
            return
        last = self._spans[self._part][-1]
        if self._is_other(last):
            self._open([])
        else:
            self._note(last)

    def of(self, part: int, rows: Sequence[StorageRow]) -> tuple[MemoryStep, ...]:
        """The steps of a part whose rows are these; ask when its backward pass is over."""
        spans = self._spans.get(part, [])
        of_no_unit_bytes = max((span.of_no_unit_bytes for span in spans), default=0)
        held = _Held(rows, spans)
        steps: list[MemoryStep] = []
        for index, span in enumerate(spans):
            step = _step(span, of_no_unit_bytes, [held.besides_bytes(index, *sample) for sample in span.samples])
            before = steps[-1] if steps else None
            if before is not None and _is_alike(before, step):
                steps[-1] = max(before, step, key=lambda each: each.peak_bytes - each.freed_bytes)
            else:
                steps.append(step)
        return tuple(steps)

    def _is_other(self, span: _Span) -> bool:
        """Whether what stays the same through all of a step has changed."""
        return (span.of_no_unit_bytes, span.gradient_bytes) != self._constants()

    def _constants(self) -> tuple[int, int]:
        lives = self._gradient is not None and self._gradient() is not None
        return self._live.kept_of[self._part, None], self._gradient_bytes if lives else 0

    def _open(self, needs: list[str]) -> None:
        assert self._part is not None
        of_no_unit_bytes, gradient_bytes = self._constants()
        span = _Span(needs=needs, of_no_unit_bytes=of_no_unit_bytes, gradient_bytes=gradient_bytes)
        self._spans[self._part].append(span)
        self._note(span)

    def _note(self, span: _Span) -> None:
        live, part = self._live, self._part
        assert part is not None
        of_units = {unit: live.kept_of[part, unit] for unit in self._units[part]}
        now = live.live_bytes - live.kept_bytes, of_units
        if not span.samples or span.samples[-1] != now:
            span.samples.append(now)


class _Held:
    """What the memory expression takes for held by units when nothing is dropped."""

    def __init__(self, rows: Sequence[StorageRow], spans: Sequence[_Span]) -> None:
        self._bytes: dict[str, int] = {}
        self._last_use = {unit: index for index, span in enumerate(spans) for unit in span.needs}
        first_use = {unit: -index for index, span in enumerate(reversed(spans), 1 - len(spans)) for unit in span.needs}
        self._read_late: set[str] = set()
        """Units of which a replay may read something that backward has done with. See NOTE [ steps ], 4."""
        for row in rows:
            if row.maker is None or not row.held:
                continue
            self._bytes[row.maker] = self._bytes.get(row.maker, 0) + row.nbytes
            soon = first_use.get(row.maker, 0)
            if any(first_use.get(unit, 0) > soon for unit in row.replay_readers):
                self._read_late.add(row.maker)

    def besides_bytes(self, index: int, besides_bytes: int, of_units: Mapping[str, int]) -> int:
        """What lives in a step above what is taken for held; below 0 if less lives."""
        for unit, nbytes in self._bytes.items():
            taken_bytes = nbytes if self._last_use.get(unit, index) >= index else 0
            more_bytes = of_units.get(unit, 0) - taken_bytes
            besides_bytes += max(0, more_bytes) if unit in self._read_late else more_bytes
        return besides_bytes


def _step(span: _Span, of_no_unit_bytes: int, besides: Sequence[int]) -> MemoryStep:
    freed_bytes = max(0, -min(besides))
    return MemoryStep(
        needs=tuple(span.needs),
        start_bytes=besides[0] + freed_bytes,
        peak_bytes=max(besides) + freed_bytes,
        freed_bytes=of_no_unit_bytes - span.of_no_unit_bytes + freed_bytes,
        gradient_bytes=span.gradient_bytes,
    )


def _is_alike(before: MemoryStep, step: MemoryStep) -> bool:
    """Whether the same is held in both whatever is dropped, so that the one where more lives says it all."""
    return not before.needs and not step.needs and before.gradient_bytes == step.gradient_bytes
