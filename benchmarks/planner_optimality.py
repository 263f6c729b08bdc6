"""How far mix and heu are from opt, on random stages and on stages of GPT and Llama layers.

python benchmarks/planner_optimality.py --instances 345
python benchmarks/planner_optimality.py --only transformers

What opt found and proved for the larger random stages is kept in benchmarks/planner_optima.json: an optimum that is
proven need not be searched again. `--search` looks for those that are not there or not proven, and writes the file.
"""

import argparse
import dataclasses
import json
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

PARTS = ("small", "large", "fresh", "transformers")
BOUNDS = {"mix": 0.01, "heu": 0.05}
SMALL_SEEDS, SEEDS, FRESH_SEEDS = 20_000, 10_000, 30_000
"""Fresh ones are as large, and nothing was tuned on them."""
OPTIMA = pathlib.Path(__file__).with_name("planner_optima.json")
PROVEN = 1e-4
"""Relative gap below which an optimum counts as proven."""
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Optimum:
    """What opt found for a stage; times are None where nothing fits."""

    seed: int
    budget_bytes: int
    """Of the stage, to recognize another one."""
    exposed_us: float | None
    bound_us: float | None

    @property
    def is_proven(self) -> bool:
        """Whether no solution is better."""
        if self.exposed_us is None or self.bound_us is None:
            return True
        return self.exposed_us - self.bound_us <= PROVEN * max(1.0, self.exposed_us)


def read_optima(path: pathlib.Path) -> dict[int, Optimum]:
    """By seed."""
    rows = json.loads(path.read_text()) if path.exists() else []
    return {row["seed"]: Optimum(**row) for row in rows}


def write_optima(path: pathlib.Path, optima: dict[int, Optimum]) -> None:
    """One line for each."""
    rows = [json.dumps(dataclasses.asdict(optima[seed])) for seed in sorted(optima)]
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n")


def search_optima(optima: dict[int, Optimum], seeds: range, limit_s: float, *, layers: int, units: int) -> None:
    """Let opt search where the optimum is not known."""
    for seed in seeds:
        problem = random_problem(seed, most_layers=layers, most_units=units)
        old = optima.get(seed)
        if old is not None and old.is_proven and old.budget_bytes == problem.budget_bytes:
            continue
        found = solved(problem, "opt", Memory(), limit_s, 0.0)
        optima[seed] = Optimum(
            seed=seed,
            budget_bytes=problem.budget_bytes,
            exposed_us=None if found is None else found.exposed_us,
            bound_us=None if found is None else found.bound_us,
        )


Row = tuple[float, float, float, float]
"""Exposed by a planner, the least known, what opt proved, and the time of the stage."""


def sweep(optima: dict[int, Optimum], seeds: range, *, layers: int, units: int) -> None:
    """Random stages: distances from the optimum, and where it is not proven from the best solution and the bound."""
    proven: dict[str, list[Row]] = {name: [] for name in BOUNDS}
    others: dict[str, list[Row]] = {name: [] for name in BOUNDS}
    spent_s = dict.fromkeys(BOUNDS, 0.0)
    for seed in seeds:
        problem, memory, optimum = random_problem(seed, most_layers=layers, most_units=units), Memory(), optima[seed]
        assert optimum.budget_bytes == problem.budget_bytes, "a file of other stages"
        found = {}
        for name in BOUNDS:
            begin_s = time.process_time()
            found[name] = solved(problem, name, memory, 0.0, 0.0)
            spent_s[name] += time.process_time() - begin_s
        if optimum.exposed_us is None or optimum.bound_us is None:
            assert not any(found.values()), seed
            continue
        times = {name: each.exposed_us for name, each in found.items() if each is not None}
        best_us = min(optimum.exposed_us, *times.values())
        assert len(times) == len(BOUNDS) and best_us >= optimum.bound_us - 1e-3, seed
        for name, exposed_us in times.items():
            rows = proven if optimum.is_proven else others
            rows[name].append((exposed_us, best_us, optimum.bound_us, stage_us(problem)))
    infeasible = len(seeds) - len(proven["mix"]) - len(others["mix"])
    print(f"\nup to {layers} layers and {units} units: {len(seeds)} stages, {infeasible} infeasible")
    means = (f"{name} {1e3 * each_s / len(seeds):.0f} ms" for name, each_s in spent_s.items())
    print("mean time of a stage: " + ", ".join(means))
    print(f"\noptimum proven, {len(proven['mix'])} stages:")
    report(proven)
    print(f"\nnot proven, {len(others['mix'])} stages, beside the best solution known:")
    report(others)
    for name, values in others.items():
        within = sum(found_us <= bound_us * (1 + BOUNDS[name]) + FLOOR_US for found_us, _, bound_us, _ in values)
        print(f"`{name}`: {within} of {len(values)} within {BOUNDS[name]:.0%} of the bound")


def report(rows: dict[str, list[Row]]) -> None:
    """Distances from the least known."""
    print("| planner | as good | within | of the stage's time | worst there | all stages together |")
    print("|---|---|---|---|---|---|")
    for name, values in rows.items():
        if not values:
            continue
        share = BOUNDS[name]
        equal = sum(found_us <= best_us + 1e-3 for found_us, best_us, _, _ in values)
        within = sum(found_us <= best_us * (1 + share) + FLOOR_US for found_us, best_us, _, _ in values)
        of_stage = [max(0.0, found_us - best_us) / (work_us + best_us) for found_us, best_us, _, work_us in values]
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
    parser.add_argument("--search", action="store_true", help="look for optima that are not known")
    parser.add_argument("--limit-s", type=float, default=8.0, help="for opt on a stage")
    parser.add_argument("--only", choices=PARTS, help="one part; without it all of them, one after the other")
    options = parser.parse_args()
    parts = (options.only,) if options.only else PARTS
    small, large, fresh = (range(seed, seed + options.instances) for seed in (SMALL_SEEDS, SEEDS, FRESH_SEEDS))
    if "small" in parts:
        optima: dict[int, Optimum] = {}
        search_optima(optima, small, options.limit_s, layers=3, units=3)
        sweep(optima, small, layers=3, units=3)
    if "large" in parts:
        optima = read_optima(OPTIMA)
        if options.search:
            search_optima(optima, large, options.limit_s, layers=8, units=8)
            write_optima(OPTIMA, optima)
        sweep(optima, large, layers=8, units=8)
    if "fresh" in parts:
        optima = {}
        search_optima(optima, fresh, options.limit_s, layers=8, units=8)
        sweep(optima, fresh, layers=8, units=8)
    if "transformers" in parts:
        transformers(options.limit_s)


if __name__ == "__main__":
    main()
