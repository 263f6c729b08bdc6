"""Where the adapters put the units that they find: attached, declared, or refused with a reason."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import nn

from megatron.overlap.replacements import Replacements

Result = TypeVar("Result")
SCALES_TWICE = "a replay would count its values twice in the scaling history of low precision"


class UnitSites(Protocol):
    """Takes the units that the adapters name (`Runtime`, or whoever measures them)."""

    def attach_unit(self, module: nn.Module, unit: str, layer: int) -> None:
        """Make a module a unit."""
        ...

    def attach_layer(self, module: nn.Module, layer: int) -> None:
        """Name a layer."""
        ...

    def declare(self, unit: str, layer: int) -> None:
        """Make a unit known that `run` will call."""
        ...

    def run(self, unit: str, layer: int, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call a function as a unit that was declared."""
        ...


class Binder:
    """The units of this rank, by name and global layer index (`layer_number - 1`)."""

    __slots__ = ("runtime", "replacements", "replays_hooks", "refused")

    def __init__(self, runtime: UnitSites, replacements: Replacements, *, replays_hooks: bool) -> None:
        """`replays_hooks`: forward hooks of modules inside a unit may run again in replays."""
        self.runtime, self.replacements, self.replays_hooks = runtime, replacements, replays_hooks
        self.refused: dict[tuple[str, int], str] = {}
        """Units that exist but cannot be dropped, and why."""

    def attach(self, module: nn.Module, unit: str, layer: int) -> None:
        """Make a module a unit."""
        self.runtime.attach_unit(module, unit, layer)

    def declare(self, unit: str, layer: int) -> None:
        """Make a unit known that `run` will call."""
        self.runtime.declare(unit, layer)

    def refuse(self, unit: str, layer: int, reason: str) -> None:
        """Note that a unit cannot be dropped."""
        self.refused[unit, layer] = reason

    def run(self, unit: str, layer: int, function: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """Call a function as a unit that was declared."""
        return self.runtime.run(unit, layer, function, *args, **options)
