"""A seam: one place in megatron-core that is adjusted right after the module there has been imported."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from types import ModuleType

from overlap_recompute.plan.errors import UserError

SUPPORTED_MEGATRON_CORE = "0.16.1"
"""The version of megatron-core whose files the seams were read in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A function that a seam relies on."""

    name: str
    """Dotted name inside the module, e.g. "CheckpointWithoutOutput.__init__"."""

    parameters: tuple[str, ...]
    """Its parameter names, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seam:
    """An adjustment of one upstream module."""

    module: str
    """The module's dotted name; its file is named in the first line of the file that defines the seam."""

    purpose: str
    """What would go wrong without it, in a few words."""

    expects: tuple[Expected, ...]
    """What upstream must look like for the adjustment to be right."""

    adjust: Callable[[ModuleType], None]
    """Changes the freshly imported module. Must be harmless when it is called twice."""

    def apply(self, module: ModuleType) -> None:
        """Check that the module looks as expected, then adjust it.

        Raises:
            UserError: the installed megatron-core has a different shape here.
        """
        for expected in self.expects:
            _check(self.module, module, expected)
        self.adjust(module)


def _check(module_name: str, module: ModuleType, expected: Expected) -> None:
    wanted = f"{expected.name}({', '.join(expected.parameters)})"
    try:
        parameters = tuple(inspect.signature(attrgetter(expected.name)(module)).parameters)
    except (AttributeError, TypeError):
        found = f"no function {expected.name} in {module_name}"
    else:
        if parameters == expected.parameters:
            return
        found = f"{expected.name}({', '.join(parameters)}) in {module_name}"
    raise UserError(
        found=found,
        expected=f"{wanted}, as in megatron-core {SUPPORTED_MEGATRON_CORE}",
        next_step=f"install megatron-core=={SUPPORTED_MEGATRON_CORE}",
    )
