"""The house rules that a machine can check: floors, sizes, and what a library must not do (docs/design.md)."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIBRARY = ("overlap_recompute", "megatron")
EVERYWHERE = (*LIBRARY, "tools", "examples", "benchmarks", "tests", "csrc")
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60

# Package -> the packages of this repository that it may import (itself always). Imports go down only.
FLOORS: dict[str, tuple[str, ...]] = {
    "overlap_recompute.plan": (),
    "overlap_recompute.schedules": ("overlap_recompute.plan",),
    "overlap_recompute.ops": ("overlap_recompute.plan",),
    "overlap_recompute.simulator": ("overlap_recompute.plan", "overlap_recompute.schedules"),
    "overlap_recompute.planner": ("overlap_recompute.plan", "overlap_recompute.schedules", "overlap_recompute.simulator"),
    "overlap_recompute.runtime": ("overlap_recompute.plan", "overlap_recompute.ops"),
    "overlap_recompute.report": ("overlap_recompute.plan", "overlap_recompute.simulator"),
    "overlap_recompute.cli": ("overlap_recompute.plan", "overlap_recompute.schedules", "overlap_recompute.simulator", "overlap_recompute.planner", "overlap_recompute.report", "overlap_recompute.ops"),
    "megatron.overlap": ("overlap_recompute.plan", "overlap_recompute.schedules", "overlap_recompute.ops", "overlap_recompute.runtime", "megatron.pretrain.platform"),
    "megatron.overlap.counting": ("overlap_recompute.plan", "overlap_recompute.schedules", "overlap_recompute.runtime", "megatron.overlap", "megatron.pretrain"),
    "megatron.pretrain.config": ("overlap_recompute.plan",),
    "megatron.pretrain.platform": ("overlap_recompute.plan", "megatron.pretrain.config"),
    "megatron.pretrain.logs": ("overlap_recompute.plan", "megatron.pretrain.config", "megatron.pretrain.platform"),
    "megatron.pretrain.data": ("overlap_recompute.plan", "megatron.pretrain.config", "megatron.pretrain.platform"),
    "megatron.pretrain.model": ("overlap_recompute.plan", "megatron.pretrain.config", "megatron.pretrain.platform"),
    "megatron.pretrain.distributed": ("overlap_recompute.plan", "megatron.pretrain.config", "megatron.pretrain.platform"),
    "megatron.pretrain.checkpoint": ("overlap_recompute.plan", "megatron.pretrain.config", "megatron.pretrain.platform", "megatron.pretrain.training.state"),
    "megatron.pretrain.training": ("overlap_recompute.plan", "megatron.pretrain", "megatron.overlap"),
    "megatron.pretrain.main": ("overlap_recompute.plan", "megatron.pretrain"),
}  # fmt: skip

# Package -> third-party packages that it must not import, even late.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "overlap_recompute.plan": ("torch", "numpy", "scipy", "megatron.core"),
    "overlap_recompute.schedules": ("torch", "scipy", "megatron.core"),
    "overlap_recompute.simulator": ("torch", "megatron.core"),
    "overlap_recompute.planner": ("torch", "megatron.core"),
    "overlap_recompute.report": ("torch", "megatron.core", "scipy"),
    "overlap_recompute.runtime": ("scipy", "megatron.core"),
    "overlap_recompute.ops": ("scipy", "megatron.core"),
    "megatron.pretrain.config": ("torch", "numpy", "megatron.core"),
}

# Modules that may be imported inside a function: solvers and optional back ends, and what a fast `--help` must not load.
LATE_IMPORTS = ("scipy", "matplotlib", "torch.utils.tensorboard", "wandb", "tokenizers", "sentencepiece", "tqdm", "transformer_engine", "apex")  # fmt: skip
# The entry points that choose what to load: parse first, import torch later.
LATE_IMPORT_FILES = ("megatron/pretrain/main.py", "megatron/pretrain/training/overlap.py")


def python_files(*folders: str) -> list[pathlib.Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Line and absolute module of every import, also those inside functions."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def floor_of(module: str) -> str | None:
    floors = [floor for floor in FLOORS if within(module, floor)]
    return max(floors, key=len, default=None)


def test_every_library_module_stands_on_a_floor() -> None:
    homeless = [
        str(path.relative_to(ROOT))
        for path in python_files(*LIBRARY)
        if floor_of(module_name(path)) is None and path.name not in ("__init__.py", "__main__.py", "cli.py")
    ]
    assert not homeless


def test_imports_go_down_only() -> None:
    wrong = []
    for path in python_files(*LIBRARY):
        floor = floor_of(module_name(path))
        if floor is None:
            continue
        allowed = (floor, *FLOORS[floor])
        for line, module in imports(path):
            ours = within(module, "overlap_recompute") or within(module, "megatron.overlap")
            ours = ours or within(module, "megatron.pretrain")
            exempt = module.startswith("overlap_recompute.__version__")
            if ours and not exempt and not any(within(module, package) for package in allowed):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
            if any(within(module, package) for package in FORBIDDEN.get(floor, ())):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_only_the_megatron_packages_know_megatron_core() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in python_files("overlap_recompute")
        for line, module in imports(path)
        if within(module, "megatron")
    ]
    assert not wrong


def test_megatron_stays_a_namespace_package() -> None:
    assert not (ROOT / "megatron" / "__init__.py").exists()


def test_files_are_short() -> None:
    native = (path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h", ".cu", ".cuh"))
    sources = [*python_files(*EVERYWHERE), *native]
    long = [
        f"{path.relative_to(ROOT)}: {lines}"
        for path in sources
        if (lines := path.read_text().count("\n")) > MAX_FILE_LINES
    ]
    assert not long, "\n".join(long)


def test_functions_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length}"
        for path in python_files(*EVERYWHERE)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("folder", LIBRARY)
def test_a_library_does_not_print(folder: str) -> None:
    printing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in python_files(folder)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing


def test_imports_stand_at_the_top_of_the_file() -> None:
    late = []
    for path in python_files(*LIBRARY):
        if str(path.relative_to(ROOT)) in LATE_IMPORT_FILES:
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
                late += [
                    f"{path.relative_to(ROOT)}:{node.lineno} {name}"
                    for name in names
                    if not any(within(name, allowed) for allowed in LATE_IMPORTS)
                ]
    assert not late, "\n".join(late)


def test_modules_hold_no_mutable_state() -> None:
    """A module-level name bound to an empty container is a registry in waiting; tables with content are constants."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in python_files(*LIBRARY)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and (
            (isinstance(node.value, ast.List | ast.Set) and not node.value.elts)
            or (isinstance(node.value, ast.Dict) and not node.value.keys)
        )
    ]
    assert not wrong
    globals_used = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in python_files(*LIBRARY)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Global)
    ]
    assert not globals_used
