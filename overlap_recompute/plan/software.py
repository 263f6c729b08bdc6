"""Versions of the packages whose change would make measurements void."""

from importlib.metadata import PackageNotFoundError, version
from platform import python_version

PYTHON = "python"
PACKAGES = ("megatron-core", "torch", "transformer-engine", "overlap-recompute")
"""Another version of one of these may keep and compute something else."""

Versions = tuple[tuple[str, str], ...]


def software_versions() -> Versions:
    """(package, version) of what is installed, Python first."""
    found = [(PYTHON, python_version())]
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return tuple(found)


def differences(recorded: Versions, installed: Versions) -> list[str]:
    """What is not the same, as text; Python itself does not matter. Nothing recorded: nothing to compare."""
    if not recorded:
        return []
    before, now = dict(recorded), dict(installed)
    names = [name for name in dict.fromkeys([*before, *now]) if name != PYTHON]
    return [
        f"{name} {before.get(name, 'absent')} (here {now.get(name, 'absent')})"
        for name in names
        if before.get(name) != now.get(name)
    ]
