"""The process groups whose collectives open windows."""

from megatron.core import parallel_state
from torch.distributed import ProcessGroup

from megatron.overlap.adapters.collectives import Kinds
from overlap_recompute.plan.windows import WindowKind


def kinds_of_groups() -> dict[ProcessGroup, Kinds]:
    """The groups whose collectives open windows, and what these are called in forward and backward.

    Groups of a single rank communicate nothing and are left out; where two groups hold the same ranks they are
    different objects all the same.
    """
    groups: list[tuple[ProcessGroup | None, Kinds]] = [
        (parallel_state.get_tensor_model_parallel_group(), (WindowKind.TP_FORWARD, WindowKind.TP_BACKWARD)),
        (parallel_state.get_context_parallel_group(), (WindowKind.CP, WindowKind.CP)),
        (parallel_state.get_expert_model_parallel_group(), (WindowKind.EP, WindowKind.EP)),
        (parallel_state.get_expert_tensor_and_model_parallel_group(), (WindowKind.EP, WindowKind.EP)),
        (parallel_state.get_expert_tensor_parallel_group(), (WindowKind.EP, WindowKind.EP)),
    ]
    return {group: kinds for group, kinds in groups if group is not None and group.size() > 1}
