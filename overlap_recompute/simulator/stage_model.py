"""A stage as the simulator runs it: its chunks' passes as flat lists of steps, and its dropped units in fill order.

NOTE [ time in femtoseconds ]
Times are whole numbers of femtoseconds. Sums are then exact whatever their order: a tie is a tie on every machine, a
period of the steady state repeats to the last digit or not at all, and adding periods up is no approximation. A
duration from a profile is rounded once, by at most half a billionth of a microsecond.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.plan_file import LayerPlan, StagePlan
from overlap_recompute.plan.profile import COMPUTE, SEND, LayerKind, Pass, PassStep, Profile
from overlap_recompute.plan.split import Split

FS_PER_US = 10**9


def to_fs(duration_us: float) -> int:
    """Microseconds as whole femtoseconds."""
    return round(duration_us * FS_PER_US)


def to_us(duration_fs: int) -> float:
    """Femtoseconds as microseconds."""
    return duration_fs / FS_PER_US


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A dropped unit of a layer. Masks have a bit for each replay of the chunk, at its place in fill order."""

    layer: int
    unit: str
    duration_fs: int
    nbytes: int
    """Brought back."""
    held_bytes: int
    """The part of it that stays until a backward step has read it."""
    passing: tuple[tuple[int, int], ...]
    """(bytes, mask) of the rest: it dies when these replays, which read it, are done."""
    closure: int
    """Mask of the replay itself and of those that must be done before it."""

    @property
    def label(self) -> str:
        """For spans."""
        return f"R(L{self.layer}.{self.unit})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A part of a chunk's pass."""

    kind: str
    """`COMPUTE`, or the value of a `WindowKind`."""
    name: str
    duration_fs: int
    hidden_fs: int
    """Window: how long before it the communication began."""
    needs: int = 0
    """Mask of the replays whose results it reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A model chunk of the stage."""

    forward: tuple[Step, ...]
    backward: tuple[Step, ...]
    replays: tuple[Replay, ...]
    """What backward needs first, first: the latest layer and in it the latest unit, what a unit reads before it."""

    @property
    def all_done(self) -> int:
        """Mask of all replays."""
        return (1 << len(self.replays)) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A pipeline stage under a plan."""

    number: int
    chunks: tuple[Chunk, ...]
    filled_kinds: frozenset[str]
    """Kinds of windows in which it recomputes."""
    cap_bytes: int
    """Most that may be there ahead of need."""


def build_stage(profile: Profile, split: Split, plan: StagePlan) -> Stage:
    """The stage that a plan describes.

    Args:
        profile: costs.
        split: layers of all stages and chunks.
        plan: decisions of one stage, of a plan that fits the profile.
    """
    chunks = range(len(split[plan.stage]))
    last = (len(split) - 1, len(split[0]) - 1)
    return Stage(
        number=plan.stage,
        chunks=tuple(
            _chunk(
                profile,
                [entry for entry in plan.layers if entry.chunk == chunk],
                is_first=(plan.stage, chunk) == (0, 0),
                is_last=(plan.stage, chunk) == last,
            )
            for chunk in chunks
        ),
        filled_kinds=frozenset(plan.window_kinds),
        cap_bytes=plan.prefetch_cap_bytes,
    )


def wanted_units(kind: LayerKind, dropped: Sequence[str]) -> tuple[str, ...]:
    """The dropped units that a backward pass replays, in fill order: the latest first, what it reads before it.

    A dropped unit that no backward step and no replay reads is left out: it is never replayed.
    """
    units = {unit.name: unit for unit in kind.units}
    chosen = frozenset(dropped)
    idle = {
        unit
        for unit in chosen
        if (rows := [row for row in kind.storages if row.maker == unit])
        and not any(row.is_brought_back(chosen) for row in rows)
    }
    needed = {unit for step in kind.backward for unit in step.needs} & chosen - idle
    order: list[str] = []

    def add(name: str) -> None:
        if name in chosen and name not in order:
            for source in units[name].reads:
                add(source)
            order.append(name)

    for unit in reversed(kind.units):
        if unit.name in needed:
            add(unit.name)
    return tuple(order)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer by itself: masks count from its own first replay, and replays carry no number of a layer."""

    forward: tuple[Step, ...]
    backward: tuple[Step, ...]
    replays: tuple[Replay, ...]


