"""Run a Python program on a simulated GPU. It needs a CUDA build of torch, the toolkit's headers and g++, and no GPU.

    python -m tools.simulated_gpu --order lazy -- -m pytest tests/gpu/runtime
    python -m tools.simulated_gpu --order random --seed 3 -- pretrain_gpt.py ...

What is simulated, and what it shows: docs/simulated_gpu.md.
"""

import argparse
import importlib.util
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Sequence

HERE = pathlib.Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "simulated_gpu"
SOURCES = ("runtime_api.cpp", "libraries.cpp")
ORDERS = ("eager", "lazy", "lane", "random")
CALLERS = ("libc10_cuda.so", "libtorch_cuda.so", "libtorch_python.so", "libtorch_cuda_linalg.so", "libcaffe2_nvrtc.so")
REPLACED = ("cuda", "__cuda", "cublas", "nccl", "cu")
"""Prefixes of the functions that are simulated; other libraries of NVIDIA stay, and are not called."""
DRIVER = {
    "cuDevicePrimaryCtxGetState": "int d, unsigned* f, int* a) { *f = 0; *a = 1; return 0",
    "cuGetErrorString": 'int, const char** s) { *s = "simulated"; return 0',
    "cuCtxGetCurrent": "void** c) { static int one; *c = &one; return 0",
}
"""The driver's functions whose answers matter."""


def symbols(path: pathlib.Path, *kind: str) -> set[str]:
    """Names in a library's dynamic table."""
    found = subprocess.run(["nm", "-D", *kind, str(path)], capture_output=True, text=True, check=True, timeout=120)
    return {line.split()[-1].partition("@")[0] for line in found.stdout.splitlines() if line.strip()}


def does_nothing(names: Iterable[str]) -> str:
    """C functions that answer 0, which means success everywhere here."""
    return (
        'extern "C" {\n' + "\n".join(f"int {name}({DRIVER.get(name, ') { return 0')}; }}" for name in names) + "\n}\n"
    )


def compile_library(target: pathlib.Path, sources: Sequence[pathlib.Path], include: pathlib.Path) -> None:
    """Build a shared library."""
    command = ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-pthread", f"-I{include}", f"-I{HERE}"]
    command += [f"-Wl,-soname,{target.name}", "-o", str(target), *map(str, sources), "-ldl"]
    subprocess.run(command, check=True, timeout=300)


def build(torch_folder: pathlib.Path, include: pathlib.Path) -> pathlib.Path:
    """Build what takes the place of the driver, the runtime, cuBLAS and NCCL; returns the folder."""
    BUILD.mkdir(parents=True, exist_ok=True)
    wanted: set[str] = set()
    for name in CALLERS:
        if (path := torch_folder / "lib" / name).exists():
            wanted |= {symbol for symbol in symbols(path, "--undefined-only") if symbol.startswith(REPLACED)}
    ours = [HERE / name for name in SOURCES]
    compile_library(BUILD / "libsimulated.so", ours, include)
    left = sorted(wanted - symbols(BUILD / "libsimulated.so", "--defined-only"))
    (BUILD / "rest.cpp").write_text(does_nothing(left))
    compile_library(BUILD / "libsimulated.so", [*ours, BUILD / "rest.cpp"], include)
    driver = sorted({name for name in wanted if name.startswith("cu") and name[2:3].isupper()} | set(DRIVER))
    (BUILD / "driver.cpp").write_text(does_nothing(driver))
    compile_library(BUILD / "libcuda.so.1", [BUILD / "driver.cpp"], include)
    return BUILD


def main(words: Sequence[str]) -> int:
    """Build, then become the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--order", choices=ORDERS, default="lazy", help="which stream goes on (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of --order random")
    parser.add_argument("--cuda-home", default=os.environ.get("CUDA_HOME", "/usr/local/cuda"), help="%(default)s")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="-- and what python is given")
    options = parser.parse_args(words)
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        parser.error("found no torch; expected a CUDA build of it; install one")
    torch_folder = pathlib.Path(spec.origin).parent
    if not (torch_folder / "lib" / "libtorch_cuda.so").exists():
        parser.error(f"found a torch without CUDA in {torch_folder}; expected a CUDA build of it; install one")
    folder = build(torch_folder, pathlib.Path(options.cuda_home) / "include")
    environment = os.environ | {
        "LD_PRELOAD": str(folder / "libsimulated.so"),
        "LD_LIBRARY_PATH": str(folder),
        "SIMULATED_GPU_ORDER": options.order,
        "SIMULATED_GPU_SEED": str(options.seed),
        "TORCHDYNAMO_DISABLE": "1",  # Triton would compile kernels for a real device
        "OMP_NUM_THREADS": "1",
    }
    program = [word for number, word in enumerate(options.program) if number or word != "--"]
    if not program:
        parser.error(
            "found no program; expected -- and what python is given; for example -- -m pytest tests/gpu/runtime"
        )
    command = [sys.executable, "-m", "tools.simulated_gpu.program", *program]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
