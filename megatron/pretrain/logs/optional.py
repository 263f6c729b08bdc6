"""Packages that a run can do without: found out before training, loaded only where they are used."""

import importlib
import importlib.util
from types import ModuleType

from overlap_recompute.plan.errors import ConfigError


def is_installed(module: str) -> bool:
    """Whether `module` could be imported; looks at its top-level package only and loads nothing."""
    return importlib.util.find_spec(module.split(".")[0]) is not None


def require(module: str, *, wanted_by: str, package: str) -> None:
    """Check that an optional package is there without loading it.

    Args:
        module: what will be imported ("tensorboard").
        wanted_by: the flag or tool that needs it ("--tensorboard-dir runs/tb").
        package: what to give to pip.

    Raises:
        ConfigError: it is not installed.
    """
    if not is_installed(module):
        raise ConfigError(
            f"{wanted_by} but no Python package '{package}'",
            f"'{package}' to be installed for it",
            f"run `pip install {package}` or leave it out",
        )


def load(module: str, *, wanted_by: str, package: str) -> ModuleType:
    """Import an optional module; arguments and errors as in `require`."""
    require(module, wanted_by=wanted_by, package=package)
    return importlib.import_module(module)
