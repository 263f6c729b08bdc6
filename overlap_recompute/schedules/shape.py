"""How many ranks, model chunks and microbatches a schedule has, and which stage lies where."""

from dataclasses import dataclass

from overlap_recompute.plan.actions import Grid, ScheduleError


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineShape:
    """The size of a pipeline's schedule.

    The model is cut into `ranks * chunks` virtual stages; stage s is chunk `s // ranks` of rank `s % ranks`, as in
    Megatron's interleaved schedule.
    """

    ranks: int
    """Pipeline-parallel size."""
    chunks: int
    """Model chunks of each rank (virtual pipeline size); 1 without interleaving."""
    microbatches: int
    """Microbatches of a step."""

    def __post_init__(self) -> None:
        if self.ranks == 1 and self.chunks > 1:
            raise ScheduleError(
                f"{self.chunks} model chunks on a pipeline of one rank", "one chunk", "use chunk 0 only, or add ranks"
            )

    @property
    def stages(self) -> int:
        """Virtual stages of the whole pipeline."""
        return self.ranks * self.chunks

    def stage(self, rank: int, chunk: int) -> int:
        """The virtual stage that is model chunk `chunk` of `rank`."""
        return chunk * self.ranks + rank


def shape_of(grid: Grid) -> PipelineShape:
    """The smallest shape that holds every action of `grid`.

    Raises:
        ScheduleError: there is no action at all, or a single rank has several chunks.
    """
    actions = [action for row in grid for action in row]
    if not actions:
        raise ScheduleError("a schedule without actions", "at least one forward pass", "add a row per pipeline rank")
    return PipelineShape(
        ranks=len(grid),
        chunks=max(action.chunk for action in actions) + 1,
        microbatches=max(action.microbatch for action in actions) + 1,
    )
