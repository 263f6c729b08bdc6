"""Measures what one mark of the event ring costs, and what the replay kernels' CPU twins take beside torch.

    python benchmarks/event_ring.py [--output benchmarks/event_ring.md]

Every figure is the best of several interleaved rounds: on a shared machine the best round is the one that was let
alone. The cost of a mark includes the call from Python and the loop around it; an empty loop has its own row.
"""

import argparse
import datetime
import os
import pathlib
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable

import torch

from overlap_recompute import ops
from overlap_recompute.ops import marks

ROUNDS = 15
MARKS = 20_000
SHAPE = (512, 4096)
LIMIT_NS = 1000.0
MEASURED = ("csrc", "overlap_recompute/ops")
"""What the figures are of."""


def best_ns(arms: dict[str, Callable[[int], None]], calls: int) -> dict[str, float]:
    """Nanoseconds per call of each arm; arm(calls) runs that many. Rounds are interleaved."""
    best = dict.fromkeys(arms, float("inf"))
    for _ in range(ROUNDS):
        for name, arm in arms.items():
            start = time.perf_counter_ns()
            arm(calls)
            best[name] = min(best[name], (time.perf_counter_ns() - start) / calls)
    return best


def empty_loop(calls: int) -> None:
    for _ in range(calls):
        pass


def marker(ring: ops.EventRing) -> Callable[[int], None]:
    mark = ring.mark

    def run(calls: int) -> None:
        for value in range(calls):
            mark(1, 0, value)

    return run


def beside_a_busy_thread(ring: ops.EventRing) -> Callable[[int], None]:
    """The same marks while another thread drains: the producer takes no lock."""
    run = marker(ring)

    def arm(calls: int) -> None:
        stop = threading.Event()

        def drain() -> None:
            while not stop.wait(0.0005):
                ring.drain()

        reader = threading.Thread(target=drain)
        reader.start()
        run(calls)
        stop.set()
        reader.join()

    return arm


def stream_marker(device: torch.device) -> Callable[[int], None]:
    """A launch of nothing on the lane, with its two marks in stream time."""
    marks = ops.StreamMarks(device)
    lane = ops.Lane(device, marks=marks)

    def run(calls: int) -> None:
        for value in range(calls):
            lane.launch(int, name=1, value=value).wait(ops.current_stream(device))
        marks.drain()

    return run


def mark_rows() -> list[tuple[str, float, str]]:
    native = ops.event_ring()
    python = marks.PythonEventRing(1 << 16)
    drained = ops.event_ring()
    arms: dict[str, Callable[[int], None]] = {
        "empty loop": empty_loop,
        "`ring.mark`": marker(native),
        "`ring.mark`, another thread drains": beside_a_busy_thread(drained),
        "`ring.mark`, fallback in Python": marker(python),
    }
    times = best_ns(arms, MARKS)
    lanes = {"`lane.launch(nothing)` + `fence.wait`, with two stream marks (CPU)": stream_marker(torch.device("cpu"))}
    if torch.cuda.is_available():
        lanes["the same on CUDA"] = stream_marker(torch.device("cuda", torch.cuda.current_device()))
    times |= best_ns(lanes, 500)
    limit = {"`ring.mark`": f"<= {LIMIT_NS:.0f}"}
    return [(name, value, limit.get(name, "")) for name, value in times.items()]


Pair = tuple[Callable[[], object], Callable[[], object]]


def replay_pairs(dtype: torch.dtype) -> dict[str, Pair]:
    """Kernel -> (our CPU twin, torch's own operators), on the same operands."""
    functional = torch.nn.functional
    x, residual = torch.randn(SHAPE).to(dtype), torch.randn(SHAPE).to(dtype)
    w, b = torch.randn(SHAPE[1]).to(dtype), torch.randn(SHAPE[1]).to(dtype)
    mean, rstd = ops.row_statistics(x, eps=1e-5)
    width, half = [SHAPE[1]], SHAPE[1] // 2
    return {
        "LayerNorm": (
            lambda: ops.layer_norm_replay(x, w, b, mean, rstd),
            lambda: functional.layer_norm(x, width, w, b),
        ),
        "RMSNorm": (lambda: ops.rms_norm_replay(x, w, rstd), lambda: functional.rms_norm(x, width, w)),
        "bias+GELU (tanh)": (
            lambda: ops.bias_gelu_replay(x, b),
            lambda: functional.gelu(x + b, approximate="tanh"),
        ),
        "bias+GELU (erf)": (
            lambda: ops.bias_gelu_replay(x, b, approximate="none"),
            lambda: functional.gelu(x + b),
        ),
        "SwiGLU": (lambda: ops.swiglu_replay(x), lambda: functional.silu(x[:, :half]) * x[:, half:]),
        "bias+dropout+add": (
            lambda: ops.bias_dropout_add_replay(x, b, residual, p=0.1, seed=1, offset=2),
            lambda: residual + functional.dropout(x + b, 0.1),
        ),
    }


def replay_rows() -> list[tuple[str, str, float, float]]:
    """Kernel, dtype, our milliseconds and torch's, one thread."""
    torch.set_num_threads(1)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for name, (ours, theirs) in replay_pairs(dtype).items():
            times = best_ns({"ours": lambda _, run=ours: run(), "torch": lambda _, run=theirs: run()}, 1)
            rows.append((name, str(dtype).removeprefix("torch."), times["ours"] * 1e-6, times["torch"] * 1e-6))
    return rows


def machine() -> str:
    """Processor, cores and load: what a reader needs to judge the figures."""
    model = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def commit() -> str:
    """The commit, marked where what is measured here differs from it."""
    commands = ["git", "rev-parse", "--short=12", "HEAD"], ["git", "status", "--porcelain", "--", *MEASURED]
    root = pathlib.Path(__file__).resolve().parents[1]
    outputs = [
        subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
        for command in commands
    ]
    return f"{outputs[0] or 'uncommitted'}{'-dirty' * bool(outputs[1])}"


def report() -> str:
    where = f"{commit()} | {datetime.date.today().isoformat()} | {machine()}"
    lines = [
        "# Event ring and CPU replay kernels",
        "",
        "`python benchmarks/event_ring.py --output benchmarks/event_ring.md`; the best of interleaved rounds.",
        "",
        *(f"- {line}" for line in ops.build_info().lines()),
        f"- torch {torch.__version__}, Python {platform.python_version()}",
        "- CUDA: " + (torch.cuda.get_device_name() if torch.cuda.is_available() else "not measured (no device)"),
        "",
        "## Cost of a mark",
        "",
        "| what | ns per call | target | commit | date | machine |",
        "|---|---:|---|---|---|---|",
    ]
    lines += [f"| {name} | {value:.0f} | {limit} | {where} |" for name, value, limit in mark_rows()]
    lines += [
        "",
        f"## CPU twins of the replay kernels, {list(SHAPE)}, one thread",
        "",
        "The norms are replayed from saved statistics; torch's include computing them.",
        "",
        "| kernel | dtype | ms | torch ms | commit | date | machine |",
        "|---|---|---:|---:|---|---|---|",
    ]
    rows = replay_rows()
    lines += [f"| {name} | {dtype} | {ours:.2f} | {torch_ms:.2f} | {where} |" for name, dtype, ours, torch_ms in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, help="write the report here, too")
    output: pathlib.Path | None = parser.parse_args().output
    text = report()
    print(text)
    if output is not None:
        with tempfile.NamedTemporaryFile("w", dir=output.parent, delete=False, encoding="utf-8") as partial:
            partial.write(text)
        os.replace(partial.name, output)


if __name__ == "__main__":
    main()
