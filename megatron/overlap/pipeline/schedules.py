"""Hooks megatron/core/pipeline_parallel/schedules.py of megatron-core 0.16.1.

The steps of one microbatch are upstream's, called through its module, so that whoever replaces them there is heard. The
loops around them are ours.
"""

from megatron.core.pipeline_parallel import schedules as upstream

from megatron.overlap.replacements import require_shape
from megatron.pretrain.platform.seam import Expected

_EXPECTED = (
    Expected(
        name="forward_step",
        parameters=(
            "forward_step_func", "data_iterator", "model", "num_microbatches", "input_tensor", "forward_data_store",
            "config", "cp_group_size", "collect_non_loss_data", "checkpoint_activations_microbatch",
            "is_first_microbatch", "current_microbatch", "vp_stage", "is_last_stage",
        ),
    ),
    Expected(
        name="backward_step", parameters=("input_tensor", "output_tensor", "output_tensor_grad", "model_type", "config")
    ),
    Expected(name="check_first_val_step", parameters=("first_val_step", "forward_only", "cond")),
    Expected(name="deallocate_output_tensor", parameters=("out", "deallocate_pipeline_outputs")),
    Expected(
        name="get_tensor_shapes",
        parameters=("seq_length", "micro_batch_size", "decoder_seq_length", "config", "tp_group", "cp_group"),
    ),
)  # fmt: skip


def require_stock_steps() -> None:
    """Check that upstream's steps take what `passes` gives them.

    Raises:
        UserError: the installed megatron-core has a different shape.
    """
    require_shape(upstream, "runs forward and backward passes in the order of action lists", *_EXPECTED)
