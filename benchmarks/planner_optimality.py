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
FLOOR_US = 1.0
"""So much more than opt exposes is no difference."""


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


def sweep(instances: int, seconds: float, limit_s: float, *, layers: int, units: int) -> None:
    """Random stages, until time is up; distances from opt measured in three ways."""
    end_s = time.monotonic() + seconds
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in BOUNDS}
    unproven = infeasible = count = 0
    for seed in range(instances):
        if time.monotonic() > end_s:
            break
        count += 1
        problem, memory = random_problem(10_000 + seed, most_layers=layers, most_units=units), Memory()
        best = solved(problem, "opt", memory, limit_s, 0.0)
        if best is None:
            infeasible += 1
            continue
        unproven += best.exposed_us - best.bound_us > 1e-4 * max(1.0, best.exposed_us)
        for name in BOUNDS:
            found = solved(problem, name, memory, limit_s, 0.0)
            assert found is not None
            rows[name].append((found.exposed_us, best.exposed_us, stage_us(problem)))
    print(f"up to {layers} layers and {units} units: {count} stages, {infeasible} infeasible, "
          f"{unproven} where opt proved no optimum in {limit_s:g} s")  # fmt: skip
    print("| planner | as good as opt | within bound | of the stage's time | worst there | all stages together |")
    print("|---|---|---|---|---|---|")
    for name, values in rows.items():
        share = BOUNDS[name]
        equal = sum(found_us <= best_us + 1e-4 for found_us, best_us, _ in values)
        within = sum(found_us <= best_us * (1 + share) + FLOOR_US for found_us, best_us, _ in values)
        of_stage = [max(0.0, found_us - best_us) / (work_us + best_us) for found_us, best_us, work_us in values]
        together = sum(row[0] for row in values) / max(1.0, sum(row[1] for row in values)) - 1
        print(
            f"| `{name}` | {equal} of {len(values)} | {within} of {len(values)} within {share:.0%} "
            f"| {sum(each <= share for each in of_stage)} of {len(values)} within {share:.0%} "
            f"| {max(of_stage):.2%} | {together:+.1%} |"
        )


def stage_us(problem: StageProblem) -> float:
    """Forward and backward of a microbatch, nothing recomputed."""
    kinds = [problem.kinds[layer.kind] for layer in problem.layers]
    return sum(step.duration_us for kind in kinds for step in (*kind.forward, *kind.backward))


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
    sweep(options.instances, options.seconds / 3, 5.0, layers=3, units=3)
    sweep(options.instances, options.seconds * 2 / 3, 1.0, layers=8, units=8)
    if options.limit_s:
        transformers(options.limit_s)


if __name__ == "__main__":
    main()
