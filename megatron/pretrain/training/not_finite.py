"""What to tell of a gradient that is no number: the commonest end of a run that trains too fast."""

import contextlib
import re
from collections.abc import Iterator

from overlap_recompute.plan.errors import UserError

CHECK = re.compile(r"Unexpected result (?P<value>\S+) .*found (NaN|Inf) in local grad norm", re.DOTALL)
"""What Megatron-Core's check says (`check_grads` in megatron/core/distributed/param_and_grad_buffer.py, 0.16.1)."""


class NotFiniteError(UserError):
    """A gradient that is NaN or infinite."""


@contextlib.contextmanager
def gradients_are_finite(iteration: int) -> Iterator[None]:
    """Within, Megatron-Core's check of gradients names the iteration, which it does not know, and what may help.

    Raises:
        NotFiniteError: on the rank whose gradient it is.
    """
    try:
        yield
    except RuntimeError as error:
        found = CHECK.search(str(error))
        if found is None:
            raise
        raise NotFiniteError(
            f"a gradient that is {found['value']} in iteration {iteration}",
            "finite gradients (--no-check-for-nan-in-loss-and-grad switches this check off)",
            "go on from a checkpoint before it (--load, --ckpt-step) with a lower --lr, a longer warm-up or a smaller "
            "--clip-grad, and look at the data around it",
        ) from error
