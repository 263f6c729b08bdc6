"""What ended a training step, with the place in the model."""

from megatron.overlap.pipeline.errors import PipelineError
from overlap_recompute.runtime import Place


class BackwardError(RuntimeError):
    """A backward pass failed; the cause says why.

    Args:
        place: the unit whose tensor it had read last.
        cause: what was raised.
    """

    def __init__(self, place: Place, cause: BaseException) -> None:
        what = str(cause) if isinstance(cause, PipelineError) else f"{type(cause).__name__}: {cause}"
        super().__init__(f"backward failed after it had read a tensor of {place}: {what}")
        self.place = place
