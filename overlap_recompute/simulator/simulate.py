"""The entry: a profile and a plan in, one iteration out."""

from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.profile import Layout, Profile
from overlap_recompute.plan.validation import check_plan_fits
from overlap_recompute.schedules import PipelineShape
from overlap_recompute.simulator.engine import Engine, Run
from overlap_recompute.simulator.lists import in_flight_of, lists_of
from overlap_recompute.simulator.memory_terms import terms_of_stage
from overlap_recompute.simulator.occupancy import Occupancy, occupancy_of
from overlap_recompute.simulator.passes import Passes
from overlap_recompute.simulator.spans import spans_of
from overlap_recompute.simulator.stage_model import build_stage, to_us, transfer_fs
from overlap_recompute.simulator.steady import Extrapolated, find_period, run_steady
from overlap_recompute.simulator.sums import Sums
from overlap_recompute.simulator.timeline import SimulationResult, StageResult, WindowUse

OPERATIONS_PER_TERA = 1e12
US_PER_S = 1e6


def simulate(
    profile: Profile, plan: Plan, *, timeline: bool = False, every_microbatch: bool = False
) -> SimulationResult:
    """One iteration of a plan.

    Args:
        profile: costs; measured or computed.
        plan: of the same model; its layout decides about stages, chunks and microbatches.
        timeline: also return spans and memory over time; simulates every microbatch.
        every_microbatch: simulate each of them, where otherwise the steady state is added as whole periods. The result
            is the same.

    Raises:
        FileError: the plan was made for another model.
        ConfigError: there is no schedule for these sizes, or no figure for a transfer between stages.
    """
    extrapolated = executed(profile, plan, timeline=timeline, every_microbatch=every_microbatch)
    return _result(profile, plan, extrapolated, timeline)


def executed(profile: Profile, plan: Plan, *, timeline: bool = False, every_microbatch: bool = False) -> Extrapolated:
    """What `simulate` makes its figures of: each action of the microbatches that it simulates. Arguments as there."""
    check_plan_fits(plan, profile, "the plan")
    layout = plan.layout
    stages, chunks, microbatches = len(layout.split), layout.chunks, layout.microbatches
    passes = tuple(Passes(build_stage(profile, layout.split, stage), draws=timeline) for stage in plan.stages)
    message_fs = transfer_fs(profile, stages)

    def execute(count: int) -> Run:
        shape = PipelineShape(ranks=stages, chunks=chunks, microbatches=count)
        return Engine(passes, lists_of(stages, chunks, count), shape, message_fs).run()

    if timeline or every_microbatch:
        run = execute(microbatches)
        period = find_period(run, stages if chunks > 1 else 1, chunks)
        return Extrapolated(run=run, microbatches=microbatches, period=period, repeats=0)
    return run_steady(execute, microbatches, stages=stages, chunks=chunks)


def _result(profile: Profile, plan: Plan, extrapolated: Extrapolated, timeline: bool) -> SimulationResult:
    run, layout = extrapolated.run, plan.layout
    end_fs = extrapolated.end_fs
    sums = [_sums(extrapolated, stage) for stage in range(len(run.done))]
    in_flight = in_flight_of(len(layout.split), layout.chunks, extrapolated.microbatches)
    memory = [
        occupancy_of(terms_of_stage(profile, plan, stage, in_flight[stage]), rows, draws=timeline)
        for stage, rows in enumerate(run.done)
    ]
    iteration_us = to_us(end_fs) + profile.update_us
    tokens_per_s = _tokens(layout) / (iteration_us / US_PER_S) if iteration_us else 0.0
    devices = layout.tensor_parallel * layout.pipeline_parallel * layout.data_parallel * layout.context_parallel
    tflops = profile.flops_per_token * tokens_per_s / devices / OPERATIONS_PER_TERA
    period = extrapolated.period
    return SimulationResult(
        iteration_us=iteration_us,
        bubble_fraction=sum(end_fs - stage.busy_fs for stage in sums) / (end_fs * len(sums)) if end_fs else 0.0,
        tokens_per_s=tokens_per_s,
        tflops_per_gpu=tflops,
        mfu=tflops / profile.peak_tflops if profile.peak_tflops else 0.0,
        stages=tuple(_stage(number, *both, end_fs) for number, both in enumerate(zip(sums, memory, strict=True))),
        spans=spans_of(run) if timeline else (),
        update_us=profile.update_us,
        microbatches=layout.microbatches,
        simulated_microbatches=extrapolated.microbatches,
        period_us=to_us(period.length_fs) / period.microbatches if period is not None else 0.0,
    )


def _sums(extrapolated: Extrapolated, stage: int) -> Sums:
    sums = Sums()
    sums.add(extrapolated.run.done[stage])
    if extrapolated.period is not None and extrapolated.repeats:
        sums.add(extrapolated.period.done[stage], times=extrapolated.repeats)
    return sums


def _stage(number: int, sums: Sums, memory: Occupancy, end_fs: int) -> StageResult:
    return StageResult(
        stage=number,
        compute_us=to_us(sums.compute_fs),
        hidden_us=to_us(sums.hidden_fs),
        exposed_us=to_us(sums.exposed_fs),
        wait_us=to_us(end_fs - sums.compute_fs - sums.hidden_fs - sums.exposed_fs),
        bubble_us=to_us(end_fs - sums.busy_fs),
        windows=tuple(
            WindowUse(kind=kind, count=count, length_us=to_us(length_fs), filled_us=to_us(filled_fs))
            for kind, (count, length_fs, filled_fs) in sorted(sums.windows.items())
        ),
        memory=memory.points,
        peak_bytes=memory.peak_bytes,
        held_peak_bytes=memory.held_peak_bytes,
    )


def _tokens(layout: Layout) -> int:
    """Of an iteration, all ranks together."""
    return layout.microbatches * layout.micro_batch * layout.sequence * layout.data_parallel
