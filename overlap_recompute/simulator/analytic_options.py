"""From the words of a command line to a computed profile: what `simulate`, `compare`, `sweep` and `report` share."""

import datetime

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.kept_bytes import FLASH, UNFUSED
from overlap_recompute.plan.presets import ModelPreset, preset_named
from overlap_recompute.plan.profile import MOST_MICROBATCHES, Layout, Profile
from overlap_recompute.plan.split import Split
from overlap_recompute.simulator.analytic import AnalyticRun, analytic_profile
from overlap_recompute.simulator.hardware_file import hardware_from

ATTENTIONS = (FLASH, UNFUSED)
MOST_TOKENS = 1 << 24
"""Of a microbatch: beyond it bytes are more than a machine word counts."""


def profile_from_options(
    *,
    model: str,
    hardware: str,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    data_parallel: int = 1,
    expert_parallel: int = 1,
    chunks: int = 1,
    sequence_parallel: bool = False,
    micro_batch: int = 1,
    sequence: int | None = None,
    microbatches: int | None = None,
    split: Split | None = None,
    attention: str = FLASH,
    distributed_optimizer: bool = True,
    overlap_reduction: bool = True,
    command: str = "",
) -> Profile:
    """Compute a profile for a model by name on hardware by name or file.

    Args:
        model: name of a preset (docs/presets.md).
        hardware: a name, a name with a network (`a100-80gb-pcie/100gbit-node`), or a .yaml file (docs/hardware.md).
        chunks: model chunks of a stage (virtual pipeline size).
        sequence: tokens of a sequence; None: the preset's.
        microbatches: of an iteration and data-parallel rank; None: four for each stage, or eight if there is one.
        split: layers by stage and chunk; None: as even as can be, the middle stages taking what is left over.
        attention: flash or unfused.
        overlap_reduction: whether gradients are reduced beside the last backward pass.
        command: the command line, for the profile's origin.

    The others are those of `Layout` and `AnalyticRun`.

    Raises:
        ConfigError: an unknown model, or sizes that do not go together.
        HardwareError: unknown hardware, or a file that is not right.
    """
    preset = preset_named(model, flag="--model")
    layout = Layout(
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        data_parallel=data_parallel,
        context_parallel=1,
        expert_parallel=expert_parallel,
        sequence_parallel=sequence_parallel and tensor_parallel > 1,
        split=split or spread_layers(preset.layers, pipeline_parallel, chunks),
        micro_batch=micro_batch,
        sequence=preset.sequence if sequence is None else sequence,
        microbatches=_microbatches(pipeline_parallel) if microbatches is None else microbatches,
    )
    run = AnalyticRun(
        preset=preset, hardware=hardware_from(hardware), layout=layout, core=attention, command=command,
        distributed_optimizer=distributed_optimizer, overlap_reduction=overlap_reduction,
        taken=datetime.date.today().isoformat(),
    )  # fmt: skip
    _check_run(run)
    return analytic_profile(run)


def _microbatches(stages: int) -> int:
    return 4 * stages if stages > 1 else 8


def spread_layers(layers: int, stages: int, chunks: int) -> Split:
    """Layers over virtual stages, equal or differing by one: the middle ones, which hold no embedding or head, first.

    Raises:
        ConfigError: fewer layers than virtual stages.
    """
    places = stages * chunks
    for flag, value in (("--pipeline-parallel", stages), ("--chunks", chunks)):
        _require(value >= 1, f"{flag} {value}", "at least 1", f"correct {flag}")
    _require(
        layers >= places,
        f"{layers} layers over {stages} stages of {chunks} chunk(s)",
        f"at least one layer for each of {places}",
        "choose fewer stages or chunks",
    )
    each, rest = divmod(layers, places)
    middle_first = sorted(range(places), key=lambda place: (abs(place - (places - 1) / 2), place))
    larger = set(middle_first[:rest])
    return tuple(tuple(each + (chunk * stages + stage in larger) for chunk in range(chunks)) for stage in range(stages))


def _check_run(run: AnalyticRun) -> None:
    preset, layout = run.preset, run.layout
    for name in ("tensor_parallel", "data_parallel", "expert_parallel", "micro_batch", "sequence", "microbatches"):
        flag, value = "--" + name.replace("_", "-"), getattr(layout, name)
        _require(value >= 1, f"{flag} {value}", "at least 1", f"correct {flag}")
    _require(
        layout.microbatches <= MOST_MICROBATCHES,
        f"{layout.microbatches} microbatches an iteration",
        f"at most {MOST_MICROBATCHES}",
        "choose a smaller batch, larger microbatches, or more data-parallel ranks",
    )
    tokens = layout.micro_batch * layout.sequence
    _require(
        tokens <= MOST_TOKENS,
        f"{tokens} tokens in a microbatch (--micro-batch {layout.micro_batch} x --sequence {layout.sequence})",
        f"at most {MOST_TOKENS}",
        "choose a smaller micro-batch or shorter sequences",
    )
    _require(run.core in ATTENTIONS, f"--attention {run.core}", " or ".join(ATTENTIONS), "choose one of them")
    _check_spread(preset, layout)
    found = sum(map(sum, layout.split))
    _require(
        found == preset.layers and len(layout.split) == layout.pipeline_parallel,
        f"a split of {found} layers over {len(layout.split)} stages",
        f"{preset.layers} layers over {layout.pipeline_parallel} stages",
        "correct the split",
    )
    _require(
        run.core == FLASH or preset.groups == preset.heads,
        f"--attention {run.core} for {preset.name}, whose heads share keys and values",
        FLASH,
        "choose it: what unfused attention keeps with grouped queries is not known here",
    )
    _check_experts(preset, layout)


def _check_spread(preset: ModelPreset, layout: Layout) -> None:
    ranks = layout.tensor_parallel
    for what, number in (("heads", preset.heads), ("groups", preset.groups), ("ffn_hidden", preset.ffn_hidden)):
        _require(
            number % ranks == 0,
            f"--tensor-parallel {ranks} for {preset.name} with {number} {what}",
            f"a divisor of {number}",
            "choose another tensor-parallel size",
        )
    _require(
        not layout.sequence_parallel or layout.sequence % ranks == 0,
        f"--sequence {layout.sequence} shared by {ranks} ranks",
        f"a multiple of --tensor-parallel {ranks}",
        "choose another length, or leave out --sequence-parallel",
    )


def _check_experts(preset: ModelPreset, layout: Layout) -> None:
    ranks = layout.expert_parallel
    if not preset.experts:
        _require(ranks == 1, f"--expert-parallel {ranks} for {preset.name}, which has no experts", "1", "leave it out")
        return
    _require(
        preset.experts % ranks == 0 and layout.data_parallel % ranks == 0,
        f"--expert-parallel {ranks} for {preset.experts} experts and --data-parallel {layout.data_parallel}",
        "a divisor of both",
        "choose another expert-parallel or data-parallel size",
    )
    _require(
        layout.tensor_parallel == 1 or layout.sequence_parallel,
        f"--tensor-parallel {layout.tensor_parallel} for {preset.name} without --sequence-parallel",
        "both: Megatron-Core trains mixtures with tensor parallelism only so",
        "add --sequence-parallel",
    )


def _require(holds: bool, found: str, expected: str, next_step: str) -> None:
    if not holds:
        raise ConfigError(found, expected, next_step)
