"""The build: present where it can be, honest about what is absent, and importable without a driver."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
from types import ModuleType

import pytest

from overlap_recompute import ops
from overlap_recompute.ops import native
from tests.unit.ops.support import BUILD, has_compiler, needs_extension

ROOT = pathlib.Path(__file__).resolve().parents[3]
# Loads the extension alone (no torch, no package) and shows what it says of itself and which libraries it mapped.
LOAD = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("overlap_recompute.ops._extension", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
maps = open("/proc/self/maps").read()
print(json.dumps([module.cuda_device_count(), module.BUILD_RECORD, "libcuda.so" in maps]))
"""


def load_alone(library: pathlib.Path, **environ: str) -> tuple[int, dict[str, object], bool]:
    command = [sys.executable, "-c", LOAD, str(library)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=200, env={**os.environ, **environ}
    )
    devices, record, driver = json.loads(done.stdout)
    return devices, json.loads(record), driver


@pytest.fixture
def build_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """csrc/build_extension.py."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "csrc"))
    return importlib.import_module("build_extension")


def test_a_machine_with_a_compiler_has_the_extension() -> None:
    """Without this a broken build would only skip tests."""
    if os.environ.get("OVERLAP_RECOMPUTE_EXTENSION") == "0":
        pytest.skip("OVERLAP_RECOMPUTE_EXTENSION=0")
    if not has_compiler() or not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("no C++ compiler on PATH, or no Python.h")
    assert BUILD.extension, BUILD.lines()


@needs_extension
def test_the_extension_was_built_from_the_sources_at_hand(build_module: ModuleType) -> None:
    message = "csrc/ has changed since the extension was built: run `pip install --no-build-isolation --no-deps -e .`"
    assert build_module.source_digest() == BUILD.source_digest, message


def test_the_cuda_runtime_is_static_unless_asked(build_module: ModuleType) -> None:
    assert build_module.cudart({}) == "-lcudart_static"
    assert build_module.cudart({"OVERLAP_RECOMPUTE_CUDART": "shared"}) == "-lcudart"
    with pytest.raises(RuntimeError, match="CUDART is none, which is not one of static, shared"):
        build_module.cudart({"OVERLAP_RECOMPUTE_CUDART": "none"})


@needs_extension
def test_it_loads_without_a_driver_and_counts_no_device() -> None:
    assert native.extension is not None
    devices, record, driver = load_alone(pathlib.Path(str(native.extension.__file__)), CUDA_VISIBLE_DEVICES="")
    assert devices == 0
    assert record["source_digest"] == BUILD.source_digest
    if not pathlib.Path("/dev/nvidiactl").exists():
        assert not driver


@needs_extension
def test_build_info_names_the_parts() -> None:
    lines = BUILD.lines()
    assert lines[0].startswith("extension = present (")
    assert BUILD.instruction_set in lines[0]
    if BUILD.cuda_version:
        assert lines[1] == f"extension CUDA part = {BUILD.cuda_version} for " + ", ".join(
            f"sm_{name}" for name in BUILD.cuda_architectures
        ) + f"; {BUILD.cuda_devices} device(s)"  # fmt: skip
    else:
        assert lines[1] == f"extension CUDA part = absent, because {BUILD.cuda_absent_because}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "the package was not built with it, or it does not load here (No module named x)"),
        ('{"absent_because": "no C++ compiler was found on PATH"}', "no C++ compiler was found on PATH"),
        ("{", "it does not load here (No module named x), and record.json cannot be read"),
    ],
)
def test_the_reason_for_absence_is_told(tmp_path: pathlib.Path, text: str | None, reason: str) -> None:
    record = tmp_path / "record.json"
    if text is not None:
        record.write_text(text)
    told = native._absence(record, "No module named x")
    assert told.startswith(reason)
    assert ops.BuildInfo(extension=False, absent_because=told).lines() == (f"extension = absent, because {told}",)


@needs_extension
def test_an_extension_of_older_sources_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "NEWEST", ("same_memory", "of_tomorrow"))
    assert native._load() == (None, "it is of older sources, without of_tomorrow: build it anew")


def test_architectures_that_nvcc_does_not_know_are_left_out(build_module: ModuleType, tmp_path: pathlib.Path) -> None:
    toolchain = sys.modules["toolchain"]
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    answers = {
        "--version": "Cuda compilation tools, release 12.4, V12.4.99",
        "--dryrun": f"#$ TOP={tmp_path}",
        "--list-gpu-arch": "compute_80\ncompute_90",
    }
    cases = "".join(f"{option}) printf '%s\\n' '{answer}';;\n" for option, answer in answers.items())
    nvcc.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}esac\n')
    nvcc.chmod(0o755)
    toolkit = toolchain.find_cuda({"CUDA_HOME": str(tmp_path)})
    assert (toolkit.version, toolkit.architectures, toolkit.home) == ("12.4.99", ("80", "90"), tmp_path.resolve())
    with pytest.raises(toolchain.BuildError, match="knows none of the architectures 100"):
        toolchain.find_cuda({"CUDA_HOME": str(tmp_path), "OVERLAP_RECOMPUTE_CUDA_ARCHITECTURES": "100"})
    with pytest.raises(toolchain.BuildError, match="holds no bin/nvcc"):
        toolchain.find_cuda({"CUDA_HOME": str(tmp_path / "elsewhere")})
    with pytest.raises(toolchain.BuildError, match="no C\\+\\+ compiler was found on PATH .tried nowhere"):
        toolchain.find_compiler({"CXX": "nowhere --flag"})


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A copy of what setup.py needs, with the objects that are compiled alike with and without CUDA."""
    target = tmp_path_factory.mktemp("checkout")
    for name in ("csrc", "overlap_recompute", "build/extension"):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, target / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*_cu-*.o")
            )
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, target / name)
    (target / "README.md").write_text("A copy.\n")
    return target


def build(folder: pathlib.Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    merged = {**os.environ, **environ}
    return subprocess.run(command, cwd=folder, env=merged, capture_output=True, text=True, timeout=280, check=False)


def test_without_a_compiler_the_package_builds_and_says_why(copy: pathlib.Path) -> None:
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    done = build(copy, CXX="no-such-compiler", OVERLAP_RECOMPUTE_EXTENSION="", OVERLAP_RECOMPUTE_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert "installs without its extension: no C++ compiler was found" in done.stdout + done.stderr
    record = copy / "overlap_recompute" / "ops" / "_build_record.json"
    assert "no C++ compiler was found on PATH (tried no-such-compiler)" in native._absence(record, "")
    assert not list(record.parent.glob("*.so"))
    required = build(copy, CXX="no-such-compiler", OVERLAP_RECOMPUTE_EXTENSION="1")
    assert required.returncode != 0


@needs_extension
def test_without_nvcc_the_cpu_part_is_built(copy: pathlib.Path) -> None:
    if not has_compiler() or importlib.util.find_spec("setuptools") is None:
        pytest.skip("no C++ compiler, or setuptools is not installed")
    done = build(copy, OVERLAP_RECOMPUTE_EXTENSION="1", OVERLAP_RECOMPUTE_CUDA="0")
    assert done.returncode == 0, done.stderr
    folder = copy / "overlap_recompute" / "ops"
    (library,) = folder.glob("_extension*.so")
    devices, record, driver = load_alone(library)
    assert (devices, record["cuda_version"], driver) == (0, "", False)
    assert record["cuda_absent_because"] == "OVERLAP_RECOMPUTE_CUDA=0 was set when the package was built"
    assert not (folder / "_build_record.json").exists()
