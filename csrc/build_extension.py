"""How setup.py builds `overlap_recompute.ops._extension`: with a C++ compiler, with or without CUDA, or not at all.

The package must install anywhere, so a missing tool is no error: what was built, or why nothing was, goes into a
record that `overlap_recompute.ops.build_info()` reads. Environment:

    OVERLAP_RECOMPUTE_EXTENSION           0: do not build; 1: fail where it cannot be built; unset: build if possible
    OVERLAP_RECOMPUTE_CUDA                0: CPU part alone; 1: fail without nvcc; unset: CUDA where nvcc is found
    OVERLAP_RECOMPUTE_CUDA_ARCHITECTURES  comma-separated, default 80,90,100 (and PTX of the last one)
    OVERLAP_RECOMPUTE_CUDART              for developers: shared, so that another libcudart can be put in its place
    OVERLAP_RECOMPUTE_SANITIZE            for developers: value of -fsanitize=, e.g. address,undefined
    CUDA_HOME, CXX                        where the toolkit is; which compiler to use
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import platform
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from toolchain import SOURCES, BuildError, CudaToolkit, find_compiler, find_cuda, output_of, pybind11_include

MODULE = "overlap_recompute.ops._extension"
RECORD = pathlib.PurePosixPath("overlap_recompute/ops/_build_record.json")

# Compilers run in csrc/ and see relative paths: objects hold no trace of the builder's directory.
COMMON_FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread", "-I.")
# Same bits on every processor and on CUDA: csrc/math/scalar.h, NOTE [ one formula, two devices ].
KERNEL_FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd")
X86_VARIANTS = {
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c", "-mprefer-vector-width=512"),
}
# The sources whose host code differs with CUDA; all others are compiled alike.
KNOW_CUDA = ("kernels/run.cpp", "device/cpu_backend.cpp", "device/cuda_backend.cpp")
CUDART = {"static": "-lcudart_static", "shared": "-lcudart"}
CUDA_LIBRARIES = ("-ldl", "-lrt", "-lpthread")  # never -lcuda: it needs a driver to load


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One source file to compile; `name` tells apart several objects of one source."""

    command: tuple[str, ...]
    source: str
    name: str


def source_digest() -> str:
    """Fingerprint of csrc/: a built extension carries it, so that a stale one is noticed."""
    return digest_of(relative_sources(".cpp", ".h", ".cu", ".cuh", ".py"))


def digest_of(names: list[str], *more: str) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0" + (SOURCES / name).read_bytes())
    digest.update("\0".join(more).encode())
    return digest.hexdigest()[:16]


def cudart(environ: Mapping[str, str]) -> str:
    """The flag that links the CUDA runtime."""
    kind = environ.get("OVERLAP_RECOMPUTE_CUDART", "static")
    if kind not in CUDART:
        raise BuildError(f"OVERLAP_RECOMPUTE_CUDART is {kind}, which is not one of {', '.join(CUDART)}")
    return CUDART[kind]


def sanitizer_flags(environ: Mapping[str, str]) -> tuple[str, ...]:
    kinds = environ.get("OVERLAP_RECOMPUTE_SANITIZE")
    return (f"-fsanitize={kinds}", "-fno-omit-frame-pointer", "-g") if kinds else ()


def gencode_flags(architectures: tuple[str, ...]) -> tuple[str, ...]:
    machine_code = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    return (*machine_code, f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")


def host_jobs(compiler: tuple[str, ...], cuda: CudaToolkit | None, record: str, extra: tuple[str, ...]) -> list[Job]:
    """Everything that the C++ compiler sees."""
    python = [f"-I{path}" for path in sorted({sysconfig.get_path("include"), sysconfig.get_path("platinclude")})]
    base = (*compiler, *COMMON_FLAGS, *extra)
    variants = X86_VARIANTS if platform.machine().lower() in ("x86_64", "amd64") else {}
    jobs = []
    for source in relative_sources(".cpp"):
        name = source.removesuffix(".cpp").replace("/", "_")
        flags: tuple[str, ...] = ("-O2",)
        if source.startswith("bindings/"):
            flags = ("-O1", f"-I{pybind11_include()}", *python)
        if source in KNOW_CUDA and cuda:
            flags += ("-DORC_WITH_CUDA", f"-I{cuda.home / 'include'}")
        if name == "bindings_build_record":
            flags += (f"-DORC_BUILD_RECORD={json.dumps(record)}",)
        if name == "kernels_dispatch" and variants:
            flags += ("-DORC_WITH_X86_VARIANTS",)
        if name == "device_cuda_backend" and cuda is None:
            continue
        if name != "kernels_cpu":
            jobs.append(Job(command=(*base, *flags), source=source, name=name))
            continue
        for variant, machine in {"generic": (), **variants}.items():
            named = (*base, *KERNEL_FLAGS, *machine, f"-DORC_INSTRUCTION_SET={variant}")
            jobs.append(Job(command=named, source=source, name=f"{name}_{variant}"))
    return jobs


def relative_sources(*suffixes: str) -> list[str]:
    files = (path for path in SOURCES.rglob("*") if path.suffix in suffixes)
    return sorted(path.relative_to(SOURCES).as_posix() for path in files)


def cuda_jobs(cuda: CudaToolkit, compiler: tuple[str, ...]) -> list[Job]:
    """Everything that nvcc sees: no torch header, no pybind11."""
    host = "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"
    host_compiler = [word for word in compiler if not word.startswith("-")][-1]  # CXX may be "ccache g++ -m64"
    command = (cuda.nvcc, "-ccbin", host_compiler, "-std=c++17", "-O3", "-fmad=false", "-Xfatbin=-compress-all", host)
    command += ("-DORC_WITH_CUDA", "-I.", *gencode_flags(cuda.architectures))
    return [
        Job(command=command, source=source, name=source.removesuffix(".cu").replace("/", "_") + "_cu")
        for source in relative_sources(".cu")
    ]


def compile_all(jobs: list[Job], folder: pathlib.Path) -> list[str]:
    """Compiles what has changed, as many files at a time as there are processors; returns the objects."""
    folder.mkdir(parents=True, exist_ok=True)
    headers = relative_sources(".h", ".cuh")

    def compile_one(job: Job) -> str:
        target = folder / f"{job.name}-{digest_of([job.source, *headers], *job.command)}.o"
        if not target.exists():
            partial = target.with_suffix(f".{os.getpid()}.o")
            text = output_of(*job.command, "-c", job.source, "-o", str(partial))
            if text:
                sys.stderr.write(text + "\n")
            partial.replace(target)
        return str(target)

    slow_first = sorted(jobs, key=lambda job: not job.source.endswith(".cu") and not job.source.startswith("bindings/"))
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(compile_one, slow_first))


