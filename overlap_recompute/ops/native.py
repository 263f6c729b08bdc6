"""Finds the compiled extension, or the reason why there is none."""

import importlib
import json
import pathlib
from dataclasses import dataclass
from types import ModuleType

RECORD = pathlib.Path(__file__).with_name("_build_record.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInfo:
    """What of the extension is there (`overlap-recompute doctor` shows it)."""

    extension: bool
    """True when the compiled extension is loaded; False: the torch and Python fallbacks of this package run."""

    absent_because: str = ""
    """Why there is no extension."""

    compiler: str = ""
    """Version line of the C++ compiler."""

    instruction_set: str = ""
    """What the CPU replay kernels use on this processor: generic, avx2 or avx512."""

    cuda_version: str = ""
    """Version of the nvcc that compiled the CUDA part; empty without one."""

    cuda_architectures: tuple[str, ...] = ()
    """Compute capabilities with machine code, e.g. 80; newer devices use the PTX of the last one."""

    cuda_absent_because: str = ""
    """Why the extension has no CUDA part."""

    cuda_devices: int = 0
    """CUDA devices that the extension can use now."""

    source_digest: str = ""
    """Fingerprint of the csrc/ that it was built from."""

    def lines(self) -> tuple[str, ...]:
        """What to tell a person, one fact a line."""
        if not self.extension:
            return (f"extension = absent, because {self.absent_because}",)
        first = f"extension = present ({self.compiler}; CPU kernels: {self.instruction_set})"
        if not self.cuda_version:
            return (first, f"extension CUDA part = absent, because {self.cuda_absent_because}")
        machine_code = ", ".join(f"sm_{name}" for name in self.cuda_architectures)
        return (first, f"extension CUDA part = {self.cuda_version} for {machine_code}; {self.cuda_devices} device(s)")


def _load() -> tuple[ModuleType | None, str]:
    try:
        found = importlib.import_module("overlap_recompute.ops._extension")
    except ImportError as error:
        return None, str(error)
    missing = [name for name in NEWEST if not hasattr(found, name)]
    return (None, f"it is of older sources, without {', '.join(missing)}: build it anew") if missing else (found, "")


NEWEST = ("bookkeeping_layout", "fill_output", "same_memory")
"""What an extension that was left from an earlier version of this package does not have."""
# None without the extension.
extension, _import_error = _load()
# Whether CUDA tensors can go to the extension: a fact of the build, not of this machine.
has_cuda: bool = extension is not None and bool(json.loads(extension.BUILD_RECORD)["cuda_version"])


def _absence(record: pathlib.Path, import_error: str) -> str:
    """The reason that the build left behind, else what Python said at import."""
    try:
        return str(json.loads(record.read_text(encoding="utf-8"))["absent_because"])
    except FileNotFoundError:
        return f"the package was not built with it, or it does not load here ({import_error})"
    except (OSError, ValueError, KeyError) as error:
        return f"it does not load here ({import_error}), and {record.name} cannot be read ({error})"


def build_info() -> BuildInfo:
    """What of the extension is there; looks for CUDA devices, imports nothing more."""
    if extension is None:
        return BuildInfo(extension=False, absent_because=_absence(RECORD, _import_error))
    record = json.loads(extension.BUILD_RECORD)
    return BuildInfo(
        extension=True,
        compiler=record["compiler"],
        instruction_set=extension.instruction_set(),
        cuda_version=record["cuda_version"],
        cuda_architectures=tuple(record["cuda_architectures"]),
        cuda_absent_because=record["cuda_absent_because"],
        cuda_devices=extension.cuda_device_count(),
        source_digest=record["source_digest"],
    )
