"""A small profile and a plan that fits it: two stages, four layers of one kind with three units."""

from overlap_recompute.plan.plan_file import (
    PLAN_VERSION,
    LayerPlan,
    MemoryTable,
    Plan,
    PlannedFill,
    StagePlan,
    StagePrediction,
)
from overlap_recompute.plan.profile import (
    COMPUTE,
    PROFILE_VERSION,
    EndCost,
    LayerKind,
    Layout,
    LinkFit,
    Origin,
    PassStep,
    Profile,
    StaticRules,
    UnitCost,
)
from overlap_recompute.plan.split import Split, layers_of
from overlap_recompute.plan.storages import StorageRow

KIND = LayerKind(
    fingerprint="f0",
    description="norm, wide linear, activation",
    units=(
        UnitCost(name="norm", forward_us=10.0, spread_us=1.0, reads=(), is_random=False),
        UnitCost(name="fc", forward_us=50.0, spread_us=2.0, reads=("norm",), is_random=False),
        UnitCost(name="act", forward_us=20.0, spread_us=0.5, reads=("fc",), is_random=True),
    ),
    storages=(
        StorageRow(name="input", nbytes=100, maker=None, held=True),
        StorageRow(name="norm out", nbytes=100, maker="norm", held=True, replay_readers=("fc",)),
        StorageRow(name="fc out", nbytes=400, maker="fc", held=False, replay_readers=("act",)),
        StorageRow(name="act out", nbytes=400, maker="act", held=True),
    ),
    forward=(
        PassStep(kind=COMPUTE, name="norm", duration_us=10.0),
        PassStep(kind=COMPUTE, name="fc", duration_us=50.0),
        PassStep(kind=COMPUTE, name="act", duration_us=20.0),
        PassStep(kind=COMPUTE, name="out", duration_us=50.0),
        PassStep(kind="tp_forward", name="all_reduce", duration_us=40.0, payload_bytes=100),
    ),
    backward=(
        PassStep(kind=COMPUTE, name="out", duration_us=100.0, needs=("act",)),
        PassStep(kind=COMPUTE, name="body", duration_us=120.0, needs=("act", "fc", "norm")),
        PassStep(kind="tp_backward", name="all_reduce", duration_us=60.0, hidden_us=20.0, payload_bytes=100),
    ),
    parameters=1000,
    expert_parameters=0,
    transient_bytes=500,
)
END = EndCost(
    forward=(PassStep(kind=COMPUTE, name="end", duration_us=30.0),),
    backward=(PassStep(kind=COMPUTE, name="end", duration_us=60.0),),
    parameters=2000,
    kept_bytes=200,
    transient_bytes=800,
)
MEMORY = MemoryTable(
    parameters_bytes=8000, gradients_bytes=8000, optimizer_bytes=16000, kept_bytes=2000, prefetched_bytes=400,
    working_set_bytes=1300, head_bytes=0, communication_bytes=0, base_bytes=0, margin_bytes=0,
)  # fmt: skip


def sample_profile(split: Split = ((2,), (2,))) -> Profile:
    """A profile of as many layers as the split has."""
    layers = sum(map(sum, split))
    return Profile(
        version=PROFILE_VERSION,
        origin=Origin(
            source="measured", hardware="a machine", software=(("torch", "2.13.0"),), taken="2026-01-01", command="x"
        ),
        model_fingerprint="m0",
        model="sample",
        layout=Layout(
            tensor_parallel=2, pipeline_parallel=len(split), data_parallel=1, context_parallel=1, expert_parallel=1,
            sequence_parallel=False, split=split, micro_batch=1, sequence=8, microbatches=4,
        ),
        kinds=(KIND,),
        layers=(0,) * layers,
        embedding=END,
        head=END,
        links=(LinkFit(name="send", alpha_us=5.0, beta_us_per_byte=0.01, points=((100, 6.0),)),),
        boundary_bytes=100,
        static=StaticRules(
            parameter_bytes=4, gradient_bytes=4, main_parameter_bytes=0, state_bytes=8, shards=1, expert_shards=1
        ),
        base_bytes=0,
        communication_bytes=0,
        tied_embeddings=False,
        update_us=100.0,
    )  # fmt: skip


def sample_plan(profile: Profile) -> Plan:
    """Drops `fc` and `act` of every layer, and brings `act` of the first layer of each stage back in a window."""
    stages = []
    for stage, chunks in enumerate(layers_of(profile.layout.split)):
        layers = tuple(
            LayerPlan(layer=layer, chunk=chunk, dropped=("fc", "act"))
            for chunk, numbers in enumerate(chunks)
            for layer in numbers
        )
        first = layers[0].layer
        stages.append(
            StagePlan(
                stage=stage,
                layers=layers,
                window_kinds=("tp_backward", "pp_wait"),
                prefetch_cap_bytes=400,
                fills=(PlannedFill(layer=first, unit="act", window=f"B{min(first + 1, layers[-1].layer)}.0"),),
                predicted=StagePrediction(
                    forward_us=340.0,
                    backward_us=560.0,
                    recompute_us=140.0,
                    exposed_us=120.0,
                    in_flight=(2 - stage,),
                    memory=MEMORY,
                ),
            )  # fmt: skip
        )
    return Plan(
        version=PLAN_VERSION,
        planner="heu",
        created="2026-01-01T00:00:00",
        model_fingerprint=profile.model_fingerprint,
        layout=profile.layout,
        software=profile.origin.software,
        budget_bytes=50_000,
        predicted_iteration_us=6000.0,
        stages=tuple(stages),
    )
