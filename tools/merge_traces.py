#!/usr/bin/env python3
"""Join the traces that --overlap-recompute-trace wrote, one per rank, into one file for Perfetto or chrome://tracing."""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megatron.overlap.trace_files import merge_traces  # noqa: E402
from overlap_recompute.plan.errors import UserError  # noqa: E402


def main() -> int:
    """Join the files; 2 when one of them is no trace."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="+", type=pathlib.Path, help="files, or the folder that holds rank-*.json")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="file to write")
    arguments = parser.parse_args()
    paths = [
        file for path in arguments.traces for file in (sorted(path.glob("rank-*.json")) if path.is_dir() else [path])
    ]
    try:
        events = merge_traces(paths, arguments.output)
    except UserError as error:
        print(f"merge_traces.py: error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.output}: {events} events of {len(paths)} ranks; open it in https://ui.perfetto.dev")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
