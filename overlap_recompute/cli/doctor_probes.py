"""What `overlap-recompute doctor` looks at, one probe per line of its report.

A probe answers about a broken machine too: whatever a package raises while it is imported is part of the answer.
"""

import importlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

OLDEST_PYTHON = (3, 10)
MEGATRON_CORE = "0.16.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is there or not."""

    name: str
    """What was looked for."""
    present: bool
    """Whether it is there and can be used."""
    value: str
    """Version, place, or why it is absent."""
    needed_for: str
    """What goes without it, and what to do."""
    required: bool = False
    """Whether training cannot start without it."""


def examine() -> tuple[Finding, ...]:
    """Run every probe, in the order of the report."""
    return tuple(finding for probe in _PROBES for finding in probe())


def _python() -> Iterable[Finding]:
    present = sys.version_info[:2] >= OLDEST_PYTHON
    oldest = ".".join(map(str, OLDEST_PYTHON))
    yield Finding(
        name="python",
        present=present,
        value=platform.python_version(),
        needed_for=f"everything; version {oldest} or newer",
        required=True,
    )


def _torch() -> Iterable[Finding]:
    module, problem = _imported("torch")
    version = str(getattr(module, "__version__", problem))
    needed_for = "training and profiling; `schedule` and `--help` work without"
    yield Finding(name="torch", present=module is not None, value=version, needed_for=needed_for, required=True)
    yield _cuda(module)


def _cuda(torch: Any) -> Finding:
    """The devices that torch can use."""
    needed_for = "training on GPUs; without it gloo on CPUs: --distributed-backend gloo"
    if torch is None:
        return Finding(name="cuda", present=False, value="absent (no torch)", needed_for=needed_for)
    try:
        cuda, built_for = torch.cuda, torch.version.cuda
        count = cuda.device_count() if cuda.is_available() else 0
        names = sorted({cuda.get_device_name(number) for number in range(count)})
    except Exception as error:  # a driver that does not fit raises many kinds
        return Finding(name="cuda", present=False, value=f"absent ({_one_line(error)})", needed_for=needed_for)
    if not count:
        why = f"torch is built for CUDA {built_for} and sees no device" if built_for else "torch is built without CUDA"
        return Finding(name="cuda", present=False, value=f"absent ({why})", needed_for=needed_for)
    connections = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "unset")
    value = f"{built_for}, {count} device(s): {', '.join(names)}; CUDA_DEVICE_MAX_CONNECTIONS {connections}"
    return Finding(name="cuda", present=True, value=value, needed_for=needed_for)


def _megatron_core() -> Iterable[Finding]:
    version = _version("megatron-core")
    present = version == MEGATRON_CORE
    yield Finding(
        name="megatron-core",
        present=present,
        value="absent" if version is None else version if present else f"{version}, which is not supported",
        needed_for=f"training; pip install megatron-core=={MEGATRON_CORE}",
        required=True,
    )


_PACKAGES: Mapping[str, str] = {
    "numpy": "data sets",
    "psutil": "checkpoints",
    "scipy": "planning with a solver",
    "transformer-engine": "--transformer-impl transformer_engine and FP8; without it Megatron-Core's local layers run",
    "apex": "Apex's fused optimizers; without it torch's fused ones are used",
    "tokenizers": "BPE tokenizers",
    "sentencepiece": "SentencePiece tokenizers",
    "tensorboard": "--tensorboard-dir",
    "matplotlib": "plots",
}
"""Distribution to what it is for."""

_REQUIRED_PACKAGES = ("numpy", "psutil")


def _packages() -> Iterable[Finding]:
    for name, needed_for in _PACKAGES.items():
        version = _version(name)
        yield Finding(
            name=name,
            present=version is not None,
            value=version or "absent",
            needed_for=needed_for,
            required=name in _REQUIRED_PACKAGES,
        )


def _extension() -> Iterable[Finding]:
    """What `build_info()` says, a line for each of its parts."""
    needed_for = "replay kernels and the lane on GPUs, cheap trace marks; without it torch and Python fallbacks run"
    module, problem = _imported("overlap_recompute.ops")
    try:
        lines = tuple(module.build_info().lines()) if module is not None else (f"extension = {problem}",)
    except Exception as error:  # a build of another version must not end the report
        lines = (f"extension = absent ({_one_line(error)})",)
    for line in lines:
        name, _, value = str(line).partition(" = ")
        yield Finding(name=name, present=not value.startswith("absent"), value=value, needed_for=needed_for)


_PROGRAMS: Mapping[str, str] = {
    "c++": "building the extension",
    "nvcc": "building the extension's CUDA part",
    "srun": "starting on a Slurm cluster; torchrun works without",
    "sbatch": "Slurm batch jobs",
    "ip": "tools/linklab: hosts joined by a slow link; --emulate-link-gbps works without",
    "tc": "tools/linklab: the rate of the link",
}
"""Program to what it is for."""

_EXTRA_FOLDERS = ("/usr/sbin", "/sbin")


def _programs() -> Iterable[Finding]:
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), _cuda_folder(), *_EXTRA_FOLDERS])
    for name, needed_for in _PROGRAMS.items():
        place = shutil.which(name, path=search)
        yield Finding(name=name, present=place is not None, value=place or "absent", needed_for=needed_for)


def _root() -> Iterable[Finding]:
    present = os.geteuid() == 0
    value = "yes" if present else f"absent (user {os.geteuid()})"
    yield Finding(name="root", present=present, value=value, needed_for="tools/linklab: network namespaces")


_PROBES: tuple[Callable[[], Iterable[Finding]], ...] = (
    _python,
    _torch,
    _megatron_core,
    _packages,
    _extension,
    _programs,
    _root,
)


def _imported(name: str) -> tuple[Any, str]:
    """The module, or None and why it cannot be imported."""
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # what a broken installation raises is part of the answer
        return None, f"absent ({_one_line(error)})"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cuda_folder() -> str:
    return os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
