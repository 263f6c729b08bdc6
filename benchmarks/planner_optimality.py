"""How far mix and heu are from opt, on random stages and on stages of GPT and Llama layers.

python benchmarks/planner_optimality.py --instances 300 --seconds 200
"""

import argparse
import dataclasses
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from overlap_recompute.planner import InfeasibleError, solve_stage
from overlap_recompute.planner.build import build_stage_problem
from overlap_recompute.planner.problem import StageProblem, StageSolution, memory_of
from overlap_recompute.planner.solve import Memory, Search
from overlap_recompute.planner.verify import find_faults
from tests.unit.planner.instances import everything, random_problem
from tests.unit.planner.profiles import profile_of, transformer_kind

BOUNDS = {"mix": 0.01, "heu": 0.05}


def transformer_stage(
    share: float, link_gb_per_s: float, *, llama: bool, layers: int = 48, stages: int = 8, stage: int = 0
) -> StageProblem:
    """A stage whose budget is the share of the way from dropping everything to dropping nothing."""
    split = ((layers // stages,),) * stages
    kind = transformer_kind(llama=llama, link_gb_per_s=link_gb_per_s)
    profile = profile_of((kind,), (0,) * layers, split, 64, end_bytes=1 << 20)
    problem = build_stage_problem(profile, split, stage, 64, 1 << 50)
    none = sum(memory_of(problem, [frozenset()] * len(problem.layers)))
    full = sum(memory_of(problem, everything(problem)))
    return dataclasses.replace(problem, budget_bytes=int(full + (none - full) * share))


def solved(problem: StageProblem, planner: str, memory: Memory, limit_s: float, gap: float) -> StageSolution | None:
    """A checked solution, or None."""
    try:
        found = solve_stage(problem, planner, memory=memory, search=Search(limit_s=limit_s, gap=gap))
    except InfeasibleError:
        return None
    faults = find_faults(problem, found)
    if faults:
        raise SystemExit(f"{planner}: {faults}")
    return found


def sweep(instances: int, seconds: float) -> None:
    """Random stages, until time is up."""
    end_s = time.monotonic() + seconds
    gaps: dict[str, list[float]] = {name: [] for name in BOUNDS}
    unproven = infeasible = count = 0
    for seed in range(instances):
        if time.monotonic() > end_s:
            break
        count += 1
        problem, memory = random_problem(10_000 + seed, most_layers=4, most_units=4), Memory()
        best = solved(problem, "opt", memory, 5.0, 0.0)
        if best is None:
            infeasible += 1
            continue
        unproven += best.exposed_us - best.bound_us > 1e-4 * max(1.0, best.exposed_us)
        for name in BOUNDS:
            found = solved(problem, name, memory, 5.0, 0.0)
            assert found is not None
            worse_us = found.exposed_us - best.exposed_us
            gaps[name].append(0.0 if worse_us <= 1e-4 else worse_us / max(best.exposed_us, 1.0))
    print(f"{count} stages, {infeasible} infeasible, {unproven} where opt proved no optimum in 5 s")
    print("| planner | as good as opt | within bound | bound | median gap | 99th percentile | worst |")
    print("|---|---|---|---|---|---|---|")
    for name, values in gaps.items():
        values.sort()
        equal, within = sum(value == 0 for value in values), sum(value <= BOUNDS[name] for value in values)
        median, late, worst = (values[int(share * (len(values) - 1))] for share in (0.5, 0.99, 1.0))
        print(
            f"| `{name}` | {equal} of {len(values)} | {within} of {len(values)} | {BOUNDS[name]:.0%} "
            f"| {median:.1%} | {late:.1%} | {worst:.1%} |"
        )


def transformers(limit_s: float) -> None:
    """Stage 0 of 8, six layers; exposed ms by planner."""
    print("| layers | link GB/s | memory | `adapipe` | `heu` | `mix` | `opt` | bound |")
    print("|---|---|---|---|---|---|---|---|")
    for llama in (False, True):
        for link in (20.0, 60.0, 250.0):
            for share in (0.1, 0.4):
                problem, memory = transformer_stage(share, link, llama=llama), Memory()
                cells = [solved(problem, name, memory, limit_s, 0.01) for name in ("adapipe", "heu", "mix", "opt")]
                texts = [f"{found.exposed_us / 1e3:.2f}" for found in cells if found is not None]
                bound_us = 0.0 if cells[-1] is None else cells[-1].bound_us
                name = "Llama" if llama else "GPT"
                print(f"| {name} | {link:.0f} | {share:.0%} | {' | '.join(texts)} | {bound_us / 1e3:.2f} |", flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--limit-s", type=float, default=8.0, help="for opt on a transformer stage; 0: leave them out")
    options = parser.parse_args()
    sweep(options.instances, options.seconds)
    if options.limit_s:
        transformers(options.limit_s)


if __name__ == "__main__":
    main()
