"""What the study simulates: models, clusters, layouts, arms; and one place of it, run."""

import dataclasses
from collections.abc import Iterator, Sequence

from overlap_recompute.cli.room import needed_bytes
from overlap_recompute.plan.profile import Profile
from overlap_recompute.planner import InfeasibleError
from overlap_recompute.planner.highs import SolverError
from overlap_recompute.planner.solve import Memory
from overlap_recompute.simulator import SimulationResult
from overlap_recompute.simulator.analytic_options import profile_from_options
from overlap_recompute.simulator.hardware_file import hardware_from
from tools.study_lib.arms import ARMS, CHECKMATE, PARTITIONED, simulated, split_of

NVLINK, PCIE, NODES = "NVLink", "PCIe", "several nodes"
CLUSTERS = {NVLINK: "a100-40gb-nvlink", PCIE: "a100-40gb-pcie", NODES: "a100-40gb-nvlink/100gbit-node"}
"""By what the tables call them. The last: nodes of 8, joined by 100 Gbit/s each, which all GPUs of a node share."""
LAYOUTS = {
    "gpt-1.3b": ((2, 1), (2, 2)),
    "gpt-4.7b": ((4, 1), (2, 2)),
    "gpt-7b": ((4, 1), (2, 4), (4, 2)),
    "gpt-13b": ((2, 4), (4, 2)),
    "gpt-20b": ((4, 4), (8, 2)),
    "gpt-23b": ((4, 4), (8, 2)),
}
"""(tensor, pipeline) parallel sizes on as few GPUs as hold the model or twice as many; one data-parallel copy."""
LAYOUTS_OF_NODES = ((2, 8), (4, 4))
"""The same on two nodes of 8: pipeline transfers cross the network, tensor-parallel groups do not."""
MODELS = tuple(LAYOUTS)
MICRO_BATCHES = (1, 2, 4, 8, 16)
SHORT = 2048
GLOBAL_TOKENS = 128 * SHORT
"""Of an iteration, whatever the micro-batch and the sequence: a larger micro-batch leaves fewer microbatches."""
DEVICE_SHARE = 0.94
"""Of a device's memory that a plan may use."""
SHARES = (0.05, 0.1, 0.25, 0.5, 0.75)
"""Budgets, as the share of the way from what `full` needs to what `none` needs."""
SEQUENCES = (8192, 16384)
"""Of the last part; all else has 2048 tokens."""
DEVICE, BUDGET, SEQUENCE = "device", "budget", "sequence"
"""Parts of the study: a device's memory and each micro-batch; shares of memory; long sequences."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A model on a cluster in a layout."""

    model: str
    cluster: str
    tensor_parallel: int
    pipeline_parallel: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.model} on {self.cluster}, {self.tensor_parallel} x {self.pipeline_parallel}"

    @property
    def hardware(self) -> str:
        """As flags take it."""
        return CLUSTERS[self.cluster]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One arm of one configuration, simulated; it fits, or it would have no row."""

    part: str
    model: str
    cluster: str
    tensor_parallel: int
    pipeline_parallel: int
    micro_batch: int
    sequence: int
    share: float
    """Of the way from full's memory to none's; -1: the device's memory."""
    budget_bytes: int
    arm: str
    tokens_per_s: float
    mfu: float
    exposed_share: float
    """Exposed recompute of the iteration, mean of the stages."""
    hidden_share: float
    peak_bytes: int

    @property
    def place(self) -> Place:
        """Where it was."""
        return Place(
            model=self.model, cluster=self.cluster, tensor_parallel=self.tensor_parallel,
            pipeline_parallel=self.pipeline_parallel,
        )  # fmt: skip


def places(models: tuple[str, ...] = MODELS, clusters: tuple[str, ...] = tuple(CLUSTERS)) -> list[Place]:
    """All of them, in the order of the tables."""
    return [
        Place(model=model, cluster=cluster, tensor_parallel=tensor, pipeline_parallel=pipeline)
        for cluster in clusters
        for model in models
        for tensor, pipeline in (LAYOUTS_OF_NODES if cluster == NODES else LAYOUTS[model])
    ]


def run_place(place: Place) -> list[Row]:
    """All parts at one place."""
    rows = _device_rows(place)
    full = [row.micro_batch for row in rows if row.arm == "full"]
    if full:
        rows += _over_budgets(place, max(full))
    if (place.tensor_parallel, place.pipeline_parallel) == _pictured(place):
        for sequence in SEQUENCES:
            rows += _at_device(place, 1, sequence, ARMS)
    return rows


