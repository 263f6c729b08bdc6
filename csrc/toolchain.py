"""Finds what csrc/build_extension.py needs: compiler, CUDA toolkit, pybind11."""

import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

SOURCES = pathlib.Path(__file__).resolve().parent
DEFAULT_ARCHITECTURES = "80,90,100"


class BuildError(RuntimeError):
    """The extension cannot be built here; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaToolkit:
    """An nvcc that works."""

    nvcc: str
    home: pathlib.Path
    version: str
    architectures: tuple[str, ...]


def output_of(*command: str) -> str:
    """Standard output and error of a command.

    Raises:
        BuildError: the command is missing or fails; with the last lines that it wrote.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SOURCES)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror}") from error
    text = (done.stdout + done.stderr).strip()
    if done.returncode != 0:
        sys.stderr.write(f"{shlex.join(command)}\n{text}\n")
        raise BuildError(f"{command[0]} failed: " + " | ".join(text.splitlines()[-2:]))
    return text


def find_compiler(environ: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """Command and version line of the C++ compiler."""
    named = environ.get("CXX")
    candidates = [shlex.split(named)] if named else [[name] for name in ("c++", "g++", "clang++")]
    for candidate in candidates:
        if shutil.which(candidate[0]):
            return tuple(candidate), output_of(*candidate, "--version").splitlines()[0]
    tried = " ".join(candidate[0] for candidate in candidates)
    raise BuildError(f"no C++ compiler was found on PATH (tried {tried})")


def find_cuda(environ: Mapping[str, str]) -> CudaToolkit:
    """The toolkit of CUDA_HOME, else that of the nvcc on PATH; architectures that it does not know are left out."""
    home = environ.get("CUDA_HOME")
    nvcc = shutil.which(str(pathlib.Path(home, "bin", "nvcc")) if home else "nvcc")
    if nvcc is None:
        raise BuildError(
            f"CUDA_HOME={home} holds no bin/nvcc" if home else "nvcc is not on PATH and CUDA_HOME is unset"
        )
    release = re.search(r"release [\d.]+, V([\d.]+)", output_of(nvcc, "--version"))
    # nvcc on PATH may be a link or a script; its own dry run says where it really lives.
    top = re.search(r"^#\$ TOP=(.+)$", output_of(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull), re.MULTILINE)
    known = set(re.findall(r"compute_(\w+)", output_of(nvcc, "--list-gpu-arch")))
    wanted = environ.get("OVERLAP_RECOMPUTE_CUDA_ARCHITECTURES", DEFAULT_ARCHITECTURES)
    architectures = tuple(name for name in wanted.replace(";", ",").split(",") if name in known)
    if not architectures:
        raise BuildError(f"nvcc knows none of the architectures {wanted}")
    return CudaToolkit(
        nvcc=nvcc,
        home=pathlib.Path(top.group(1)).resolve() if top else pathlib.Path(nvcc).resolve().parents[1],
        version=release.group(1) if release else "unknown",
        architectures=architectures,
    )


def pybind11_include() -> str:
    """Folder of pybind11's headers."""
    spec = importlib.util.find_spec("pybind11")
    if spec is None or spec.origin is None:
        raise BuildError("pybind11 is not installed where the package is built")
    return str(pathlib.Path(spec.origin).parent / "include")
