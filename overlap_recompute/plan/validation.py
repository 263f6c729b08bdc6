"""Profiles and plans that can be read but make no sense: refused, naming file and field.

`read_profile` and `read_plan` are the border: what they return need not be checked again.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from overlap_recompute.plan.codec import FileError, read_record
from overlap_recompute.plan.plan_file import FORWARD_WAIT, PIPELINE_WINDOW, PLAN_VERSION, Plan, StagePlan
from overlap_recompute.plan.profile import (
    COMPUTE,
    MOST_MICROBATCHES,
    PROFILE_VERSION,
    LayerKind,
    Layout,
    Pass,
    Profile,
    UnitCost,
)
from overlap_recompute.plan.split import layer_count, layers_of
from overlap_recompute.plan.windows import WindowKind

SOURCES = ("measured", "analytic")
_STEP_KINDS = (COMPUTE, *(kind.value for kind in WindowKind))
_LAYER_WINDOW = re.compile(r"(?P<direction>[FB])(?P<layer>0|[1-9][0-9]{0,8})\.(?P<number>0|[1-9][0-9]{0,8})")
_SHARED_SIZES = (
    "tensor_parallel", "context_parallel", "expert_parallel", "sequence_parallel", "micro_batch", "sequence",
)  # fmt: skip
"""Of a layout: a profile holds for these alone, and so does a plan that was made from it."""


def read_profile(path: Path) -> Profile:
    """Read a profile and check that it makes sense.

    Raises:
        FileError: it cannot be read, or a field contradicts another.
    """
    profile = read_record(path, Profile, PROFILE_VERSION)
    check_profile(profile, str(path))
    return profile


def read_plan(path: Path) -> Plan:
    """Read a plan and check that it makes sense.

    Raises:
        FileError: it cannot be read, or a field contradicts another.
    """
    plan = read_record(path, Plan, PLAN_VERSION)
    check_plan(plan, str(path))
    return plan


def check_profile(profile: Profile, source: str) -> None:
    """Refuse a profile whose fields contradict each other.

    Raises:
        FileError: naming `source` and the field.
    """
    place = Place(source, "profile")
    place.require(profile.origin.source in SOURCES, "origin.source", profile.origin.source, " or ".join(SOURCES))
    place.require(bool(profile.kinds), "kinds", "empty", "at least one kind of layer")
    place.require(bool(profile.layers), "layers", "empty", "at least one layer")
    for number, kind in enumerate(profile.layers):
        place.require(kind < len(profile.kinds), f"layers[{number}]", kind, f"below {len(profile.kinds)}, the kinds")
    _check_layout(profile.layout, place)
    layers = layer_count(profile.layout.split)
    place.require(layers == len(profile.layers), "layout.split", f"of {layers} layers", f"{len(profile.layers)} layers")
    for number, kind_of_layer in enumerate(profile.kinds):
        _check_kind(kind_of_layer, place.at(f"kinds[{number}]"))
    passes = (steps for kind in profile.kinds for steps in (kind.forward, kind.backward))
    timed = any(step.duration_us > 0 for steps in passes for step in steps)
    place.require(timed, "kinds", "without a step that takes time", "how long the passes of a layer take")
    for name, end in (("embedding", profile.embedding), ("head", profile.head)):
        for direction, steps in (("forward", end.forward), ("backward", end.backward)):
            _check_steps(steps, (), place.at(f"{name}.{direction}"))
    names = [fit.name for fit in profile.links]
    place.require(len(names) == len(set(names)), "links", "with a name twice", "each name once")
    place.require(profile.static.shards > 0, "static.shards", 0, "at least 1")
    place.require(profile.static.expert_shards > 0, "static.expert_shards", 0, "at least 1")


def check_plan(plan: Plan, source: str) -> None:
    """Refuse a plan whose fields contradict each other.

    Raises:
        FileError: naming `source` and the field.
    """
    place = Place(source, "plan")
    _check_layout(plan.layout, place)
    stages = len(plan.layout.split)
    place.require(len(plan.stages) == stages, "stages", f"of {len(plan.stages)} stages", f"{stages} (layout.split)")
    for number, (stage, chunks) in enumerate(zip(plan.stages, layers_of(plan.layout.split), strict=True)):
        here = place.at(f"stages[{number}]")
        here.require(stage.stage == number, "stage", stage.stage, f"{number}, its place")
        found, count = tuple((entry.layer, entry.chunk) for entry in stage.layers), sum(map(len, chunks))
        here.require(len(found) == count, "layers", f"{len(found)} layers", f"{count}, as layout.split")
        expected = tuple((layer, chunk) for chunk, layers in enumerate(chunks) for layer in layers)
        here.require(found == expected, "layers", _shown(found), f"(layer, chunk) {_shown(expected)}, as layout.split")
        _check_stage(stage, here)
        in_flight = stage.predicted.in_flight
        here.require(
            len(in_flight) == plan.layout.chunks,
            "predicted.in_flight",
            f"of {len(in_flight)} chunks",
            f"{plan.layout.chunks}, as layout.split",
        )


def check_plan_fits(plan: Plan, profile: Profile, source: str) -> None:
    """Refuse a plan that was made for another model than the profile's.

    Raises:
        FileError: naming `source` and the field.
    """
    place = Place(source, "plan")
    place.require(
        plan.model_fingerprint == profile.model_fingerprint,
        "model_fingerprint",
        plan.model_fingerprint,
        f"{profile.model_fingerprint}, that of the profile ({profile.model})",
    )
    for name in _SHARED_SIZES:
        ours, theirs = getattr(plan.layout, name), getattr(profile.layout, name)
        place.require(ours == theirs, f"layout.{name}", ours, f"{theirs}, that of the profile")
    layers = layer_count(plan.layout.split)
    place.require(layers == len(profile.layers), "layout.split", f"of {layers} layers", f"{len(profile.layers)} layers")
    for number, stage in enumerate(plan.stages):
        _check_windows(stage, profile, place.at(f"stages[{number}]"))
        for index, entry in enumerate(stage.layers):
            units = {unit.name: unit for unit in profile.kind_of(entry.layer).units}
            here = place.at(f"stages[{number}].layers[{index}]")
            for unit in entry.dropped:
                here.require(unit in units, "dropped", f"with {unit!r}", f"units of {', '.join(units)}")
                here.require(units[unit].refusal is None, "dropped", f"with {unit}", f"it kept: {units[unit].refusal}")


class Place:
    """Where in a file: complains with the path of a field."""

    __slots__ = ("_source", "_path")

    def __init__(self, source: str, path: str) -> None:
        self._source, self._path = source, path

    def at(self, field: str) -> "Place":
        """A place further down."""
        return Place(self._source, f"{self._path}.{field}")

    def require(self, holds: bool, field: str, found: object, expected: str) -> None:
        """Raise a `FileError` about a field unless the condition holds."""
        if not holds:
            what = f"{self._source}, whose {self._path}.{field} is {found}"
            raise FileError(what, expected, "make the file again, or correct the field")


def _check_layout(layout: Layout, place: Place) -> None:
    here = place.at("layout")
    for name in ("tensor_parallel", "pipeline_parallel", "data_parallel", "context_parallel", "expert_parallel"):
        here.require(getattr(layout, name) > 0, name, 0, "at least 1")
    for name in ("micro_batch", "sequence", "microbatches"):
        here.require(getattr(layout, name) > 0, name, 0, "at least 1")
    most = f"at most {MOST_MICROBATCHES}"
    here.require(layout.microbatches <= MOST_MICROBATCHES, "microbatches", layout.microbatches, most)
    stages = len(layout.split)
    here.require(stages == layout.pipeline_parallel, "split", f"of {stages} stages", f"{layout.pipeline_parallel}")
    chunks = {len(stage) for stage in layout.split}
    here.require(len(chunks) == 1 and 0 not in chunks, "split", f"{layout.split}", "as many chunks on each stage")


def _check_windows(stage: StagePlan, profile: Profile, place: Place) -> None:
    for number, fill in enumerate(stage.fills):
        match = _LAYER_WINDOW.fullmatch(fill.window)
        if match is None:
            continue
        kind = profile.kind_of(int(match["layer"]))
        steps = kind.forward if match["direction"] == "F" else kind.backward
        windows = sum(step.kind != COMPUTE for step in steps)
        known = f"one of the {windows} windows of that pass"
        place.require(int(match["number"]) < windows, f"fills[{number}].window", repr(fill.window), known)


def _check_kind(kind: LayerKind, place: Place) -> None:
    names = [unit.name for unit in kind.units]
    place.require(len(names) == len(set(names)), "units", "with a name twice", "each name once")
    for number, unit in enumerate(kind.units):
        _known(unit.reads, names, place.at(f"units[{number}]"), "reads")
    cycle = _cycle(kind.units)
    place.require(cycle is None, "units", f"with the cycle {cycle}", "units whose reads have an order")
    for number, row in enumerate(kind.storages):
        here = place.at(f"storages[{number}]")
        _known(() if row.maker is None else (row.maker,), names, here, "maker")
        _known(row.replay_readers, names, here, "replay_readers")
    _check_steps(kind.forward, names, place.at("forward"))
    _check_steps(kind.backward, names, place.at("backward"))
    if kind.backward_memory is not None:
        here, steps = place.at("backward_memory"), kind.backward_memory.steps
        here.require(bool(steps), "steps", "empty", "at least one step")
        for number, step in enumerate(steps):
            _known(step.needs, names, here.at(f"steps[{number}]"), "needs")
        _known((each.unit for each in kind.backward_memory.replays), names, here, "replays")


def _check_steps(steps: Pass, names: Collection[str], place: Place) -> None:
    for number, step in enumerate(steps):
        here = place.at(f"[{number}]")
        here.require(step.kind in _STEP_KINDS, "kind", repr(step.kind), f"one of {', '.join(_STEP_KINDS)}")
        _known(step.needs, names, here, "needs")


def _check_stage(stage: StagePlan, place: Place) -> None:
    kinds = [kind.value for kind in WindowKind]
    for name in stage.window_kinds:
        place.require(name in kinds, "window_kinds", f"with {name!r}", f"some of {', '.join(kinds)}")
    for index, entry in enumerate(stage.layers):
        twice = len(entry.dropped) != len(set(entry.dropped))
        place.require(not twice, f"layers[{index}].dropped", "with a unit twice", "each unit at most once")
    dropped = {(entry.layer, unit) for entry in stage.layers for unit in entry.dropped}
    filled = [(fill.layer, fill.unit) for fill in stage.fills]
    layers = {entry.layer for entry in stage.layers}
    place.require(len(filled) == len(set(filled)), "fills", "with a unit twice", "each dropped unit at most once")
    for number, fill in enumerate(stage.fills):
        here = place.at(f"fills[{number}]")
        here.require((fill.layer, fill.unit) in dropped, "unit", f"{fill.unit} of layer {fill.layer}", "a dropped unit")
        match = _LAYER_WINDOW.fullmatch(fill.window)
        is_window = match is not None or fill.window in (PIPELINE_WINDOW, FORWARD_WAIT)
        here.require(is_window, "window", repr(fill.window), "P, PF, or a window such as B7.1 or F7.0")
        is_here = match is None or int(match["layer"]) in layers
        here.require(is_here, "window", repr(fill.window), "a window of a layer of this stage")


def _known(used: Iterable[str], names: Collection[str], place: Place, field: str) -> None:
    for name in used:
        place.require(name in names, field, f"with {name!r}", f"units of {', '.join(names) or '(none here)'}")


def _cycle(units: Iterable[UnitCost]) -> str | None:
    """The first cycle among dependencies, as text."""
    reads = {unit.name: unit.reads for unit in units}
    done: set[str] = set()
    for start in reads:
        trail: list[str] = []
        stack = [(start, iter(reads[start]))]
        while stack:
            name, rest = stack[-1]
            if name not in trail:
                trail.append(name)
            following = next((other for other in rest if other not in done), None)
            if following is None:
                done.add(name)
                trail.remove(name)
                stack.pop()
            elif following in trail:
                return " -> ".join([*trail[trail.index(following) :], following])
            else:
                stack.append((following, iter(reads[following])))
    return None


def _shown(pairs: tuple[tuple[int, int], ...]) -> str:
    text = str(list(pairs))
    return text if len(text) <= 80 else text[:77] + "..."
