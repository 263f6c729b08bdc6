"""What holds for every model, plan and pipeline."""

import dataclasses
from collections import Counter, defaultdict

import pytest
from hypothesis import HealthCheck, given, settings

from overlap_recompute.plan.actions import POST_OF, Kind
from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.profile import COMPUTE, Profile
from overlap_recompute.schedules import in_flight_microbatches
from overlap_recompute.simulator import SimulationResult, Span, simulate
from overlap_recompute.simulator.memory_terms import table_of_stage
from overlap_recompute.simulator.spans import spans_of
from overlap_recompute.simulator.stage_model import wanted_units
from tests.unit.simulator.models import cases, grid_of, runner

Case = tuple[Profile, Plan]
some = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def of_stage(spans: tuple[Span, ...], stage: int, *lanes: str) -> list[Span]:
    return sorted(
        (span for span in spans if span.stage == stage and span.lane in lanes), key=lambda span: span.begin_us
    )


@some
@given(cases())
def test_nothing_is_used_twice_at_once(case: Case) -> None:
    profile, plan = case
    run = runner(profile, plan)(plan.layout.microbatches)
    spans = spans_of(run)
    for stage in range(len(plan.stages)):
        for lanes in (("compute", "recompute", "wait"), ("tp",)):
            used = of_stage(spans, stage, *lanes)
            for earlier, later in zip(used, used[1:], strict=False):
                assert earlier.end_us <= later.begin_us + 1e-9, (earlier, later)
    links = defaultdict(list)
    for transfer in run.transfers:
        links[transfer.link].append(transfer)
    for transfers in links.values():
        assert all(one.end_fs <= two.begin_fs for one, two in zip(transfers, transfers[1:], strict=False))


@some
@given(cases())
def test_nothing_happens_before_its_inputs_are_there(case: Case) -> None:
    profile, plan = case
    run = runner(profile, plan)(plan.layout.microbatches)
    stages, chunks = len(plan.stages), plan.layout.chunks
    begins, ends = {}, {}
    for stage, rows in enumerate(run.done):
        for done in rows:
            if done.action.kind in (Kind.F, Kind.B):
                key = (done.action.kind, done.action.chunk * stages + stage, done.action.microbatch)
                begins[key], ends[key] = done.begin_fs, done.end_fs
    assert len(run.transfers) == 2 * (stages * chunks - 1) * plan.layout.microbatches
    for transfer in run.transfers:
        traffic, behind, microbatch = transfer.message
        kind, source, target = (Kind.F, behind, behind + 1) if traffic == 0 else (Kind.B, behind + 1, behind)
        assert ends[kind, source, microbatch] <= transfer.begin_fs
        assert transfer.end_fs <= begins[kind, target, microbatch]
    for span in spans_of(run):
        if span.lane == "recompute":
            chunk, microbatch = map(int, span.name.split()[1].split("."))
            key = chunk * stages + span.stage, microbatch
            assert ends[(Kind.F, *key)] / 1e9 <= span.begin_us + 1e-9
            assert span.end_us <= ends[(Kind.B, *key)] / 1e9 + 1e-9


@some
@given(cases())
def test_stages_do_what_their_lists_say_in_that_order(case: Case) -> None:
    profile, plan = case
    grid = grid_of(plan, plan.layout.microbatches)
    run = runner(profile, plan)(plan.layout.microbatches)
    for row, rows in zip(grid, run.done, strict=True):
        shown = {Kind.F, Kind.B, *POST_OF}
        assert [done.action for done in rows] == [action for action in row if action.kind in shown]


@some
@given(cases())
def test_every_dropped_unit_is_replayed_once_for_each_microbatch(case: Case) -> None:
    profile, plan = case
    spans = simulate(profile, plan, timeline=True).spans
    found_us: Counter[str] = Counter()
    for span in spans:
        if span.lane == "recompute":
            found_us[f"{span.stage} {span.name}"] += span.end_us - span.begin_us
    expected_us = {}
    for stage in plan.stages:
        for entry in stage.layers:
            kind = profile.kind_of(entry.layer)
            times_us = {unit.name: unit.forward_us for unit in kind.units}
            for unit in wanted_units(kind, entry.dropped):
                for microbatch in range(plan.layout.microbatches):
                    name = f"{stage.stage} R(L{entry.layer}.{unit}) {entry.chunk}.{microbatch}"
                    expected_us[name] = times_us[unit]
    assert dict(found_us) == pytest.approx(expected_us)


