"""Which of the optional and required packages are installed, for the start-up log."""

import importlib.util
import platform
from dataclasses import dataclass
from importlib import metadata

import torch

from megatron.pretrain.platform.hook import CUDA_ONLY_PACKAGES

OPTIONAL_PACKAGES = {"transformer_engine": "transformer-engine", "apex": "apex"}
"""Import name to distribution name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Versions as text; "absent" where a package is not installed."""

    python: str
    torch: str
    cuda: str
    """The CUDA version that torch was built for."""

    megatron_core: str
    transformer_engine: str
    apex: str

    def __str__(self) -> str:
        return (
            f"Python {self.python}, torch {self.torch} (CUDA: {self.cuda}), megatron-core {self.megatron_core}, "
            f"Transformer Engine: {self.transformer_engine}, Apex: {self.apex}"
        )


def versions(device: torch.device) -> Versions:
    """What is installed, and whether a run on `device` uses it.

    Nothing is imported for the answer.

    Args:
        device: what `install_platform` returned.
    """
    hidden = CUDA_ONLY_PACKAGES if device.type == "cpu" else frozenset()
    return Versions(
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda or "absent",
        megatron_core=_version("megatron-core"),
        transformer_engine=_optional("transformer_engine", hidden),
        apex=_optional("apex", hidden),
    )


def has_package(name: str) -> bool:
    """Whether a package can be imported in this process, without importing it (hidden ones cannot)."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"


def _optional(name: str, hidden: frozenset[str]) -> str:
    version = _version(OPTIONAL_PACKAGES[name])
    if version == "absent" and has_package(name):
        version = "version unknown"
    return f"{version} (not used on the CPU)" if version != "absent" and name in hidden else version
