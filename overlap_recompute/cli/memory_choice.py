"""What is dropped: by a plan, or by the trainer's own flags."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from overlap_recompute.plan.counted import CountedModel
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.policy_text import parse_policy
from overlap_recompute.plan.profile import Layout
from overlap_recompute.plan.split import Split, layer_count, layers_of
from overlap_recompute.plan.storages import brought_back_bytes_of
from overlap_recompute.plan.validation import read_plan

SWITCH, SERIALIZE = "--overlap-recompute", "--overlap-recompute-serialize"
POLICY, PLAN, CAP = "--overlap-recompute-policy", "--overlap-recompute-plan", "--overlap-recompute-prefetch-mib"
STOCK = "--recompute-granularity"
LAYERS_AHEAD = 2
"""Without a cap of the user's the runtime brings back at most what so many layers drop."""
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What each layer drops, on which stage it is, and how much may be recomputed ahead."""

    text: str
    """For people."""
    split: Split
    dropped: dict[int, frozenset[str]]
    """By layer of the model."""
    cap_bytes: tuple[int, ...]
    """By stage."""


def choice_of(counted: CountedModel, words: Sequence[str], plan: tuple[Path, Plan] | None) -> Choice:
    """The choice that a plan, or the flags of a run, make.

    Args:
        counted: the model.
        words: flags of a run.
        plan: one, and the file that it was read from; None: the flags say what is dropped.

    Raises:
        UserError: a plan for another model, or a policy that cannot be read.
    """
    text = value_of(words, PLAN)
    if plan is None and text is not None:
        plan = Path(text), read_plan(Path(text))
    if plan is not None:
        return _of_plan(counted, *plan)
    text = value_of(words, POLICY)
    if SWITCH not in words and text is None:
        stock = value_of(words, STOCK)
        return _keeping_all(counted, "no recompute" if stock is None else f"stock recompute: {stock}")
    return _of_policy(counted, words, text or "all")


def value_of(words: Sequence[str], flag: str) -> str | None:
    """The last value of a flag, given as two words or joined by `=`."""
    found = None
    for index, word in enumerate(words):
        if word == flag and index + 1 < len(words):
            found = words[index + 1]
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


def droppable(counted: CountedModel, layer: int, units: Sequence[str]) -> frozenset[str]:
    """Those of the units that a layer can drop."""
    return frozenset(unit.name for unit in counted.kind_of(layer).units if unit.refusal is None and unit.name in units)


def _keeping_all(counted: CountedModel, text: str) -> Choice:
    split = counted.layout.split
    return Choice(text=text, split=split, dropped={}, cap_bytes=(0,) * len(split))


def _of_policy(counted: CountedModel, words: Sequence[str], text: str) -> Choice:
    split = counted.layout.split
    policy = parse_policy(text, len(split), flag=POLICY)
    dropped = {
        layer: droppable(counted, layer, policy.stages[stage].units)
        for stage, chunks in enumerate(layers_of(split))
        for layers in chunks
        for layer in layers
    }
    if policy.on_demand or SERIALIZE in words or not _has_windows(counted.layout):
        return Choice(text=f"policy {text}, on demand", split=split, dropped=dropped, cap_bytes=(0,) * len(split))
    given = value_of(words, CAP)
    caps = tuple(
        int(float(given) * MIB) if given is not None else _default_cap_bytes(counted, chunks, dropped)
        for chunks in layers_of(split)
    )
    return Choice(text=f"policy {text}", split=split, dropped=dropped, cap_bytes=caps)


def _has_windows(layout: Layout) -> bool:
    """Whether a rank ever waits for another one while a microbatch is on its way."""
    sizes = (layout.tensor_parallel, layout.pipeline_parallel, layout.context_parallel, layout.expert_parallel)
    return max(sizes) > 1


def _default_cap_bytes(counted: CountedModel, chunks: Sequence[range], dropped: dict[int, frozenset[str]]) -> int:
    layers = [layer for chunk in chunks for layer in chunk]
    most = (brought_back_bytes_of(counted.kind_of(layer).storages, dropped[layer]) for layer in layers)
    return LAYERS_AHEAD * max(most, default=0)


def _of_plan(counted: CountedModel, path: Path, plan: Plan) -> Choice:
    layers = len(counted.layers)
    if plan.model_fingerprint != counted.model_fingerprint or layer_count(plan.layout.split) != layers:
        raise ConfigError(
            f"{path} for the model {plan.model_fingerprint} of {layer_count(plan.layout.split)} layers",
            f"a plan for {counted.model_fingerprint} of {layers} layers, the model of the flags",
            "give the flags of the run that was profiled",
        )
    return Choice(
        text=f"plan {path.name} ({plan.planner})",
        split=plan.layout.split,
        dropped={entry.layer: frozenset(entry.dropped) for stage in plan.stages for entry in stage.layers},
        cap_bytes=tuple(stage.prefetch_cap_bytes for stage in plan.stages),
    )
