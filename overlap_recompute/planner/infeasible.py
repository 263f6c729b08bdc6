"""A memory budget that no plan fits into: by how many bytes, on which stage, and what would help."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from overlap_recompute.plan.errors import UserError
from overlap_recompute.plan.memory import MARGIN_FRACTION, static_bytes_of_stage
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.split import Split

MIB = 1 << 20
SEARCHING = ("heu", "mix", "opt")
NO_ADVICE = "give the rank more memory, or use more pipeline stages"


class InfeasibleError(UserError):
    """No plan of a planner fits into a stage's memory."""

    def __init__(
        self, stage: int, short_bytes: int, planner: str, next_step: str = NO_ADVICE, *, further_stages: int = 0
    ) -> None:
        """Of a pipeline, the stage that is furthest from fitting.

        Args:
            stage: which one.
            short_bytes: what the smallest plan of this planner needs beyond the budget.
            planner: its name.
            next_step: what would help.
            further_stages: how many other stages do not fit either; none of them lacks more.
        """
        self.stage, self.short_bytes, self.planner, self.further_stages = stage, short_bytes, planner, further_stages
        others = ("", ", and 1 further stage above it", f", and {further_stages} further stages above it")
        super().__init__(
            f"stage {stage} {in_mib(short_bytes)} MiB ({short_bytes} bytes) above the memory budget with what planner "
            f"{planner} needs at least{others[min(further_stages, 2)]}",
            "a budget that holds weights, optimizer and the activations of all microbatches in flight",
            next_step,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        place = (self.stage, self.short_bytes, self.planner, self.next_step)
        return partial(type(self), further_stages=self.further_stages), place


def in_mib(nbytes: int) -> str:
    """With one digit, rounded up so that it is never 0."""
    return f"{-(-nbytes * 10 // MIB) / 10:.1f}"


def with_advice(error: InfeasibleError, profile: Profile, split: Split, activation_bytes: int) -> InfeasibleError:
    """The error with what would help this layout, with numbers where they follow from the profile.

    What it lacks is counted in bytes of the rank then, with the allocator's margin on activations.

    Args:
        error: what happened, counted in bytes of activations.
        profile: of the run.
        split: layers of the stages.
        activation_bytes: what the smallest plan keeps and works with on the stage.
    """
    advice = "; or ".join([*_advice(error, profile, split, activation_bytes), NO_ADVICE])
    return InfeasibleError(
        error.stage,
        _with_margin(error.short_bytes),
        error.planner,
        advice,
        further_stages=error.further_stages,
    )


def _with_margin(activation_bytes: int) -> int:
    """What a rank must have more of, so that activations may take so many bytes more."""
    return activation_bytes + int(activation_bytes * MARGIN_FRACTION) + 1


def _advice(error: InfeasibleError, profile: Profile, split: Split, activation_bytes: int) -> Iterator[str]:
    layout = profile.layout
    if error.planner not in SEARCHING:
        yield "let the planner decide (--planner mix)"
    ranks = layout.data_parallel * layout.context_parallel
    if profile.static.shards == 1 and ranks > 1:
        optimizer_bytes = static_bytes_of_stage(profile, split, error.stage).optimizer_bytes
        saved_bytes = optimizer_bytes - optimizer_bytes // ranks
        yield f"share the optimizer out (--use-distributed-optimizer saves {in_mib(saved_bytes)} MiB)"
    if layout.micro_batch > 1:
        half_bytes = activation_bytes - activation_bytes * (layout.micro_batch // 2) // layout.micro_batch
        yield f"halve the micro-batch of {layout.micro_batch} (saves about {in_mib(half_bytes)} MiB)"
    if layout.tensor_parallel > 1 and not layout.sequence_parallel:
        yield f"add --sequence-parallel (layer inputs shrink to 1/{layout.tensor_parallel})"
    layers = [sum(chunks) for chunks in split]
    least = min(range(len(layers)), key=lambda stage: layers[stage])
    if layers[error.stage] > layers[least] + 1:
        yield f"move layers from stage {error.stage} ({layers[error.stage]}) to stage {least} ({layers[least]})"
