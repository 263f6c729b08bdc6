"""From what a stage is told to drop to a policy for the units that it has."""

from collections.abc import Mapping, Sequence

from megatron.overlap.settings import OverlapSettings
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.layer_units import kind_of
from overlap_recompute.runtime import Decision, Policy, UnitDecision

UnitKey = tuple[str, int]


def choose_policy(
    settings: OverlapSettings, units: Sequence[UnitKey], refused: Mapping[UnitKey, str], layers: Sequence[int]
) -> tuple[Policy, tuple[str, ...]]:
    """The policy of a stage, and what the reader of the log should know.

    Args:
        settings: names what to drop.
        units: (name, layer) of every unit that can be dropped.
        refused: (name, layer) of those that cannot, and why.
        layers: global indices of the layers that this rank holds.

    Raises:
        ConfigError: a unit was named that no layer of this rank can drop.
    """
    if settings.planned is not None:
        return _planned_policy(settings.planned, units, refused), ()
    notes = []
    for kind in settings.drop.units:
        reasons = {reason for (unit, _), reason in refused.items() if kind_of(unit) == kind}
        exists = any(kind_of(unit) == kind for unit, _ in units)
        if settings.drop.by_name and layers and not exists:
            raise _cannot_drop(kind, settings.stage, reasons)
        notes += [f"{kind} is kept on stage {settings.stage}: {reason}" for reason in sorted(reasons)]
    rules = tuple(
        UnitDecision(unit=unit, layer=layer, decision=Decision.RECOMPUTE)
        for unit, layer in units
        if kind_of(unit) in settings.drop.units
    )
    return Policy(rules=rules), tuple(notes)


def _planned_policy(
    planned: Mapping[int, tuple[str, ...]], units: Sequence[UnitKey], refused: Mapping[UnitKey, str]
) -> Policy:
    """Drops of each layer what a plan says."""
    rules = []
    for layer, kinds in planned.items():
        for kind in kinds:
            found = [unit for unit, number in units if number == layer and kind_of(unit) == kind]
            if not found:
                reasons = {why for (unit, number), why in refused.items() if number == layer and kind_of(unit) == kind}
                raise ConfigError(
                    f"a plan that drops {kind} of layer {layer}: {'; '.join(reasons) or 'it has no such unit'}",
                    "units that this model can drop",
                    "measure a profile of this run, and plan from it",
                )
            rules += [UnitDecision(unit=unit, layer=layer, decision=Decision.RECOMPUTE) for unit in found]
    return Policy(rules=tuple(rules))


def summary_of(policy: Policy) -> str:
    """What a policy of `choose_policy` drops, for the log."""
    names = [rule.unit for rule in policy.rules]
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return ", ".join(f"{name} of {count} layers" for name, count in counts.items()) or "keeps everything"


def _cannot_drop(kind: str, stage: int, reasons: set[str]) -> ConfigError:
    why = "; ".join(sorted(reasons)) or "its layers have no such unit"
    return ConfigError(
        f"--overlap-recompute-policy with {kind} on pipeline stage {stage}, which cannot drop it: {why}",
        "units that exist, and whose replay runs no collective",
        f"leave {kind} out for this stage; all drops what can be dropped",
    )
