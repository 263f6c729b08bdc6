"""Simulated against real: runs of the trainer over shaped links, predicted from profiles of other runs.

For each layout one run is profiled, at one rate. Every other run of it is predicted from that profile: other policies,
other rates (the profile's links scaled), other splits, more microbatches. A piece is one start of two ranks; in it
profiles and arms take turns, so that both see the machine at the same time:

    every arm, profile | profile | arms of case 1 | profile | arms of case 2 | ... | profile

The first turns do not count: in them memory is mapped that then stays. A case is predicted with the mean of the two
profiles beside it, and its arms are run in another order in every piece. Measured are medians over the iterations of
all pieces, predicted are means over pieces. `--write` adds a piece to those that are there; `--fresh` drops these
first.

    .venv/bin/python benchmarks/simulated_real.py --layouts "TP=2" --write --fresh   # about three minutes
    .venv/bin/python benchmarks/simulated_real.py --layouts "TP=2" --write           # one more piece of it

Needs root and iproute2 (tools/linklab), and a quiet machine.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from datetime import date

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.overlap_cpu import BASE, KEEPING, LLAMA, PP2, TP2  # noqa: E402
from benchmarks.simulated_real_page import draw, page, rows_of  # noqa: E402
from overlap_recompute.plan.profile import COMPUTE, Profile  # noqa: E402
from overlap_recompute.plan.split import Split, layout_text  # noqa: E402
from overlap_recompute.plan.validation import read_profile  # noqa: E402
from overlap_recompute.planner.by_hand import plan_of_policy  # noqa: E402
from overlap_recompute.simulator import simulate  # noqa: E402
from overlap_recompute.simulator.variations import varied  # noqa: E402

RESULT = ROOT / "benchmarks" / "simulated_real.json"
PAGE = ROOT / "benchmarks" / "simulated_real.md"
PLOT = ROOT / "docs" / "images" / "simulated_real.png"
OURS = ["--schedule-impl", "overlap"]
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""In 4 KiB pages a run that keeps its activations takes up to 5 % longer for the same operations than one that drops
them (2026-11-26: 1.16 s against 1.10 s outside of windows), on a machine whose memory is busy: no cost that a profile
shows."""
PROFILE, WARM_UP, PROFILED_ITERATIONS = "profile", "warm-up", 2
WARM_UP_MBIT = 1000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One run."""

    policy: str
    """Of `--overlap-recompute-policy`."""
    split: Split | None = None
    """Layers by stage, where it is not the even one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Arms that are compared with each other."""

    rate_mbit: int
    arms: tuple[Arm, ...]
    microbatches: int = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A layout: what is profiled, and what is predicted from it."""

    flags: list[str]
    profile_mbit: int
    cases: tuple[Case, ...]


def arms(*policies: str) -> tuple[Arm, ...]:
    """Arms of the even split."""
    return tuple(Arm(policy=policy) for policy in policies)


SOME = "all:core_attention+activation"
UNEVEN = (Arm(policy="none", split=((3,), (1,))), Arm(policy="0:all,1:none", split=((1,), (3,))))
LAYOUTS: dict[str, Plan] = {
    "TP=2": Plan(
        flags=TP2,
        profile_mbit=300,
        cases=(
            Case(rate_mbit=400, arms=arms("none", "all", "on-demand", SOME)),
            Case(rate_mbit=200, arms=arms("none", "all", "on-demand")),
            Case(rate_mbit=400, arms=arms("none", "all"), microbatches=8),
        ),
    ),
    "TP=2 SP": Plan(
        flags=[*TP2, "--sequence-parallel"],
        profile_mbit=300,
        cases=(Case(rate_mbit=400, arms=arms("none", "all", "on-demand")),),
    ),
    "TP=2 Llama": Plan(
        flags=[*TP2, *LLAMA],
        profile_mbit=300,
        cases=(Case(rate_mbit=400, arms=arms("none", "all", "on-demand")),),
    ),
    "PP=2": Plan(
        flags=PP2,
        profile_mbit=200,
        cases=(
            Case(rate_mbit=400, arms=(*arms("none", "0:all,1:none", "on-demand"), *UNEVEN)),
            Case(rate_mbit=100, arms=arms("none", "0:all,1:none", "on-demand")),
            Case(rate_mbit=100, arms=arms("none", "0:all,1:none"), microbatches=8),
        ),
    ),
}


