"""An independent check of a solution: rules of the problem, read off the storage rows and pass steps once more.

It shares no pricing with the planners, so that a fault in one of them shows.
"""

from collections.abc import Collection, Iterator, Mapping

from overlap_recompute.plan.memory import layer_working_set_bytes
from overlap_recompute.plan.plan_file import FORWARD_WAIT, PIPELINE_WINDOW, Plan
from overlap_recompute.plan.profile import LayerKind, Profile
from overlap_recompute.planner.build import build_stage_problem
from overlap_recompute.planner.problem import ON_DEMAND, Fill, StageProblem, StageSolution
from overlap_recompute.planner.waits import predicted_waits

TOLERANCE_US = 1e-6


def find_faults(problem: StageProblem, solution: StageSolution, sent: Collection[int] = ()) -> list[str]:
    """What is wrong with a solution, in words; empty if it keeps all rules and its price is right.

    Args:
        problem: what was to be solved.
        solution: of it.
        sent: chunks whose gradient another stage sends, and which the memory expression counts as a transfer; planners
            count it once more, to be safe.
    """
    faults: list[str] = []
    if len(solution.dropped) != len(problem.layers):
        return [f"{len(solution.dropped)} dropped sets for {len(problem.layers)} layers"]
    faults += _unit_faults(problem, solution)
    if faults:
        return faults
    windows = {(fill.layer, fill.unit): fill.window for fill in solution.fills}
    faults += _window_faults(problem, solution, windows)
    faults += _memory_faults(problem, solution, windows, sent)
    exposed_us, hidden_us = _times(problem, solution, windows)
    for name, found_us, true_us in (
        ("exposed", solution.exposed_us, exposed_us),
        ("hidden", solution.hidden_us, hidden_us),
    ):
        if abs(found_us - true_us) > TOLERANCE_US * max(1.0, true_us):
            faults.append(f"{name} time {found_us} us, which is {true_us} us")
    if solution.bound_us > exposed_us + TOLERANCE_US * max(1.0, exposed_us):
        faults.append(f"a bound of {solution.bound_us} us above the exposed time {exposed_us} us")
    return faults


def find_plan_faults(profile: Profile, plan: Plan) -> list[str]:
    """The same for all stages of a plan, against its own budget, exposed times included.

    Waits for other stages are as long as the plan's own times say (`predicted_waits`).
    """
    faults = []
    for number, (stage, wait) in enumerate(zip(plan.stages, predicted_waits(profile, plan), strict=True)):
        names = {fill.window for fill in stage.fills}
        problem = build_stage_problem(
            profile,
            plan.layout.split,
            number,
            plan.layout.microbatches,
            plan.budget_bytes,
            pp_wait_us=wait.length_us if names & {PIPELINE_WINDOW, FORWARD_WAIT} else 0.0,
            before_forward=FORWARD_WAIT in names,
            window_kinds=stage.window_kinds,
        )
        places = {each.layer: index for index, each in enumerate(problem.layers)}
        units = [[unit.name for unit in problem.kinds[each.kind].units] for each in problem.layers]
        fills = []
        for fill in stage.fills:
            place = places[fill.layer]
            first = problem.layers[place].first_window
            found = [at for at, window in enumerate(problem.windows) if at >= first and window.name == fill.window]
            if found:
                fills.append(Fill(layer=place, unit=units[place].index(fill.unit), window=found[0]))
            else:
                faults.append(f"stage {number}: window {fill.window}, which it has not")
        solution = StageSolution(
            dropped=tuple(frozenset(entry.dropped) for entry in stage.layers),
            fills=tuple(fills),
            exposed_us=stage.predicted.exposed_us,
            hidden_us=stage.predicted.recompute_us - stage.predicted.exposed_us,
            kept_bytes=0,
            prefetched_bytes=stage.prefetch_cap_bytes,
            working_set_bytes=0,
        )
        last = (len(plan.layout.split) - 1, len(plan.layout.split[0]) - 1)
        sent = [chunk for chunk in range(len(problem.chunks)) if (number, chunk) != last]
        faults += [f"stage {number}: {fault}" for fault in find_faults(problem, solution, sent) if "kept" not in fault]
    return faults


def replayed_units(kind: LayerKind, dropped: frozenset[str]) -> set[str]:
    """Dropped units that backward asks for, and dropped ones that those read."""
    reads = {unit.name: unit.reads for unit in kind.units}
    waiting = [unit for step in kind.backward for unit in step.needs if unit in dropped]
    found: set[str] = set()
    while waiting:
        unit = waiting.pop()
        if unit not in found:
            found.add(unit)
            waiting += [other for other in reads[unit] if other in dropped]
    return found


def _read_by(kind: LayerKind, name: str, replayed: set[str]) -> set[str]:
    """Replayed units that the replay of `name` reads, directly or through others."""
    reads = {unit.name: unit.reads for unit in kind.units}
    found: set[str] = set()
    waiting = list(reads[name])
    while waiting:
        source = waiting.pop()
        if source in replayed and source not in found:
            found.add(source)
            waiting += reads[source]
    return found


