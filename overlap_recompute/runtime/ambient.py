"""The surroundings of a unit's forward pass, entered again for its replay (docs/runtime.md, R7)."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from overlap_recompute.ops.comparisons import same_attributes

AutocastState = tuple[tuple[str, bool, torch.dtype], ...]


class ContextProvider(Protocol):
    """A context manager of the user that changes what a unit computes, such as FP8 or a choice of kernels."""

    def capture(self) -> Any:
        """What is in force now; None when nothing is. Called before every dropped unit: must be cheap."""
        ...

    def enter(self, captured: Any) -> AbstractContextManager[Any]:
        """A context manager that puts it in force again, without the side effects of the first time."""
        ...


class Surroundings(NamedTuple):
    """What was in force when a unit ran."""

    autocast: AutocastState | None
    """None when no device type was under autocast."""
    training: tuple[bool, ...]
    """`training` of the unit's modules."""
    contexts: tuple[Any, ...]
    versions: tuple[int, ...]
    """In-place versions of the unit's parameters."""


class Ambient:
    """Captures and re-enters autocast, train/eval flags and the user's contexts."""

    __slots__ = ("_device_types", "_providers")

    def __init__(self, providers: Sequence[ContextProvider]) -> None:
        accelerator = torch.accelerator.current_accelerator()
        self._device_types = tuple({"cpu": 0, "cuda": 0, accelerator.type if accelerator else "cpu": 0})
        self._providers = tuple(providers)

    def autocast(self) -> AutocastState | None:
        """The autocast state of all device types, None when all are off."""
        if not torch._C._is_any_autocast_enabled():
            return None
        return tuple((k, torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in self._device_types)

    def capture(
        self, modules: tuple[nn.Module, ...], parameters: tuple[nn.Parameter, ...], last: Surroundings | None
    ) -> Surroundings:
        """What is in force now for a unit of these modules and parameters; `last` itself if that has not changed."""
        if last is not None and not self._providers and _is_as(last, modules, parameters):
            return last
        autocast = self.autocast()
        training = tuple([module.training for module in modules])
        versions = tuple([parameter._version for parameter in parameters]) if parameters else ()
        return Surroundings(autocast, training, tuple([p.capture() for p in self._providers]), versions)

    def enter(self, wanted: Surroundings, modules: tuple[nn.Module, ...]) -> "ExitStack | None":
        """Put it in force; returns what undoes it, None when nothing had to be done."""
        present = self.autocast()
        if (
            present is None
            and wanted.autocast is None
            and not self._providers
            and same_attributes(modules, "training", wanted.training)
        ):
            return None
        flags = tuple([module.training for module in modules])
        contexts = [(p, c) for p, c in zip(self._providers, wanted.contexts, strict=True) if c is not None]
        stack = ExitStack()
        try:
            if present is not None or wanted.autocast is not None:
                stack.callback(_set_autocast, present or self._off(), torch.is_autocast_cache_enabled())
                # A cast made on another stream, or outside of the region it was cached for, must not be shared.
                _set_autocast(wanted.autocast or self._off(), False)
            if flags != wanted.training:
                stack.callback(_set_training, modules, flags)
                _set_training(modules, wanted.training)
            for provider, captured in contexts:
                stack.enter_context(provider.enter(captured))
        except BaseException:
            stack.close()
            raise
        return stack

    def _off(self) -> AutocastState:
        return tuple((kind, False, torch.get_autocast_dtype(kind)) for kind in self._device_types)


def _is_as(last: Surroundings, modules: tuple[nn.Module, ...], parameters: tuple[nn.Parameter, ...]) -> bool:
    """Whether nothing has changed; False under autocast, where more has to be looked at."""
    if last.autocast is not None or torch._C._is_any_autocast_enabled():
        return False
    return same_attributes(parameters, "_version", last.versions) and same_attributes(
        modules, "training", last.training
    )


def are_at(parameters: tuple[nn.Parameter, ...], versions: tuple[int, ...]) -> bool:
    """Whether the parameters have these in-place versions."""
    return same_attributes(parameters, "_version", versions)


def _set_autocast(state: AutocastState, cache: bool) -> None:
    for kind, enabled, dtype in state:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)
    torch.set_autocast_cache_enabled(cache)


def _set_training(modules: Iterable[nn.Module], flags: Iterable[bool]) -> None:
    for module, flag in zip(modules, flags, strict=True):
        module.training = flag