@some
@given(cases())
def test_times_add_up(case: Case) -> None:
    profile, plan = case
    result = simulate(profile, plan, every_microbatch=True)
    spans = simulate(profile, plan, timeline=True).spans
    microbatches = plan.layout.microbatches
    for stage, chosen in zip(result.stages, plan.stages, strict=True):
        whole_us = result.iteration_us - result.update_us
        parts_us = stage.compute_us + stage.hidden_us + stage.exposed_us + stage.wait_us
        assert parts_us == pytest.approx(whole_us)
        kinds = [profile.kind_of(entry.layer) for entry in chosen.layers]
        ends = [profile.embedding] * (stage.stage == 0) + [profile.head] * (stage.stage == len(plan.stages) - 1)
        steps = [step for part in (*kinds, *ends) for step in (*part.forward, *part.backward)]
        compute_us = sum(step.duration_us for step in steps if step.kind == COMPUTE)
        assert stage.compute_us == pytest.approx(compute_us * microbatches)
        times_us = [
            {unit.name: unit.forward_us for unit in profile.kind_of(entry.layer).units}[name]
            for entry in chosen.layers
            for name in wanted_units(profile.kind_of(entry.layer), entry.dropped)
        ]
        assert stage.recompute_us == pytest.approx(sum(times_us) * microbatches)
        assert stage.hidden_us == pytest.approx(sum(window.filled_us for window in stage.windows))
        for lanes, expected_us in ((("compute",), stage.compute_us), (("recompute",), stage.recompute_us)):
            drawn_us = sum(span.end_us - span.begin_us for span in of_stage(spans, stage.stage, *lanes))
            assert drawn_us == pytest.approx(expected_us)
        for window in stage.windows:
            assert window.filled_us <= window.length_us + 1e-9
            assert window.kind in chosen.window_kinds or window.filled_us == 0


@some
@given(cases())
def test_memory_is_that_of_the_memory_model(case: Case) -> None:
    profile, plan = case
    result = simulate(profile, plan, timeline=True)
    grid = grid_of(plan, plan.layout.microbatches)
    for stage, row in zip(result.stages, grid, strict=True):
        in_flight = in_flight_microbatches(row)
        total_bytes = table_of_stage(profile, plan, stage.stage, in_flight.peak_by_chunk).total_bytes
        assert stage.peak_bytes <= total_bytes
        if in_flight.peak == sum(in_flight.peak_by_chunk):
            assert stage.peak_bytes == total_bytes
        assert stage.held_peak_bytes == max(point.nbytes for point in stage.memory) <= stage.peak_bytes
        times_us = [point.time_us for point in stage.memory]
        assert times_us == sorted(set(times_us))


@some
@given(cases())
def test_what_is_ahead_stays_below_the_cap(case: Case) -> None:
    profile, plan = case
    run = runner(profile, plan)(plan.layout.microbatches)
    for chosen, rows in zip(plan.stages, run.done, strict=True):
        for done in rows:
            if done.outcome is not None:
                assert done.outcome.ahead_bytes <= done.outcome.ahead_peak_bytes <= chosen.prefetch_cap_bytes


@some
@given(cases())
def test_nothing_depends_on_who_goes_first(case: Case) -> None:
    profile, plan = case
    microbatches = plan.layout.microbatches
    one, other = (runner(profile, plan, higher_first=turned)(microbatches) for turned in (False, True))
    assert one.done == other.done
    assert sorted(one.transfers) == sorted(other.transfers)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(most_microbatches=70))
def test_the_steady_state_gives_the_full_result(case: Case) -> None:
    profile, plan = case
    short, full = simulate(profile, plan), simulate(profile, plan, every_microbatch=True)
    assert full.simulated_microbatches == plan.layout.microbatches
    assert numbers(short) == pytest.approx(numbers(full), rel=1e-9)
    assert simulate(profile, plan) == short


def numbers(result: SimulationResult) -> list[float]:
    """All figures but how many microbatches were simulated, and the period, which one of them may not show."""
    found = [result.iteration_us, result.bubble_fraction, result.tokens_per_s]
    for stage in result.stages:
        found += [value for value in dataclasses.astuple(stage) if isinstance(value, int | float)]
        found += [value for window in stage.windows for value in (window.count, window.length_us, window.filled_us)]
    return found
