"""Replacing attributes of modules and objects, and putting back exactly what was there."""

from types import ModuleType
from typing import Any

from torch import nn

from megatron.pretrain.platform.seam import Expected, Seam

_ABSENT = object()


class Replacements:
    """Attributes that were replaced; `restore` undoes them in reverse order."""

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before: list[tuple[dict[str, Any], str, Any]] = []

    def set(self, owner: nn.Module | ModuleType, name: str, value: Any) -> None:
        """Set an attribute of this very object: of a module instance, not of its class."""
        attributes = owner.__dict__
        self._before.append((attributes, name, attributes.get(name, _ABSENT)))
        attributes[name] = value

    def restore(self) -> None:
        """Undo every replacement."""
        while self._before:
            attributes, name, value = self._before.pop()
            if value is _ABSENT:
                del attributes[name]
            else:
                attributes[name] = value


def require_shape(module: ModuleType, purpose: str, *expects: Expected) -> None:
    """Check that an upstream module looks as the adapter that calls this was written for.

    Args:
        module: the imported module.
        purpose: what the adapter does there.
        expects: functions and their parameters.

    Raises:
        UserError: the installed megatron-core has a different shape.
    """
    Seam(module=module.__name__, purpose=purpose, expects=expects, adjust=_leave).apply(module)


def _leave(module: ModuleType) -> None:
    """An adapter changes instances, later; the check is all that is wanted here."""
