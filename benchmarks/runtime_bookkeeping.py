"""What the runtime costs per unit call and per replay beyond the unit's own compute, on tensors of eight numbers.

Replays are marked in an event ring, as in a training run.

Run: `python benchmarks/runtime_bookkeeping.py [--rounds 60] [--write]`; `--write` puts the table into
`benchmarks/runtime_bookkeeping.md`. Processor time of the thread, so that other programs on the machine disturb it
less; arms interleaved in one run; medians over rounds.
"""

import argparse
import datetime
import pathlib
import platform
import statistics
import subprocess
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from overlap_recompute.ops import build_info, event_ring
from overlap_recompute.runtime import Policy, ReplayMarks, Runtime

UNITS = 32
LEAST_ROUNDS = 15
TARGET_US = 25.0
TABLE = pathlib.Path(__file__).with_suffix(".md")


class Kind(NamedTuple):
    """A kind of unit to measure."""

    name: str
    make: Callable[[], nn.Module]


class Load(NamedTuple):
    """How many microbatches a step has, and how many of them wait for their backward pass at a time."""

    microbatches: int
    in_flight: int


KINDS = (
    Kind("GELU", nn.GELU),
    Kind("LayerNorm", lambda: nn.LayerNorm(8)),
    Kind("Linear", lambda: nn.Linear(8, 8)),
    Kind("Dropout (draws random numbers)", lambda: nn.Dropout(0.1)),
)
LOADS = (Load(1, 1), Load(8, 4), Load(64, 4), Load(256, 4), Load(64, 64))


class Times(NamedTuple):
    """Processor time, in us per unit and microbatch."""

    forward_us: float
    backward_us: float


def microbatch_number(key: object) -> int:
    """A number for the marks; keys are numbers here."""
    assert isinstance(key, int)
    return key


def measure(stack: nn.Module, x: Tensor, load: Load, runtime: Runtime | None) -> Times:
    """One step in the order of a pipeline: forward until `in_flight` microbatches wait, then one backward each."""
    waiting: deque[Tensor] = deque()
    forward_ns = backward_ns = 0
    for key in range(load.microbatches + load.in_flight):
        begin_ns = time.thread_time_ns()
        if key < load.microbatches:
            if runtime is None:
                waiting.append(stack(x).sum())
            else:
                with runtime.microbatch(key):
                    waiting.append(stack(x).sum())
        middle_ns = time.thread_time_ns()
        if key + 1 >= load.in_flight and waiting:
            waiting.popleft().backward()
        end_ns = time.thread_time_ns()
        forward_ns += middle_ns - begin_ns
        backward_ns += end_ns - middle_ns
    if runtime is not None:
        runtime.step_end()
    for parameter in stack.parameters():
        parameter.grad = None
    calls = 1000 * UNITS * load.microbatches
    return Times(forward_ns / calls, backward_ns / calls)


def overhead(kind: Kind, load: Load, rounds: int) -> Times:
    """Medians of the overhead of (unit call, replay); a replay's own compute is one plain forward pass of the unit."""
    plain = nn.Sequential(*(kind.make() for _ in range(UNITS)))
    dropped = nn.Sequential(*(kind.make() for _ in range(UNITS)))
    x = torch.randn(1, 8, requires_grad=True)
    runtime = Runtime(Policy.recompute_all(), marks=ReplayMarks(event_ring(), microbatch_number))
    runtime.attach(dropped, units=["*"])
    calls, replays = [], []
    for _ in range(rounds):
        base = measure(plain, x, load, None)
        ours = measure(dropped, x, load, runtime)
        calls.append(ours.forward_us - base.forward_us)
        replays.append(ours.backward_us - base.backward_us - base.forward_us)
    return Times(statistics.median(calls), statistics.median(replays))


def table(rounds: int) -> list[str]:
    """The table, as lines of markdown."""
    lines = ["| unit | microbatches | in flight | us per unit call | us per replay |", "|---|---|---|---|---|"]
    for kind in KINDS:
        for load in LOADS:
            cost = overhead(kind, load, max(LEAST_ROUNDS, rounds // load.microbatches))
            figures = f"{cost.forward_us:.1f} | {cost.backward_us:.1f}"
            lines.append(f"| {kind.name} | {load.microbatches} | {load.in_flight} | {figures} |")
    return lines


def commit() -> str:
    """The commit of the working tree, if there is one, and whether the runtime differs from it."""
    sources = [str(TABLE.parents[1] / name) for name in ("overlap_recompute/runtime", "overlap_recompute/ops", "csrc")]
    commands = ["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain", "--", *sources]
    try:
        found, changes = (
            subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=TABLE.parent)
            for command in commands
        )
    except OSError:
        return "unknown"
    if found.returncode:
        return "not committed yet"
    return found.stdout.strip() + (" with changes to the runtime" if changes.stdout else "")


def page(lines: list[str]) -> str:
    """The table with what a reader must know about it."""
    extension = "with" if build_info().extension else "without"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, CPU ({platform.machine()})"
    return "\n".join(
        [
            "# Bookkeeping of the runtime",
            "",
            "What a dropped unit costs beyond its own compute: per call in the forward pass, and per replay in the",
            f"backward pass. The target is at most {TARGET_US:.0f} us each, flat in the number of microbatches.",
            "",
            f"- commit {commit()}, {datetime.date.today()}, {versions}, one thread",
            "- `python benchmarks/runtime_bookkeeping.py --write`: medians of processor time, arms interleaved",
            f"- {extension} the compiled extension, which does the usual case of what happens for every tensor",
            f"- {UNITS} units in a row on tensors of eight numbers; every unit is dropped, none keeps anything",
            "- a replay's own compute is taken to be one plain forward pass of the unit",
            "",
            *lines,
            "",
            "Somewhere above 4000 dropped calls alive at once, Python's cyclic garbage collector begins to visit them",
            "all once a step, which adds up to 15 us per call. The runtime makes no cycles and does not need it:",
            "a trainer that collects by hand (`gc.disable()`, and `gc.collect()` now and then) does not pay for it.",
            "",
        ]
    )


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=60, help="steps per figure with one microbatch")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    overhead(KINDS[0], LOADS[0], 5)
    lines = table(arguments.rounds)
    print("\n".join(lines))
    if arguments.write:
        TABLE.write_text(page(lines))


if __name__ == "__main__":
    main()