def _device_rows(place: Place) -> list[Row]:
    """Every micro-batch in the device's memory."""
    even = tuple(arm for arm in ARMS if arm not in PARTITIONED)
    rows = [row for micro_batch in MICRO_BATCHES for row in _at_device(place, micro_batch, SHORT, even)]
    for arm, planner in {**PARTITIONED, CHECKMATE: "adapipe"}.items():
        fitting = [row for row in rows if row.arm == planner]
        if fitting:
            fastest = MICRO_BATCHES.index(max(fitting, key=lambda row: row.tokens_per_s).micro_batch)
            for micro_batch in MICRO_BATCHES[fastest : fastest + (1 if arm == CHECKMATE else 2)]:
                known = [row for row in fitting if row.micro_batch == micro_batch]
                rows += _at_device(place, micro_batch, SHORT, (arm,), known)
    return rows


def _pictured(place: Place) -> tuple[int, int]:
    """The layout of long sequences."""
    return LAYOUTS_OF_NODES[1] if place.cluster == NODES else LAYOUTS[place.model][1]


def _profile(place: Place, micro_batch: int, sequence: int) -> Profile:
    return profile_from_options(
        model=place.model, hardware=place.hardware, tensor_parallel=place.tensor_parallel,
        pipeline_parallel=place.pipeline_parallel, micro_batch=micro_batch, sequence=sequence,
        microbatches=max(1, GLOBAL_TOKENS // (sequence * micro_batch)),
    )  # fmt: skip


def _at_device(
    place: Place, micro_batch: int, sequence: int, arms: tuple[str, ...], known: Sequence[Row] = ()
) -> list[Row]:
    """Arms in the device's memory; `known` as in `_rows`."""
    profile = _profile(place, micro_batch, sequence)
    part = DEVICE if sequence == SHORT else SEQUENCE
    budget_bytes = int(hardware_from(place.hardware).memory_bytes * DEVICE_SHARE)
    return list(_rows(place, profile, budget_bytes, arms, known, part=part, share=-1.0))


def _over_budgets(place: Place, micro_batch: int) -> Iterator[Row]:
    profile = _profile(place, micro_batch, SHORT)
    full_bytes, none_bytes = needed_bytes(profile, "full"), needed_bytes(profile, "none")
    for share in SHARES:
        budget_bytes = int(full_bytes + (none_bytes - full_bytes) * share)
        yield from _rows(place, profile, budget_bytes, ARMS, part=BUDGET, share=share)


def _rows(
    place: Place,
    profile: Profile,
    budget_bytes: int,
    arms: tuple[str, ...],
    known: Sequence[Row] = (),
    *,
    part: str,
    share: float,
) -> Iterator[Row]:
    """Those of some arms that fit into a memory.

    Args:
        place: where.
        profile: of the place.
        budget_bytes: memory.
        arms: in order, one that searches for a split behind that of the same planner with the even one.
        known: the latter, where it is not one of `arms`.
        part: of the study.
        share: of the way from full's memory to none's.
    """
    found, memory = {row.arm: row for row in known}, Memory()
    for arm in arms:
        planner = PARTITIONED.get(arm, arm)
        try:
            split = split_of(profile, budget_bytes, arm)
            if arm in PARTITIONED and split == profile.layout.split and planner in found:
                row = dataclasses.replace(found[planner], arm=arm)  # the even split is the best: the same plan
            else:
                result = simulated(profile, planner, budget_bytes, split, memory)
                row = _row(place, profile, budget_bytes, arm, result, part=part, share=share)
        except (InfeasibleError, SolverError):
            continue
        found[arm] = row
        yield row


def _row(
    place: Place,
    profile: Profile,
    budget_bytes: int,
    arm: str,
    result: SimulationResult,
    *,
    part: str,
    share: float,
) -> Row:
    stages = len(result.stages) * result.iteration_us
    return Row(
        part=part,
        **dataclasses.asdict(place),
        micro_batch=profile.layout.micro_batch,
        sequence=profile.layout.sequence,
        share=share,
        budget_bytes=budget_bytes,
        arm=arm,
        tokens_per_s=_rounded(result.tokens_per_s),
        mfu=_rounded(result.mfu),
        exposed_share=_rounded(sum(stage.exposed_us for stage in result.stages) / stages),
        hidden_share=_rounded(sum(stage.hidden_us for stage in result.stages) / stages),
        peak_bytes=result.peak_bytes,
    )


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