def _chunk(profile: Profile, layers: Sequence[LayerPlan], *, is_first: bool, is_last: bool) -> Chunk:
    known: dict[tuple[int, tuple[str, ...]], _Layer] = {}
    alone = []
    for entry in layers:
        key = profile.layers[entry.layer], entry.dropped
        if key not in known:
            known[key] = _layer(profile.kind_of(entry.layer), entry.dropped)
        alone.append(known[key])
    replays: list[Replay] = []
    forward: list[Step] = list(_steps(profile.embedding.forward)) if is_first else []
    backward: list[Step] = list(_steps(profile.head.backward)) if is_last else []
    for like in alone:
        forward += like.forward
    for entry, like in zip(reversed(layers), reversed(alone), strict=True):
        first = len(replays)
        backward += [_moved_step(step, first) if step.needs else step for step in like.backward]
        replays += [_moved_replay(replay, entry.layer, first) for replay in like.replays]
    forward += _steps(profile.head.forward) if is_last else ()
    backward += _steps(profile.embedding.backward) if is_first else ()
    return Chunk(forward=tuple(forward), backward=tuple(backward), replays=tuple(replays))


def _layer(kind: LayerKind, dropped: Sequence[str]) -> _Layer:
    chosen, units = frozenset(dropped), {unit.name: unit for unit in kind.units}
    names = wanted_units(kind, dropped)
    places = {name: place for place, name in enumerate(names)}
    replays: list[Replay] = []
    for place, name in enumerate(names):
        rows = [row for row in kind.storages if row.maker == name and row.is_brought_back(chosen)]
        closure = 1 << place
        for source in units[name].reads:
            if source in places:
                closure |= replays[places[source]].closure
        replays.append(
            Replay(
                layer=-1,
                unit=name,
                duration_fs=to_fs(units[name].forward_us),
                nbytes=sum(row.nbytes for row in rows),
                held_bytes=sum(row.nbytes for row in rows if row.held),
                passing=tuple((row.nbytes, _mask(row.replay_readers, places)) for row in rows if not row.held),
                closure=closure,
            )
        )
    forward, backward = tuple(_steps(kind.forward)), tuple(_steps(kind.backward, places))
    return _Layer(forward=forward, backward=backward, replays=tuple(replays))


def _moved_replay(replay: Replay, layer: int, first: int) -> Replay:
    """In a chunk, behind `first` other replays."""
    return Replay(
        layer=layer,
        unit=replay.unit,
        duration_fs=replay.duration_fs,
        nbytes=replay.nbytes,
        held_bytes=replay.held_bytes,
        passing=tuple((nbytes, mask << first) for nbytes, mask in replay.passing),
        closure=replay.closure << first,
    )


def _moved_step(step: Step, first: int) -> Step:
    """The same of a step."""
    return Step(
        kind=step.kind,
        name=step.name,
        duration_fs=step.duration_fs,
        hidden_fs=step.hidden_fs,
        needs=step.needs << first,
    )


def _mask(units: Sequence[str], places: Mapping[str, int]) -> int:
    return sum(1 << places[unit] for unit in set(units) if unit in places)


def _steps(steps: Pass, places: Mapping[str, int] | None = None) -> Iterator[Step]:
    for step in steps:
        yield Step(
            kind=step.kind,
            name=step.name,
            duration_fs=to_fs(step.duration_us),
            hidden_fs=to_fs(_hidden_us(step)),
            needs=_mask(step.needs, places or {}),
        )


def _hidden_us(step: PassStep) -> float:
    return 0.0 if step.kind == COMPUTE else step.hidden_us


def transfer_fs(profile: Profile, stages: int) -> int:
    """Time of a message between two stages.

    Raises:
        ConfigError: there are several stages, and the profile has no figures of a transfer.
    """
    if stages == 1:
        return 0
    link = profile.link(SEND)
    if link is None:
        raise ConfigError(
            f"{stages} pipeline stages and a profile without the link `send`",
            "the time of a transfer between two stages",
            "measure a run with at least two stages",
        )
    return to_fs(link.duration_us(profile.boundary_bytes))
