"""Random small models under random plans, and the run of a plan with everything that the engine knows."""

import dataclasses
from collections.abc import Callable

from hypothesis import strategies as st

from overlap_recompute.plan.plan_file import LayerPlan, Plan, StagePlan
from overlap_recompute.plan.profile import COMPUTE, EndCost, LayerKind, LinkFit, PassStep, Profile, UnitCost
from overlap_recompute.plan.split import Split, layers_of
from overlap_recompute.plan.storages import StorageRow
from overlap_recompute.schedules import PipelineShape, pipeline_schedule, with_communication, with_recompute
from overlap_recompute.simulator.engine import Engine, Run
from overlap_recompute.simulator.passes import Passes
from overlap_recompute.simulator.stage_model import build_stage, transfer_fs
from tests.unit.plan.samples import sample_plan, sample_profile

WINDOW_KINDS = ("tp_forward", "tp_backward", "pp_wait")
TIMES_US = st.integers(min_value=1, max_value=60).map(float)
WAITS_US = st.integers(min_value=0, max_value=80).map(float)
SIZES = st.integers(min_value=0, max_value=50)
NO_END = EndCost(forward=(), backward=(), parameters=0, kept_bytes=0, transient_bytes=0)


@st.composite
def layer_kinds(draw: st.DrawFn) -> LayerKind:
    """A layer of one to four units, each reading some of those before it; windows and backward steps anywhere."""
    names = [f"u{number}" for number in range(draw(st.integers(1, 4)))]
    units, rows, forward, backward = [], [], [], []
    for number, name in enumerate(names):
        reads = tuple(draw(st.sets(st.sampled_from(names[:number]), max_size=2))) if number else ()
        units.append(UnitCost(name=name, forward_us=draw(TIMES_US), spread_us=0, reads=reads, is_random=False))
        forward.append(PassStep(kind=COMPUTE, name=name, duration_us=units[-1].forward_us))
        if draw(st.booleans()):
            forward.append(PassStep(kind="tp_forward", name="all_reduce", duration_us=draw(WAITS_US)))
        rows.append(StorageRow(name=f"{name} saved", nbytes=draw(SIZES), maker=name, held=True))
    for unit in units:
        readers = tuple(other.name for other in units if unit.name in other.reads)
        if readers:
            rows.append(
                StorageRow(name="passed on", nbytes=draw(SIZES), maker=unit.name, held=False, replay_readers=readers)
            )
    for name in reversed(names):
        needs = (name, *draw(st.sets(st.sampled_from(names), max_size=1)))
        backward.append(PassStep(kind=COMPUTE, name="b", duration_us=draw(TIMES_US), needs=needs))
        if draw(st.booleans()):
            hidden_us = draw(WAITS_US)
            step = PassStep(kind="tp_backward", name="all_reduce", duration_us=draw(WAITS_US), hidden_us=hidden_us)
            backward.append(step)
    return LayerKind(
        fingerprint="f", description="random", units=tuple(units), storages=tuple(rows), forward=tuple(forward),
        backward=tuple(backward), parameters=10, expert_parameters=0, transient_bytes=draw(SIZES),
    )  # fmt: skip


