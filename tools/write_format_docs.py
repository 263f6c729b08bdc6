#!/usr/bin/env python3
"""Write docs/files.md, the page about profile and plan files, from their data classes."""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megatron.pretrain.config.field_docs import field_docs  # noqa: E402
from overlap_recompute.plan import plan_file, profile, split, storages  # noqa: E402

PAGE = ROOT / "docs" / "files.md"
INTRODUCTION = """# Profile and plan files

Planner and runtime meet in files: JSON, strict in both directions. A reader takes the one version that it knows, every
field must be there (unless it has a default), no other may be, and numbers are finite and not negative. What is
refused is named by file and field. Files appear whole or not at all. `overlap-recompute validate FILE` checks one,
`overlap-recompute diff A B` compares two plans.

This page is written by `python tools/write_format_docs.py` from the data classes of `overlap_recompute/plan/`.
"""
SECTIONS = (
    ("Profile", (profile, ("Profile", "Origin", "Layout", "LayerKind", "UnitCost", "PassStep", "EndCost", "LinkFit",
                           "StaticRules"))),
    ("Storages", (storages, ("StorageRow", "BackwardMemory", "MemoryStep", "ReplayRoom"))),
    ("Plan", (plan_file, ("Plan", "StagePlan", "LayerPlan", "PlannedFill", "StagePrediction", "MemoryTable"))),
)  # fmt: skip


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for title, (module, names) in SECTIONS:
        parts += [f"## {title}", "", (module.__doc__ or "").strip(), ""]
        for name in names:
            parts += [_section(getattr(module, name)), ""]
    parts += ["## Splits", "", (split.__doc__ or "").strip(), ""]
    return "\n".join(parts)


def _section(record: type) -> str:
    documented = field_docs(record)
    lines = [
        f"### {record.__name__}",
        "",
        (record.__doc__ or "").strip(),
        "",
        "| field | type | meaning |",
        "|---|---|---|",
    ]
    for name, kind in record.__annotations__.items():
        shown = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
        if "tuple" in str(kind) or "|" in str(kind):
            shown = str(kind)
        shown = shown.replace("overlap_recompute.plan.", "").replace("|", "or")
        for module in ("profile.", "storages.", "plan_file."):
            shown = shown.replace(module, "")
        lines.append(f"| `{name}` | {shown} | {documented.get(name, '')} |")
    return "\n".join(lines)


def main() -> int:
    """Write the page, or with --check return 1 when it differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the page is out of date")
    options = parser.parse_args()
    text = page()
    if not options.check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE} is out of date: run python tools/write_format_docs.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