def in_lab(rate_mbit: int, command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command as one rank on each of two hosts, with more in its environment."""
    lab = [sys.executable, str(ROOT / "tools/linklab"), "--hosts", "2", "--rate", f"{rate_mbit}mbit", "--pin"]
    words = [*lab, "--timeout-s", "900", "--", *command]
    environ = {**os.environ, **(environment or {})}
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=1000, check=False)
    if done.returncode:
        raise SystemExit(f"the lab ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def name_of(arm: Arm) -> str:
    """What a table calls an arm."""
    return arm.policy if arm.split is None else f"{arm.policy}, {layout_text(arm.split)}"


def _key(case: Case, arm: Arm) -> str:
    return f"{name_of(arm)} x{case.microbatches}"


def flags_of(plan: Plan, case: Case, arm: Arm) -> list[str]:
    """Flags of an arm on top of the base."""
    schedule = OURS if PP2[0] in plan.flags else []
    uneven = [] if arm.split is None else ["--pipeline-model-parallel-layout", layout_text(arm.split)]
    recompute = ["--overlap-recompute", "--overlap-recompute-policy", arm.policy]
    return [*schedule, *uneven, *recompute, "--global-batch-size", str(2 * case.microbatches)]


def turns_of(plan: Plan, cases: list[int], number: int, iterations: int, folder: pathlib.Path) -> list[dict]:
    """The turns of a piece: each arm and a profile to warm up, a profile, then the arms of each case and a profile."""

    def profile(place: int) -> dict:
        return {
            "kind": PROFILE, "arm": PROFILE, "rate_mbit": plan.profile_mbit, "iterations": PROFILED_ITERATIONS,
            "path": str(folder / f"profile{place}.json"), "is_used": True,
        }  # fmt: skip

    every = [_key(plan.cases[index], arm) for index in cases for arm in plan.cases[index].arms]
    warm_up = {"kind": WARM_UP, "rate_mbit": WARM_UP_MBIT, "iterations": 0}
    turns = [{**warm_up, "arm": name} for name in dict.fromkeys(every)]
    turns += [{**profile(0), "is_used": False}, profile(0)]
    for place, index in enumerate(cases):
        case = plan.cases[index]
        start = number % len(case.arms)
        for arm in (*case.arms[start:], *case.arms[:start]):
            turn = {"kind": "arm", "arm": _key(case, arm), "rate_mbit": case.rate_mbit, "iterations": iterations}
            place_of = {"case": index, "place": place, "name": name_of(arm), "microbatches": case.microbatches}
            turns.append(turn | place_of)
        turns.append(profile(place + 1))
    return turns


def predict(profile: Profile, plan: Plan, case: Case, arm: Arm) -> dict[str, float]:
    """Seconds of an iteration, and of them of waits and of recompute that is hidden or not (means over stages)."""
    here = varied(profile, bandwidth=case.rate_mbit / plan.profile_mbit)
    layout = dataclasses.replace(
        profile.layout, split=arm.split or profile.layout.split, microbatches=case.microbatches
    )
    result = simulate(here, plan_of_policy(here, arm.policy, layout))
    stages = len(result.stages)
    waits_us = sum(use.length_us - use.filled_us for stage in result.stages for use in stage.windows)
    exposed_us = sum(stage.exposed_us for stage in result.stages)
    return {
        "iteration_s": result.iteration_us / 1e6,
        "waits_s": waits_us / stages / 1e6,
        "exposed_s": exposed_us / stages / 1e6,
        "hidden_s": sum(stage.hidden_us for stage in result.stages) / stages / 1e6,
    }


def compute_ms(profile: Profile) -> float:
    """Of forward and backward pass of all layers and both ends, without windows, for one microbatch."""
    kinds = [profile.kind_of(layer) for layer in range(len(profile.layers))]
    passes = [steps for part in (*kinds, profile.embedding, profile.head) for steps in (part.forward, part.backward)]
    return sum(step.duration_us for steps in passes for step in steps if step.kind == COMPUTE) / 1e3


def run_piece(name: str, chosen: list[int] | None, number: int, iterations: int, keep: pathlib.Path | None) -> dict:
    """One start of two ranks: everything about a layout, or about some of its cases, once."""
    plan = LAYOUTS[name]
    cases = [index for index in range(len(plan.cases)) if chosen is None or index in chosen]
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        turns = turns_of(plan, cases, number, iterations, folder)
        given = {_key(case, arm): flags_of(plan, case, arm) for case in plan.cases for arm in case.arms}
        given[PROFILE] = flags_of(plan, Case(rate_mbit=0, arms=()), Arm(policy="none"))
        text = json.dumps({"base": [*BASE, *plan.flags], "arms": given, "turns": turns})
        piece, output = folder / "piece.json", folder / "result.json"
        piece.write_text(text)
        ranks = [sys.executable, str(ROOT / "benchmarks/simulated_real_ranks.py")]
        in_lab(plan.profile_mbit, [*ranks, "--piece", str(piece), "--output", str(output)], {**KEEPING, **HUGE_PAGES})
        done = json.loads(output.read_text())
        used = [turn for turn in done if turn.get("is_used")]
        profiles = [read_profile(pathlib.Path(turn["path"])) for turn in used]
    probes = [turn["probe_ms"] for turn in used]
    found = []
    for turn in done:
        if turn["kind"] in (PROFILE, WARM_UP):
            continue
        place, case = turn["place"], plan.cases[turn["case"]]
        (arm,) = (arm for arm in case.arms if name_of(arm) == turn["name"])
        beside = [predict(profile, plan, case, arm) for profile in profiles[place : place + 2]]
        found.append(
            {
                **turn,
                "predicted": {part: sum(one[part] for one in beside) / len(beside) for part in beside[0]},
                "probe_ms of profiles": sum(probes[place : place + 2]) / 2,
            }
        )
    return {
        "date": str(date.today()),
        "profile_mbit": plan.profile_mbit,
        "profiles": [{"compute_ms": compute_ms(one), "probe_ms": ms} for one, ms in zip(profiles, probes, strict=True)],
        "turns": found,
    }


def commit() -> str:
    """Of the work tree, with a plus where it has other code of this part than the commit."""
    said = []
    watched = ["benchmarks/*.py", "megatron", "overlap_recompute"]
    for command in (["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain", "--", *watched]):
        said.append(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip())
    return said[0] + (" and later changes" if said[1] else "")


def main() -> int:
    """Measure the chosen layouts; with --write put them beside the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS), metavar="LAYOUT")
    parser.add_argument("--cases", nargs="+", type=int, help="numbers of the cases, from 0 (default: all of a layout)")
    parser.add_argument("--iterations", type=int, default=2, help="counted iterations a turn (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="drop what was measured before of these layouts")
    parser.add_argument("--keep", type=pathlib.Path, help="keep profiles and raw results in a folder of this one")
    parser.add_argument("--write", action="store_true", help="write figures, page and plot")
    options = parser.parse_args()
    kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in options.layouts:
        before = [] if options.fresh else kept.get(name, [])
        folder = None if options.keep is None else options.keep / f"{name.replace(' ', '_')}_{len(before)}"
        piece = run_piece(name, options.cases, len(before), options.iterations, folder)
        kept[name] = [*before, {**piece, "commit": commit()}]
        for row in rows_of({name: kept[name]}):
            place = f"{name} {row.rate_mbit}mbit x{row.microbatches}"
            print(f"{place} {row.arm}: {row.predicted_s:.3f} {row.measured_s:.3f} {row.error:+.1%}", flush=True)
    if options.write:
        kept = {name: kept[name] for name in LAYOUTS if name in kept}
        RESULT.write_text(json.dumps(kept, indent=1) + "\n")
        PAGE.write_text(page(kept))
        draw(rows_of(kept), PLOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
