"""What the runtime costs per unit call and per replay beyond the unit's own compute, on tensors of eight numbers.

Run: `python benchmarks/runtime_bookkeeping.py [--rounds 30] [--write]`; `--write` puts the table into
`benchmarks/runtime_bookkeeping.md`. Arms are interleaved in one run; figures are medians over rounds.
"""

import argparse
import datetime
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from overlap_recompute.runtime import Policy, Runtime

UNITS = 64
MICROBATCHES = (1, 8, 64)
TARGET_US = 25.0
TABLE = pathlib.Path(__file__).with_suffix(".md")


class Kind(NamedTuple):
    """A kind of unit to measure."""

    name: str
    make: Callable[[], nn.Module]


KINDS = (
    Kind("GELU", nn.GELU),
    Kind("LayerNorm", lambda: nn.LayerNorm(8)),
    Kind("Linear", lambda: nn.Linear(8, 8)),
    Kind("Dropout (draws random numbers)", lambda: nn.Dropout(0.1)),
)


class Times(NamedTuple):
    """Host time of one step of `UNITS` units and some microbatches, in us per unit and microbatch."""

    forward_us: float
    backward_us: float


def measure(stack: nn.Module, x: Tensor, microbatches: int, runtime: Runtime | None) -> Times:
    """One step: all forward passes, then all backward passes."""
    outputs, begin_ns = [], time.thread_time_ns()
    for key in range(microbatches):
        if runtime is None:
            outputs.append(stack(x).sum())
        else:
            with runtime.microbatch(key):
                outputs.append(stack(x).sum())
    middle_ns = time.thread_time_ns()
    outputs.reverse()
    while outputs:
        outputs.pop().backward()
    end_ns = time.thread_time_ns()
    if runtime is not None:
        runtime.step_end()
    for parameter in stack.parameters():
        parameter.grad = None
    calls = 1000 * UNITS * microbatches
    return Times((middle_ns - begin_ns) / calls, (end_ns - middle_ns) / calls)


def overhead(kind: Kind, microbatches: int, rounds: int) -> Times:
    """Medians of (unit call, replay) overhead: a replay's own compute is one plain forward pass of the unit."""
    plain = nn.Sequential(*(kind.make() for _ in range(UNITS)))
    dropped = nn.Sequential(*(kind.make() for _ in range(UNITS)))
    x = torch.randn(1, 8, requires_grad=True)
    runtime = Runtime(Policy.recompute_all())
    runtime.attach(dropped, units=["*"])
    calls, replays = [], []
    for _ in range(rounds):
        base = measure(plain, x, microbatches, None)
        ours = measure(dropped, x, microbatches, runtime)
        calls.append(ours.forward_us - base.forward_us)
        replays.append(ours.backward_us - base.backward_us - base.forward_us)
    return Times(statistics.median(calls), statistics.median(replays))


def table(rounds: int) -> list[str]:
    """The table, as lines of markdown."""
    lines = ["| unit | microbatches in flight | us per unit call | us per replay |", "|---|---|---|---|"]
    for kind in KINDS:
        for microbatches in MICROBATCHES:
            cost = overhead(kind, microbatches, max(3, rounds // microbatches))
            lines.append(f"| {kind.name} | {microbatches} | {cost.forward_us:.1f} | {cost.backward_us:.1f} |")
    return lines


def commit() -> str:
    """The commit of the working tree, if there is one."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10)
    except OSError:
        return "unknown"
    return found.stdout.strip() or "not committed yet"


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=60, help="steps per figure with one microbatch")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    overhead(KINDS[0], 1, 5)
    lines = table(arguments.rounds)
    print("\n".join(lines))
    if arguments.write:
        header = [
            "# Bookkeeping of the runtime",
            "",
            f"Overhead per unit call and per replay beyond the unit's own compute; target: at most {TARGET_US:.0f} us, flat in the",
            "number of microbatches. Every unit is dropped, so each one keeps handles only. Medians, arms interleaved, one thread.",
            "",
            f"- commit {commit()}, {datetime.date.today()}, Python {platform.python_version()}, torch {torch.__version__}, CPU",
            "- command: `python benchmarks/runtime_bookkeeping.py --write`",
            "",
        ]
        TABLE.write_text("\n".join([*header, *lines, ""]))


if __name__ == "__main__":
    main()
