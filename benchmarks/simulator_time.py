"""How long the simulator takes: with the steady state added as whole periods, and with every microbatch simulated.

A GPT layer with seven units and two tensor-parallel windows in each direction, all units dropped, windows of all kinds
filled. The best of some calls in one process counts; building the lists of actions is part of it.

    .venv/bin/python benchmarks/simulator_time.py --output benchmarks/simulator_time.md \\
        --plot docs/images/simulator_time.png
"""

import argparse
import dataclasses
import os
import pathlib
import platform
import subprocess
import sys
import time
from datetime import date

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from overlap_recompute.plan.layer_units import LAYER_UNITS  # noqa: E402
from overlap_recompute.plan.plan_file import Plan  # noqa: E402
from overlap_recompute.plan.profile import COMPUTE, LayerKind, PassStep, Profile, UnitCost  # noqa: E402
from overlap_recompute.plan.split import Split, even_split  # noqa: E402
from overlap_recompute.plan.storages import StorageRow  # noqa: E402
from overlap_recompute.simulator import SimulationResult, simulate  # noqa: E402
from tests.unit.plan.samples import sample_profile  # noqa: E402
from tests.unit.simulator.models import plan_of  # noqa: E402

TIMES_US = dict(zip(LAYER_UNITS, (31.0, 410.0, 55.0, 380.0, 31.0, 540.0, 120.0), strict=True))
READS = {"linear_qkv": "input_layernorm", "rotary": "linear_qkv", "core_attention": "rotary"}
READS |= {"linear_fc1": "pre_mlp_layernorm", "activation": "linear_fc1"}
NBYTES = 16 << 20
LAYERS, STAGES = 48, 8
REPEATS, REPEATS_LONG = 5, 3
TARGET_S = 0.3


def gpt_layer() -> LayerKind:
    """Steps as in docs/simulator.md."""
    units = tuple(
        UnitCost(
            name=name, forward_us=time_us, spread_us=0, reads=(READS[name],) if name in READS else (), is_random=False
        )
        for name, time_us in TIMES_US.items()
    )
    window = PassStep(kind="tp_forward", name="all_reduce", duration_us=350.0)
    attention = [PassStep(kind=COMPUTE, name=unit.name, duration_us=unit.forward_us) for unit in units[:4]]
    feed_forward = [PassStep(kind=COMPUTE, name=unit.name, duration_us=unit.forward_us) for unit in units[4:]]
    linear = PassStep(kind=COMPUTE, name="linear", duration_us=430.0)
    behind = dataclasses.replace(window, kind="tp_backward", duration_us=210.0, hidden_us=140.0)
    return LayerKind(
        fingerprint="gpt", description="GPT layer", units=units,
        storages=tuple(StorageRow(name=name, nbytes=NBYTES, maker=name, held=True) for name in LAYER_UNITS),
        forward=(*attention, linear, window, *feed_forward, linear, window),
        backward=(
            PassStep(kind=COMPUTE, name="feed-forward", duration_us=2250.0, needs=LAYER_UNITS[4:]),
            behind,
            PassStep(kind=COMPUTE, name="norm", duration_us=70.0, needs=("pre_mlp_layernorm",)),
            PassStep(kind=COMPUTE, name="attention", duration_us=2400.0, needs=LAYER_UNITS[:4]),
            behind,
            PassStep(kind=COMPUTE, name="norm", duration_us=70.0),
        ),
        parameters=1000, expert_parameters=0, transient_bytes=NBYTES,
    )  # fmt: skip


def case(split: Split, microbatches: int) -> tuple[Profile, Plan]:
    """A model of such layers, and a plan that drops everything."""
    profile = dataclasses.replace(sample_profile(split), kinds=(gpt_layer(),))
    return profile, plan_of(profile, microbatches, LAYER_UNITS, prefetch_cap_bytes=20 * NBYTES)


def best_s(profile: Profile, plan: Plan, *, every: bool) -> tuple[float, SimulationResult]:
    """Shortest time of some calls, and the result."""
    times_s = []
    for _ in range(REPEATS_LONG if every and plan.layout.microbatches > 256 else REPEATS):
        begin_s = time.perf_counter()
        result = simulate(profile, plan, every_microbatch=every)
        times_s.append(time.perf_counter() - begin_s)
    return min(times_s), result


def measure() -> tuple[list[list[str]], dict[bool, list[tuple[int, float]]]]:
    """Rows of the table, and seconds by microbatches for the plot."""
    rows: list[list[str]] = []
    curves: dict[bool, list[tuple[int, float]]] = {False: [], True: []}
    sizes = [(LAYERS, 1, count) for count in (64, 128, 256, 512, 1024)]
    for layers, chunks, microbatches in (*sizes, (2 * LAYERS, 1, 512), (LAYERS, 2, 512), (LAYERS, 3, 512)):
        profile, plan = case(even_split(layers, STAGES, chunks), microbatches)
        (short_s, short), (full_s, full) = (best_s(profile, plan, every=every) for every in (False, True))
        assert abs(short.iteration_us / full.iteration_us - 1) < 1e-9
        if (layers, chunks) == (LAYERS, 1):
            curves[False].append((microbatches, short_s))
            curves[True].append((microbatches, full_s))
        sizes_text = [str(layers), str(chunks), str(microbatches), str(short.simulated_microbatches)]
        rows.append([*sizes_text, f"{short_s:.3f}", f"{full_s:.3f}"])
    return rows, curves


def page(rows: list[list[str]], command: str) -> str:
    """The page."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    header = ["layers", "chunks of a stage", "microbatches", "simulated", "s", "s, every microbatch"]
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    times_s = [float(row[4]) for row in rows if row[0] == str(LAYERS) and row[2] == "512"]
    target = max(times_s)
    verdict = "kept" if target <= TARGET_S else "missed"
    return "\n".join(
        [
            "# Time of a simulation",
            "",
            f"Commit {commit.stdout.strip()} and later changes, {date.today().isoformat()}, {machine}, one core. "
            f"{STAGES} pipeline stages, all units of all layers dropped. Best of {REPEATS} calls in one process "
            f"({REPEATS_LONG} every one of more than 256 microbatches). Load of the machine behind it (this program "
            f"alone makes 1): {os.getloadavg()[0]:.0f}.",
            "",
            f"    {command}",
            "",
            *lines,
            "",
            f"The aim for {LAYERS} layers and 512 microbatches is {TARGET_S} s: {verdict} with "
            f"{times_s[0]:.3f} s, and {target:.3f} s at most with 2 and 3 chunks. Both "
            "columns give the same iteration (the script compares them). With every microbatch the time is linear in "
            "their number; layers cost little, because a pass in a state that was seen before is looked up.",
            "",
            "![Time by number of microbatches](../docs/images/simulator_time.png)",
            "",
        ]
    )


def plot(curves: dict[bool, list[tuple[int, float]]], path: pathlib.Path) -> None:
    """Seconds by microbatches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2))
    for every, label in ((True, "every microbatch"), (False, "steady state as periods")):
        axes.plot(*zip(*curves[every], strict=True), marker="o", label=label)
    axes.set(xlabel="microbatches", ylabel="seconds", title=f"{STAGES} stages, {LAYERS} layers", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, help="write the page here")
    parser.add_argument("--plot", type=pathlib.Path, help="write the plot here")
    options = parser.parse_args()
    rows, curves = measure()
    text = page(rows, ".venv/bin/python " + " ".join(sys.argv))
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    if options.plot:
        plot(curves, options.plot)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
