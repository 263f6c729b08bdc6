"""Tensors inside tuples, lists and dictionaries, without the cost of a general tree library."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

SEQUENCES = (tuple, list)
CONTAINERS = (*SEQUENCES, dict)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a value, depth first; other objects than tuples, lists and dictionaries are not looked into."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, SEQUENCES):
        return []
    found: list[Tensor] = []
    for item in value:
        found += tensors_in(item)
    return found


def replace(value: Any, wanted: Callable[[Any], bool], change: Callable[[Any], Any]) -> Any:
    """A copy of a container with `change` applied to the leaves that are `wanted`; other values come back as they are.

    Named tuples and subclasses of `dict` keep their type where it can be built from the same parts.
    """
    if wanted(value):
        return change(value)
    if isinstance(value, dict):
        items = {key: replace(item, wanted, change) for key, item in value.items()}
        return items if type(value) is dict else _rebuilt(value, items)
    if isinstance(value, SEQUENCES):
        parts = [replace(item, wanted, change) for item in value]
        if type(value) in (tuple, list):
            return type(value)(parts)
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _rebuilt(original: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    copy = original.copy()
    copy.update(items)
    return copy
