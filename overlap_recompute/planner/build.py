"""From profile, split and budget to the problem of one stage."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from overlap_recompute.plan.actions import Actions, Kind
from overlap_recompute.plan.memory import MARGIN_FRACTION, stage_memory
from overlap_recompute.plan.plan_file import FORWARD_WAIT, PIPELINE_WINDOW
from overlap_recompute.plan.profile import COMPUTE, LayerKind, Pass, Profile
from overlap_recompute.plan.split import Split, layers_of
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.planner.problem import ChunkMemory, StageLayer, StageProblem, Window
from overlap_recompute.schedules import in_flight_microbatches, pipeline_schedule

ALL_KINDS = tuple(kind.value for kind in WindowKind)
Waits = Mapping[tuple[int, str], float]
"""Of a stage for other stages: length for each chunk and name of a window, `FORWARD_WAIT` or `PIPELINE_WINDOW`."""


def build_stage_problem(
    profile: Profile,
    split: Split,
    stage: int,
    microbatches: int,
    budget_bytes: int,
    *,
    pp_wait_us: float = 0.0,
    before_forward: bool = False,
    waits: Waits | None = None,
    window_kinds: Collection[str] = ALL_KINDS,
    row: Actions | None = None,
) -> StageProblem:
    """The problem of one stage.

    Args:
        profile: costs and sizes.
        split: layers of all stages and chunks.
        stage: which one.
        microbatches: of an iteration.
        budget_bytes: memory of the rank, all of it.
        pp_wait_us: how long the stage waits for another one, per microbatch.
        before_forward: whether it waits for the previous stage's output, or else for the next one's gradient.
        waits: in place of these two, the length of each wait.
        window_kinds: values of `WindowKind` that may be filled.
        row: the stage's passes in order, if known; else those of 1F1B, interleaved with several chunks.

    Raises:
        ConfigError: there is no schedule for these sizes.
    """
    if row is None:
        row = pipeline_schedule(len(split), len(split[0]), microbatches)[stage]
    used = sorted({profile.layers[layer] for indices in layers_of(split)[stage] for layer in indices})
    if waits is None:
        waits = _waits(stage, split, row, pp_wait_us, before_forward)
    windows, layers = _timelines(profile, split, stage, row, used, waits, window_kinds)
    in_flight = in_flight_microbatches(row).peak_by_chunk
    ends = _ends(profile, len(split), len(split[0]), stage)
    return StageProblem(
        stage=stage,
        kinds=tuple(profile.kinds[index] for index in used),
        layers=layers,
        windows=windows,
        chunks=tuple(
            ChunkMemory(in_flight=count, freed_bytes=freed, waiting_bytes=waiting, end_bytes=end)
            for count, (freed, waiting, end) in zip(in_flight, ends, strict=True)
        ),
        floor_bytes=max(0, profile.head.transient_bytes) if stage == len(split) - 1 else 0,
        budget_bytes=_activation_budget_bytes(profile, split, stage, in_flight, budget_bytes),
        window_kinds=tuple(name for name in ALL_KINDS if name in window_kinds),
    )


def _timelines(
    profile: Profile,
    split: Split,
    stage: int,
    row: Actions,
    used: Sequence[int],
    waits: Waits,
    window_kinds: Collection[str],
) -> tuple[tuple[Window, ...], tuple[StageLayer, ...]]:
    """Windows of all chunks in order, and where their layers' backward passes lie among them."""
    chunks = layers_of(split)[stage]
    partner = _forward_partners(row, len(chunks))
    windows: list[Window] = []
    layers: list[StageLayer] = []
    for chunk, indices in enumerate(chunks):
        first = len(windows)
        windows += _pipeline_window(waits, chunk, FORWARD_WAIT, window_kinds)
        for layer in chunks[partner[chunk]] if chunk in partner else ():
            windows += _windows(profile.kind_of(layer).forward, f"F{layer}", window_kinds)
        windows += _pipeline_window(waits, chunk, PIPELINE_WINDOW, window_kinds)
        backward: list[StageLayer] = []
        for layer in reversed(indices):
            kind = profile.kind_of(layer)
            backward.append(
                StageLayer(
                    layer=layer,
                    chunk=chunk,
                    kind=used.index(profile.layers[layer]),
                    first_window=first,
                    own_window=len(windows),
                    deadlines=_deadlines(kind, window_kinds, len(windows)),
                )
            )
            windows += _windows(kind.backward, f"B{layer}", window_kinds)
        layers += reversed(backward)
    return tuple(windows), tuple(layers)


