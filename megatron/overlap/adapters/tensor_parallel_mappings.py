"""Hooks megatron/core/tensor_parallel/mappings.py of megatron-core 0.16.1."""

from megatron.core.tensor_parallel import mappings as upstream

from megatron.overlap.adapters.collectives import WindowedCollectives
from megatron.overlap.replacements import Replacements, require_shape
from megatron.pretrain.platform.seam import Expected

_EXPECTED = (
    Expected(name="_reduce", parameters=("input_", "group")),
    Expected(name="_gather_along_first_dim", parameters=("input_", "group", "output_split_sizes", "use_global_buffer")),
    Expected(
        name="_reduce_scatter_along_first_dim", parameters=("input_", "group", "input_split_sizes", "use_global_buffer")
    ),
    Expected(name="_AllToAll.forward", parameters=("ctx", "group", "input", "output_split_sizes", "input_split_sizes")),
)
_BOUND_AT_IMPORT = {
    "dist_all_gather_func": "all_gather_into_tensor",
    "dist_reduce_scatter_func": "reduce_scatter_tensor",
}
"""Names that upstream binds at import, and the collectives that they stand for."""


def hook_mappings(replacements: Replacements, collectives: WindowedCollectives) -> None:
    """Let the module's collectives open windows.

    Raises:
        UserError: megatron-core has another shape here.
    """
    require_shape(upstream, "opens windows in region mappings", *_EXPECTED)
    replacements.set(upstream, "torch", collectives.torch_for(upstream))
    for name, collective in _BOUND_AT_IMPORT.items():
        replacements.set(upstream, name, collectives.collective(collective))
