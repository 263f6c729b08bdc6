#!/usr/bin/env python3
"""The throughput study of overlapped recompute, GPT 1.3B to 23B, by simulation: benchmarks/study.md, .json and plots.

    .venv/bin/python tools/reproduce_study.py --write          # the whole matrix, some minutes on two cores
    .venv/bin/python tools/reproduce_study.py --models gpt-7b  # one model, printed

Every figure is simulated from analytic profiles (docs/hardware.md): no GPU was used. The paper (Chen et al., arXiv
2406.08756) reports up to 1.37 times the throughput of existing recomputation on its clusters. What is simulated:
tools/study_lib/matrix.py.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time
from datetime import date

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.study_lib.matrix import CLUSTERS, MODELS, Place, Row, places, run_place  # noqa: E402
from tools.study_lib.page import page  # noqa: E402
from tools.study_lib.plots import draw  # noqa: E402
from tools.study_lib.store import as_data, rows_of  # noqa: E402

RESULT = ROOT / "benchmarks" / "study.json"
PAGE = ROOT / "benchmarks" / "study.md"
IMAGES = ROOT / "docs" / "images"


def main() -> int:
    """Run the matrix; print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--clusters", nargs="+", choices=tuple(CLUSTERS), default=list(CLUSTERS), metavar="CLUSTER")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--write", action="store_true", help="write the page, its figures and plots")
    parser.add_argument("--from-json", action="store_true", help="make page and plots anew from the last figures")
    options = parser.parse_args()
    if options.write and (set(options.models), set(options.clusters)) != (set(MODELS), set(CLUSTERS)):
        parser.error("--write with some of the models or clusters: the page is of all of them")
    if options.from_json:
        data = json.loads(RESULT.read_text())
    else:
        started_s = time.monotonic()
        rows = _run_all(places(tuple(options.models), tuple(options.clusters)), options.jobs)
        facts = {"seconds": round(time.monotonic() - started_s), "date": str(date.today()), "commit": _commit()}
        data = as_data(rows, facts)
    text = page(rows_of(data), data["facts"])
    if options.write or options.from_json:
        RESULT.write_text(json.dumps(data, separators=(",", ":")) + "\n")
        PAGE.write_text(text)
        draw(rows_of(data), IMAGES)
    else:
        sys.stdout.write(text)
    return 0


def _run_all(matrix: list[Place], jobs: int) -> list[Row]:
    rows: list[Row] = []
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        for number, found in enumerate(pool.map(run_place, matrix), 1):
            rows += found
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{number} of {len(matrix)} places")
    return rows


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