@st.composite
def cases(draw: st.DrawFn, *, most_microbatches: int = 10) -> tuple[Profile, Plan]:
    """A profile and a plan for it: up to four stages, two chunks, and two kinds of layers."""
    stages = draw(st.integers(1, 4))
    chunks = draw(st.integers(1, 2)) if stages > 1 else 1
    counts = st.lists(st.integers(0, 2), min_size=chunks, max_size=chunks).map(tuple)
    split: Split = tuple(draw(st.lists(counts, min_size=stages, max_size=stages)))
    if not sum(map(sum, split)):
        split = ((1,) * chunks, *split[1:])
    kinds = tuple(draw(st.lists(layer_kinds(), min_size=1, max_size=2)))
    base = sample_profile(((sum(map(sum, split)),),))
    microbatches = draw(st.integers(1, most_microbatches))
    if chunks > 1:
        microbatches = max(1, microbatches // stages) * stages
    layout = dataclasses.replace(base.layout, pipeline_parallel=stages, split=split, microbatches=microbatches)
    profile = dataclasses.replace(
        base,
        layout=layout,
        kinds=kinds,
        layers=tuple(draw(st.integers(0, len(kinds) - 1)) for _ in base.layers),
        links=(LinkFit(name="send", alpha_us=draw(WAITS_US), beta_us_per_byte=0.0),),
    )
    plan = sample_plan(sample_profile(((1,),) * stages))
    choose = [_stage_plan(draw, profile, stage) for stage in range(stages)]
    return profile, dataclasses.replace(plan, layout=layout, stages=tuple(choose))


def _stage_plan(draw: st.DrawFn, profile: Profile, stage: int) -> StagePlan:
    layers = []
    for chunk, numbers in enumerate(layers_of(profile.layout.split)[stage]):
        for layer in numbers:
            names = [unit.name for unit in profile.kind_of(layer).units]
            chosen = draw(st.sets(st.sampled_from(names)))
            dropped = tuple(name for name in names if name in chosen)
            layers.append(LayerPlan(layer=layer, chunk=chunk, dropped=dropped))
    return StagePlan(
        stage=stage,
        layers=tuple(layers),
        window_kinds=tuple(sorted(draw(st.sets(st.sampled_from(WINDOW_KINDS))))),
        prefetch_cap_bytes=draw(st.sampled_from([0, 30, 100, 10_000])),
        fills=(),
        predicted=sample_plan(sample_profile()).stages[0].predicted,
    )


def runner(profile: Profile, plan: Plan, *, higher_first: bool = False, draws: bool = True) -> Callable[[int], Run]:
    """Runs so many microbatches of a plan."""
    split = plan.layout.split
    passes = tuple(Passes(build_stage(profile, split, stage), draws=draws) for stage in plan.stages)
    message_fs = transfer_fs(profile, len(split))

    def run(microbatches: int) -> Run:
        shape = PipelineShape(ranks=len(split), chunks=len(split[0]), microbatches=microbatches)
        grid = grid_of(plan, microbatches)
        return Engine(passes, grid, shape, message_fs, higher_first=higher_first).run()

    return run


def grid_of(plan: Plan, microbatches: int):  # type: ignore[no-untyped-def]
    """The lists that the trainer runs."""
    split = plan.layout.split
    passes = pipeline_schedule(len(split), len(split[0]), microbatches)
    return with_recompute(with_communication(passes) if len(split) > 1 else passes)


def plain_profile(split: Split, forward_us: float, backward_us: float, transfer_us: float = 0.0) -> Profile:
    """Layers that only compute, without ends and update."""
    profile = sample_profile(split)
    kind = dataclasses.replace(
        profile.kinds[0],
        forward=(PassStep(kind=COMPUTE, name="f", duration_us=forward_us),),
        backward=(PassStep(kind=COMPUTE, name="b", duration_us=backward_us, needs=("act", "fc", "norm")),),
    )
    link = LinkFit(name="send", alpha_us=transfer_us, beta_us_per_byte=0.0)
    return dataclasses.replace(profile, kinds=(kind,), embedding=NO_END, head=NO_END, links=(link,), update_us=0.0)


def plan_of(profile: Profile, microbatches: int, dropped: tuple[str, ...] = (), **changes: object) -> Plan:
    """Every layer drops the same; `changes` are fields of every stage's plan."""
    stages = []
    for stage, chunks in enumerate(layers_of(profile.layout.split)):
        layers = tuple(
            LayerPlan(layer=layer, chunk=chunk, dropped=dropped) for chunk, ns in enumerate(chunks) for layer in ns
        )
        base = sample_plan(sample_profile()).stages[0]
        fields = {"window_kinds": WINDOW_KINDS, "prefetch_cap_bytes": 10_000, **changes}
        stages.append(dataclasses.replace(base, stage=stage, layers=layers, fills=(), **fields))  # type: ignore[arg-type]
    layout = dataclasses.replace(profile.layout, microbatches=microbatches)
    return dataclasses.replace(sample_plan(sample_profile()), layout=layout, stages=tuple(stages))