def link(compiler: tuple[str, ...], objects: list[str], target: pathlib.Path, cuda: CudaToolkit | None) -> None:
    extra = sanitizer_flags(os.environ)
    command = [*compiler, "-shared", *extra, *objects, "-o", str(target), "-pthread", "-Wl,--exclude-libs,ALL"]
    if cuda:
        folders = [
            cuda.home / "lib64",
            cuda.home / "targets" / f"{platform.machine()}-linux" / "lib",
            cuda.home / "lib",
        ]
        command += [*(f"-L{folder}" for folder in folders if folder.is_dir()), cudart(os.environ), *CUDA_LIBRARIES]
    output_of(*command, *([] if extra else ["-Wl,--strip-all"]))


class BuildExtension(build_ext):
    """Builds the extension if it can, and leaves a record of why where it cannot."""

    absent_because = ""

    def run(self) -> None:
        super().run()
        editable = bool(self.inplace or self.editable_mode)
        for root in {pathlib.Path(self.build_lib), *([SOURCES.parent] if editable else [])}:
            record = root / RECORD
            record.unlink(missing_ok=True)
            if self.absent_because and record.parent.is_dir():
                record.write_text(json.dumps({"absent_because": self.absent_because}) + "\n", encoding="utf-8")
                for stale in record.parent.glob("_extension*.so"):
                    stale.unlink()

    def build_extension(self, ext: Extension) -> None:
        self.absent_because = ""
        switch = os.environ.get("OVERLAP_RECOMPUTE_EXTENSION", "auto")
        if switch == "0":
            self.absent_because = "OVERLAP_RECOMPUTE_EXTENSION=0 was set when the package was built"
            return
        try:
            self.build_module(pathlib.Path(self.get_ext_fullpath(ext.name)))
        except BuildError as error:
            if switch == "1" or os.environ.get("OVERLAP_RECOMPUTE_CUDA") == "1":
                raise
            self.absent_because = str(error)
            self.warn(f"overlap-recompute installs without its extension: {error}")

    def build_module(self, target: pathlib.Path) -> None:
        compiler, version = find_compiler(os.environ)
        cuda, reason = self.choose_cuda()
        try:
            objects = self.compile(compiler, version, cuda, reason)
        except BuildError as error:
            if cuda is None or os.environ.get("OVERLAP_RECOMPUTE_CUDA") == "1":
                raise
            self.warn(f"the extension is built without CUDA: {error}")
            cuda = None
            objects = self.compile(compiler, version, None, str(error))
        target.parent.mkdir(parents=True, exist_ok=True)
        link(compiler, objects, target.resolve(), cuda)

    def compile(self, compiler: tuple[str, ...], version: str, cuda: CudaToolkit | None, reason: str) -> list[str]:
        record = {
            "compiler": version,
            "cuda_version": cuda.version if cuda else "",
            "cuda_architectures": cuda.architectures if cuda else (),
            "cuda_absent_because": reason,
            "source_digest": source_digest(),
        }
        jobs = cuda_jobs(cuda, compiler) if cuda else []
        jobs += host_jobs(compiler, cuda, json.dumps(record), sanitizer_flags(os.environ))
        # Not build_temp: pip throws that away after each build.
        return compile_all(jobs, SOURCES.parent / "build" / "extension")

    def choose_cuda(self) -> tuple[CudaToolkit | None, str]:
        switch = os.environ.get("OVERLAP_RECOMPUTE_CUDA", "auto")
        if switch == "0":
            return None, "OVERLAP_RECOMPUTE_CUDA=0 was set when the package was built"
        try:
            return find_cuda(os.environ), ""
        except BuildError as error:
            if switch == "1":
                raise
            return None, str(error)


def extension_modules() -> list[Extension]:
    """What setup.py passes on; sources and headers are listed for the source distribution."""
    files = [path.relative_to(SOURCES.parent).as_posix() for path in sorted(SOURCES.rglob("*")) if path.is_file()]
    sources = [name for name in files if name.endswith((".cpp", ".cu"))]
    headers = [name for name in files if name.endswith((".h", ".cuh", ".py"))]
    return [Extension(MODULE, sources=sources, depends=headers, language="c++", optional=True)]
