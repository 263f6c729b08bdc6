"""Finding the units of a model by name, and standing in for their `forward` (docs/runtime.md, R1, R15)."""

import difflib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.runtime.state import NO_LAYER

_ABSENT = object()


class Match(NamedTuple):
    """A module that a pattern names."""

    module: nn.Module
    unit: str
    layer: int
    layer_path: str | None
    """Path of the layer that the module belongs to; None outside of layers."""


def find_units(model: nn.Module, pattern: str) -> list[Match]:
    """The modules of `model` that `pattern` names.

    A pattern is a path in which `*` stands for one part: `blocks.*.norm`. What the first `*` stands for is the layer
    (its number, or its rank among the matches), what follows is the name of the unit (`norm`). Without a `*` the
    module is in no layer (-1), and the whole path is its name.

    Raises:
        ConfigError: nothing matches; the message shows the nearest paths.
    """
    expression = re.compile(r"\.".join("([^.]+)" if part == "*" else re.escape(part) for part in pattern.split(".")))
    star = pattern.split(".").index("*") if "*" in pattern.split(".") else None
    found = [(path, module) for path, module in model.named_modules() if path and expression.fullmatch(path)]
    if not found:
        raise _no_match(model, pattern)
    if star is None:
        return [Match(module, path, NO_LAYER, None) for path, module in found]
    labels = list(dict.fromkeys(path.split(".")[star] for path, _ in found))
    matches = []
    for path, module in found:
        parts = path.split(".")
        label = parts[star]
        layer = int(label) if label.isdecimal() else labels.index(label)
        matches.append(Match(module, ".".join(parts[star + 1 :]) or "layer", layer, ".".join(parts[: star + 1])))
    return matches


def _no_match(model: nn.Module, pattern: str) -> ConfigError:
    paths = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", path) for path, _ in model.named_modules() if path))
    near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3) or paths[:3]
    return ConfigError(
        f"the unit pattern {pattern!r}, which names no module of {type(model).__name__}",
        f"a path such as {', '.join(near) or '(the model has no submodules)'}",
        "name a submodule, with * in place of the layer's number",
    )


class Attachments:
    """The modules whose `forward` is replaced; puts back exactly what was there."""

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before: dict[nn.Module, object] = {}

    def __contains__(self, module: nn.Module) -> bool:
        return module in self._before

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._before)

    def replace(self, module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Set `module.forward` to what `make` returns for the present one.

        Raises:
            ConfigError: the module is attached already, or its `forward` is compiled and cannot be replaced.
        """
        if module in self._before:
            raise ConfigError(
                f"a {type(module).__name__} that is attached already",
                "a module that is one unit, or one layer",
                "name it once, or call detach() first",
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigError(
                f"the scripted module {type(module).__name__}",
                "a module whose forward is Python code",
                "attach the module before scripting it, or leave it out",
            )
        before = module.__dict__.get("forward", _ABSENT)
        module.__dict__["forward"] = make(module.forward)
        self._before[module] = before

    def restore(self) -> None:
        """Undo every replacement."""
        for module, before in reversed(self._before.items()):
            if before is _ABSENT:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before
        self._before.clear()
