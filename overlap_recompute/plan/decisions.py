"""Which units keep their output and which are recomputed: a small, immutable policy."""

import difflib
import enum
from collections.abc import Iterable
from dataclasses import dataclass

from overlap_recompute.plan.errors import ConfigError


class Decision(enum.Enum):
    """What happens to what a unit computes (the words of `torch.utils.checkpoint.CheckpointPolicy`)."""

    SAVE = "save"
    """Its output, and what it saves inside itself, stay in memory until backward has used them."""
    RECOMPUTE = "recompute"
    """Both are dropped after the forward pass and computed again from the unit's inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitDecision:
    """The decision for one unit name, in one layer or in all of them."""

    unit: str | None
    """Name of the unit; None for every unit."""
    layer: int | None
    """Index of the layer; None for every layer."""
    decision: Decision
    """SAVE or RECOMPUTE."""

    def concerns(self, unit: str, layer: int) -> bool:
        """Whether this rule says anything about `unit` of `layer`."""
        return self.unit in (None, unit) and self.layer in (None, layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """SAVE or RECOMPUTE for each unit of each layer; the last rule that concerns a unit decides, SAVE if none does."""

    rules: tuple[UnitDecision, ...] = ()
    """Rules in the order in which they are read."""

    def decision(self, unit: str, layer: int) -> Decision:
        """The decision for `unit` in `layer`."""
        found = (rule.decision for rule in reversed(self.rules) if rule.concerns(unit, layer))
        return next(found, Decision.SAVE)

    def then(self, other: "Policy") -> "Policy":
        """This policy with the rules of `other` read after its own."""
        return Policy(rules=(*self.rules, *other.rules))

    @classmethod
    def save_all(cls) -> "Policy":
        """Nothing is recomputed."""
        return cls()

    @classmethod
    def recompute_all(cls) -> "Policy":
        """Every unit is recomputed."""
        return cls(rules=(UnitDecision(unit=None, layer=None, decision=Decision.RECOMPUTE),))

    @classmethod
    def recompute(cls, *units: str, layers: Iterable[int] | None = None) -> "Policy":
        """The named units are recomputed, in `layers` (None: in every layer); all others are kept."""
        return cls(rules=_rules(units, layers, Decision.RECOMPUTE))

    @classmethod
    def save(cls, *units: str, layers: Iterable[int] | None = None) -> "Policy":
        """The named units are kept: what `then` takes to make exceptions from a policy that recomputes."""
        return cls(rules=_rules(units, layers, Decision.SAVE))

    def check(self, known: Iterable[tuple[str, int]]) -> None:
        """Refuse a rule about a unit or a layer that does not exist.

        Args:
            known: every (unit, layer) of the model.

        Raises:
            ConfigError: naming the rule, what exists, and the nearest name.
        """
        pairs = tuple(known)
        for rule in self.rules:
            if not any(rule.concerns(unit, layer) for unit, layer in pairs):
                raise _unknown(rule, pairs)


def _rules(units: tuple[str, ...], layers: Iterable[int] | None, decision: Decision) -> tuple[UnitDecision, ...]:
    places: tuple[int | None, ...] = (None,) if layers is None else tuple(layers)
    return tuple(UnitDecision(unit=unit, layer=layer, decision=decision) for layer in places for unit in units)


def _unknown(rule: UnitDecision, pairs: tuple[tuple[str, int], ...]) -> ConfigError:
    place = "" if rule.layer is None else f" in layer {rule.layer}"
    names = sorted({unit for unit, layer in pairs if rule.layer in (None, layer)})
    near = difflib.get_close_matches(rule.unit or "", names, n=1)
    layers = sorted({layer for _, layer in pairs})
    span = f"layers {layers[0]} to {layers[-1]}" if layers else "no layers"
    hint = f"write {near[0]!r} if that was meant" if near else "name a unit that the model has, or attach this one"
    return ConfigError(
        f"a policy rule for unit {rule.unit or 'of any name'!r}{place}",
        f"one of the units {', '.join(names) or '(none here)'} of {span}",
        hint,
    )
