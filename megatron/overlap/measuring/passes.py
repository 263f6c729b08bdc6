"""From marks to parts: the steps of each layer, of what comes before the first one and behind the last one.

NOTE [ what a step is called, and what it needs ]
1. Forward: a step inside a unit has the unit's name. What lies between has the name of what upstream computes there
   (`BEHIND_UNIT`, `BEHIND_WINDOW`); the little that lies between two units is counted with the later one.
2. Backward: from the moment when the gradient of a unit's output is complete, the unit's backward pass runs; the step
   has its name. Of several outputs the first one counts.
3. A step of the backward pass needs the unit, the units that it reads (a saved argument is their output), and the unit
   whose gradient it completes: what lies between the two may have saved its output. Several steps may name a unit; the
   first one in order is the one that matters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from megatron.overlap.measuring.marks import At, Mark
from overlap_recompute.plan.layer_units import EXPERTS, kind_of
from overlap_recompute.plan.profile import COMPUTE

BEFORE, BEHIND = -1, -2
"""Parts of a pass that are no layer: up to the first one; from the last one on."""
DATA, EMBEDDING, HEAD, PROJECTION, SECOND_LINEAR, OTHER = (
    "data", "embedding", "head", "linear_proj", "linear_fc2", "other",
)  # fmt: skip
BEHIND_UNIT: Mapping[str, str] = {
    "input_layernorm": "linear_qkv",
    "linear_qkv": "core_attention",
    "core_attention": PROJECTION,
    "pre_mlp_layernorm": "linear_fc1",
    "linear_fc1": "activation",
    "activation": SECOND_LINEAR,
}
BEHIND_WINDOW: Mapping[str, str] = {"all_reduce": "bias_dropout_add", "reduce_scatter": "bias_dropout_add"}
"""Behind other collectives goes on what was there before."""
_BETWEEN = ""
"""Of no name of its own."""


class Step(NamedTuple):
    """One part of a pass as it was measured once."""

    kind: str
    name: str
    us: float
    needs: tuple[str, ...] = ()
    hidden_us: float = 0.0
    """Of a window: from the launch to the wait."""
    nbytes: int = 0
    was_over: bool = False


@dataclass(slots=True, kw_only=True)
class MeasuredPass:
    """A forward or a backward pass of one microbatch through one chunk."""

    chunk: int
    parts: dict[int, list[Step]] = field(default_factory=dict)
    """By layer, `BEFORE` and `BEHIND`, in order."""
    units: dict[int, dict[str, float]] = field(default_factory=dict)
    """Forward: time inside units, by layer and kind of unit; experts together."""
    begin_us: float = 0.0
    end_us: float = 0.0

    def add(self, part: int, step: Step) -> None:
        """Append a step, or join it with what it belongs to."""
        steps = self.parts.setdefault(part, [])
        last = steps[-1] if steps else None
        if last is not None and last.kind == step.kind == COMPUTE and last.name in (step.name, _BETWEEN):
            steps[-1] = step._replace(us=last.us + step.us)
        else:
            steps.append(step)


Reads = Mapping[int, Mapping[str, Sequence[str]]]


def forward_pass(marks: Sequence[Mark], times_us: Sequence[float]) -> MeasuredPass:
    """The parts of one forward pass, from its mark PASS to PASS_END."""
    found = MeasuredPass(chunk=marks[0].layer, begin_us=times_us[0], end_us=times_us[-1])
    last_layer = max((i for i, mark in enumerate(marks) if mark.at is At.LAYER_END), default=-1)
    present = {(mark.layer, mark.unit) for mark in marks if mark.at is At.UNIT}
    mixtures = {layer for layer, unit in present if unit.startswith(EXPERTS)}
    part, name, unit, began_us = BEFORE, DATA, "", 0.0
    launch_us: float | None = None
    for index, mark in enumerate(marks[:-1]):
        at, now_us = mark.at, times_us[index]
        if at is At.MODEL:
            name = EMBEDDING
        elif at is At.LAYER:
            part, name = mark.layer, _BETWEEN
        elif at is At.LAYER_END:
            part, name = (BEHIND, HEAD) if index == last_layer else (part, _BETWEEN)
        elif at is At.UNIT:
            name = unit = kind_of(mark.unit)
            began_us = now_us
        elif at is At.UNIT_END:
            name, unit = _behind(kind_of(mark.unit), part, present, part in mixtures), ""
            times = found.units.setdefault(part, {})
            times[kind_of(mark.unit)] = times.get(kind_of(mark.unit), 0.0) + now_us - began_us
        elif at is At.LAUNCH:
            launch_us = now_us
        elif at is At.WAIT_END and mark.communication is not None and not unit:
            name = _behind_window(mark.communication.collective, name, part)
        step = _step(mark, marks[index + 1], name, times_us[index + 1] - now_us, ())
        if at is At.WAIT and launch_us is not None:
            step, launch_us = step._replace(hidden_us=now_us - launch_us), None
        found.add(part, step)
    _settle(found)
    return found


def backward_pass(marks: Sequence[Mark], times_us: Sequence[float], reads: Reads) -> MeasuredPass:
    """The parts of one backward pass, from its first mark to BACKWARD_END."""
    found = MeasuredPass(chunk=marks[-1].layer, begin_us=times_us[0], end_us=times_us[-1])
    numbers = _first_of_each(marks)
    kept = [marks[number] for number in numbers]
    at_us = [times_us[number] for number in numbers]
    following = _units_to_come(kept)
    part, name = BEHIND, HEAD
    launch_us: float | None = None
    base: tuple[str, ...] = ()
    for index, mark in enumerate(kept[:-1]):
        at, now_us = mark.at, at_us[index]
        if at is At.GRAD_LAYER:
            part, name, base = mark.layer, SECOND_LINEAR, ()
        elif at is At.GRAD_INPUT:
            part, name, base = BEFORE, EMBEDDING, ()
        elif at is At.GRAD_SUM:
            name, base = PROJECTION, ()
        elif at is At.GRAD_UNIT:
            name = kind_of(mark.unit)
            base = (name, *reads.get(mark.layer, {}).get(name, ()))
        elif at is At.LAUNCH:
            launch_us = now_us
        needs = tuple(dict.fromkeys((*base, *following[index]))) if part >= 0 else ()
        step = _step(mark, kept[index + 1], name, at_us[index + 1] - now_us, needs)
        if at is At.WAIT and launch_us is not None:
            step, launch_us = step._replace(hidden_us=now_us - launch_us), None
        found.add(part, step)
    _settle(found)
    return found


def _step(mark: Mark, following: Mark, name: str, us: float, needs: tuple[str, ...]) -> Step:
    if mark.at is At.WAIT and mark.communication is not None:
        what = mark.communication
        over = following.communication is not None and following.communication.was_over
        return Step(what.kind.value, what.collective, us, nbytes=what.nbytes, was_over=over)
    return Step(COMPUTE, name, us, needs)


def _behind(unit: str, layer: int, present: set[tuple[int, str]], has_experts: bool) -> str:
    """What runs behind a unit in a forward pass: nothing with a name where a unit follows."""
    name = BEHIND_UNIT.get(unit, _BETWEEN)
    if (layer, name) in present or (unit == "linear_qkv" and (layer, "rotary") in present):
        return _BETWEEN
    if has_experts and unit == "pre_mlp_layernorm":
        return "router"
    if has_experts and name == "activation":
        return _BETWEEN
    return name


def _behind_window(collective: str, before: str, part: int) -> str:
    return BEHIND_WINDOW.get(collective, before) if part >= 0 else before


def _settle(found: MeasuredPass) -> None:
    """Count what has no name with the compute step behind it; at the end, or before a window, with the one before."""
    for part, steps in found.parts.items():
        settled: list[Step] = []
        for step in steps:
            if settled and step.kind == settled[-1].kind == COMPUTE and _belongs(step, settled[-1]):
                settled[-1] = settled[-1]._replace(us=settled[-1].us + step.us)
            else:
                settled.append(step._replace(name=step.name or OTHER))
        found.parts[part] = settled


def _belongs(step: Step, before: Step) -> bool:
    return step.name == _BETWEEN or (step.name == before.name and step.needs == before.needs)


def _first_of_each(marks: Sequence[Mark]) -> list[int]:
    """Numbers of the marks that count: not further gradients of a unit, nor a BACKWARD behind a layer's gradient."""
    seen: set[tuple[At, str, int]] = set()
    kept: list[int] = []
    for number, mark in enumerate(marks):
        key = (mark.at, mark.unit, mark.layer)
        is_gradient = mark.at in (At.GRAD_UNIT, At.GRAD_SUM, At.GRAD_LAYER, At.GRAD_INPUT)
        if (is_gradient and key in seen) or (mark.at is At.BACKWARD and number):
            continue
        seen.add(key)
        kept.append(number)
    return kept


def _units_to_come(marks: Sequence[Mark]) -> list[tuple[str, ...]]:
    """For each mark the unit whose gradient is completed next, within its layer and its half."""
    found: list[tuple[str, ...]] = []
    coming: tuple[str, ...] = ()
    for mark in reversed(marks):
        found.append(coming)
        if mark.at is At.GRAD_UNIT:
            coming = (kind_of(mark.unit),)
        elif mark.at in (At.GRAD_SUM, At.GRAD_LAYER, At.GRAD_INPUT):
            coming = ()
    return found[::-1]