def _waits(
    stage: int, split: Split, row: Actions, pp_wait_us: float, before_forward: bool
) -> dict[tuple[int, str], float]:
    """Length of the wait of each chunk, by the name of its window.

    Where a chunk's own forward pass is right before its backward pass (the last stage's last chunk), neither wait has
    anything to replay: before the forward pass there is nothing, and the gradient comes from the stage itself.
    """
    chunks = len(split[0])
    waiting = [chunk for chunk in range(chunks) if (stage, chunk) != (len(split) - 1, chunks - 1)]
    if before_forward:
        waiting = [chunk for chunk in waiting if chunk in _forward_partners(row, chunks)]
    name = FORWARD_WAIT if before_forward else PIPELINE_WINDOW
    return {(chunk, name): pp_wait_us / chunks for chunk in waiting}


def _pipeline_window(waits: Waits, chunk: int, name: str, kinds: Collection[str]) -> Iterator[Window]:
    length_us = waits.get((chunk, name), 0.0)
    if length_us > 0 and WindowKind.PP_WAIT.value in kinds:
        yield Window(name=name, length_us=length_us)


def _forward_partners(row: Actions, chunks: int) -> dict[int, int]:
    """For each chunk the one whose forward pass of another microbatch runs right before its backward pass, if any does.

    In warm-up and cool-down none does; the steady state is what is planned.
    """
    before: list[Counter[int]] = [Counter() for _ in range(chunks)]
    for earlier, action in zip(row, row[1:], strict=False):
        same = (earlier.chunk, earlier.microbatch) == (action.chunk, action.microbatch)
        if action.kind is Kind.B and earlier.kind is Kind.F and not same:
            before[action.chunk][earlier.chunk] += 1
    return {chunk: counts.most_common(1)[0][0] for chunk, counts in enumerate(before) if counts}


def _windows(steps: Pass, prefix: str, kinds: Collection[str]) -> Iterator[Window]:
    number = 0
    for step in steps:
        if step.kind == COMPUTE:
            continue
        if step.kind in kinds and step.duration_us > 0:
            yield Window(name=f"{prefix}.{number}", length_us=step.duration_us)
        number += 1


def _deadlines(kind: LayerKind, kinds: Collection[str], own_window: int) -> tuple[int, ...]:
    """For each unit how many windows come before the first step that needs it."""
    found = {unit.name: -1 for unit in kind.units}
    count = own_window
    for step in kind.backward:
        for unit in step.needs:
            if found[unit] < 0:
                found[unit] = count
        count += step.kind != COMPUTE and step.kind in kinds and step.duration_us > 0
    return tuple(count if deadline < 0 else deadline for deadline in found.values())


def _ends(profile: Profile, stages: int, chunks: int, stage: int) -> list[tuple[int, int, int]]:
    """Of each chunk: bytes of the head freed early, bytes held all through backward, bytes of the embedding's end."""
    rows = []
    for chunk in range(chunks):
        is_first, is_last = (stage, chunk) == (0, 0), (stage, chunk) == (stages - 1, chunks - 1)
        freed = profile.head.kept_bytes if is_last else 0
        waiting = profile.tied_parameters * profile.static.parameter_bytes if is_first and stages == 1 else 0
        end = profile.embedding.transient_bytes + waiting - freed if is_first else 0
        rows.append((freed, waiting, end))
    return rows


def _activation_budget_bytes(
    profile: Profile, split: Split, stage: int, in_flight: tuple[int, ...], budget_bytes: int
) -> int:
    """What the budget leaves for layers: without static memory, buffers, ends, and the margin on activations."""
    table = stage_memory(profile, split, stage, {}, in_flight)
    other_bytes = table.total_bytes - table.kept_bytes - table.working_set_bytes - table.head_bytes - table.margin_bytes
    left_bytes = budget_bytes - other_bytes
    activations = int(left_bytes / (1 + MARGIN_FRACTION))
    while activations + 1 + int((activations + 1) * MARGIN_FRACTION) <= left_bytes:
        activations += 1
    while activations + int(activations * MARGIN_FRACTION) > left_bytes:
        activations -= 1
    is_first, is_last = stage == 0, stage == len(split) - 1
    ends_bytes = (in_flight[0] * profile.embedding.kept_bytes if is_first else 0) + (
        in_flight[-1] * profile.head.kept_bytes if is_last else 0
    )
    return activations - ends_bytes