def _unit_faults(problem: StageProblem, solution: StageSolution) -> Iterator[str]:
    seen = set()
    for fill in solution.fills:
        kind = problem.kinds[problem.layers[fill.layer].kind]
        name = kind.units[fill.unit].name
        if name not in replayed_units(kind, solution.dropped[fill.layer]):
            yield f"layer {fill.layer}: {name} is in a window, and nobody needs its replay"
        if (fill.layer, fill.unit) in seen:
            yield f"layer {fill.layer}: {name} is in two windows"
        seen.add((fill.layer, fill.unit))
    for index, (layer, dropped) in enumerate(zip(problem.layers, solution.dropped, strict=True)):
        units = {unit.name: unit for unit in problem.kinds[layer.kind].units}
        for name in dropped:
            if name not in units:
                yield f"layer {index}: {name} is no unit"
            elif units[name].refusal is not None:
                yield f"layer {index}: {name} cannot be dropped ({units[name].refusal})"


def _window_faults(
    problem: StageProblem, solution: StageSolution, windows: Mapping[tuple[int, int], int]
) -> Iterator[str]:
    for index, (layer, dropped) in enumerate(zip(problem.layers, solution.dropped, strict=True)):
        kind = problem.kinds[layer.kind]
        numbers = {unit.name: number for number, unit in enumerate(kind.units)}
        replayed = replayed_units(kind, dropped)
        for name in sorted(replayed):
            number = numbers[name]
            window, deadline = windows.get((index, number), ON_DEMAND), layer.deadlines[number]
            if window != ON_DEMAND and not layer.first_window <= window < deadline:
                yield f"layer {index}: {name} in window {window}, outside of {layer.first_window} to {deadline - 1}"
            for source in kind.units[number].reads:
                place = windows.get((index, numbers[source]), ON_DEMAND)
                if source in replayed and window != ON_DEMAND and not 0 <= place <= window:
                    yield f"layer {index}: {name} in window {window} before {source} in {place}, which it reads"
            for source in sorted(_read_by(kind, name, replayed)):
                place = windows.get((index, numbers[source]), ON_DEMAND)
                if place >= deadline:
                    yield f"layer {index}: {source} in window {place}, and {name} reads it before window {deadline}"


def _memory_faults(
    problem: StageProblem, solution: StageSolution, windows: Mapping[tuple[int, int], int], sent: Collection[int]
) -> Iterator[str]:
    held = [0] * (len(problem.windows) + 1)
    for (index, unit), window in windows.items():
        layer = problem.layers[index]
        kind, dropped = problem.kinds[layer.kind], solution.dropped[index]
        for row in kind.storages:
            if row.maker == kind.units[unit].name and row.is_brought_back(dropped):
                for at in range(window, layer.deadlines[unit]):
                    held[at] += row.nbytes
    if max(held) > solution.prefetched_bytes:
        yield f"{max(held)} bytes prefetched at a time, above the {solution.prefetched_bytes} of the plan"
    kept_bytes, working_bytes = 0, problem.floor_bytes
    for number, chunk in enumerate(problem.chunks):
        freed_bytes, is_sent = chunk.freed_bytes, number in sent
        for index in range(len(problem.layers) - 1, -1, -1):
            layer, dropped = problem.layers[index], solution.dropped[index]
            if layer.chunk != number:
                continue
            kind = problem.kinds[layer.kind]
            own_bytes = layer_working_set_bytes(kind, dropped, gradient_is_kept=is_sent)
            working_bytes, is_sent = max(working_bytes, own_bytes + chunk.waiting_bytes - freed_bytes), False
            kept = sum(row.nbytes for row in kind.storages if row.is_kept(dropped))
            freed_bytes += kept
            kept_bytes += chunk.in_flight * kept
        working_bytes = max(working_bytes, chunk.end_bytes + chunk.freed_bytes - freed_bytes)
    total_bytes = kept_bytes + working_bytes + solution.prefetched_bytes
    if total_bytes > problem.budget_bytes:
        yield f"{total_bytes} bytes needed, {problem.budget_bytes} there"
    for name, found, true in (
        ("kept", solution.kept_bytes, kept_bytes),
        ("kept by the working set", solution.working_set_bytes, working_bytes),
    ):
        if found != true:
            yield f"{found} bytes {name}, which are {true}"


def _times(
    problem: StageProblem, solution: StageSolution, windows: Mapping[tuple[int, int], int]
) -> tuple[float, float]:
    loads_us = [0.0] * len(problem.windows)
    exposed_us = total_us = 0.0
    for index, (layer, dropped) in enumerate(zip(problem.layers, solution.dropped, strict=True)):
        kind = problem.kinds[layer.kind]
        replayed = replayed_units(kind, dropped)
        for number, unit in enumerate(kind.units):
            if unit.name in replayed:
                total_us += unit.forward_us
                window = windows.get((index, number), ON_DEMAND)
                if window == ON_DEMAND:
                    exposed_us += unit.forward_us
                else:
                    loads_us[window] += unit.forward_us
    for load_us, each in zip(loads_us, problem.windows, strict=True):
        exposed_us += max(0.0, load_us - each.length_us)
    return exposed_us, total_us - exposed_us
