#!/usr/bin/env python3
"""Write docs/flags.md from the option dataclasses, or check that it is up to date (--check)."""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megatron.pretrain.config.flag_page import flag_page  # noqa: E402


def main() -> int:
    """Write the page, or with --check return 1 when it differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the page is out of date")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs" / "flags.md", help="page to write")
    arguments = parser.parse_args()
    page = flag_page()
    if not arguments.check:
        arguments.output.write_text(page, encoding="utf-8")
        return 0
    current = arguments.output.read_text(encoding="utf-8") if arguments.output.exists() else ""
    if current == page:
        return 0
    print(f"{arguments.output} is out of date: run python tools/write_flag_docs.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
