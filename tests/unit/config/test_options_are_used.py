"""Nothing is silently ignored: every option is read by the trainer, or settled by the configuration itself."""

import ast
import pathlib

import megatron.pretrain.config
from megatron.pretrain.config.flags import all_flags
from megatron.pretrain.config.pretrain_config import GROUPS

CONFIG = pathlib.Path(megatron.pretrain.config.__file__).parent
# Option -> what it becomes before anybody else reads it.
SETTLED = {
    "model_preset": "the flags that it stands for, in parse_command_line",
    "group_query_attention": "PretrainConfig.num_query_groups",
    "num_layers_per_virtual_pipeline_stage": "PretrainConfig.virtual_pipeline_size",
    "num_virtual_stages_per_pipeline_rank": "PretrainConfig.virtual_pipeline_size",
    "grad_reduce_in_bf16": "accumulate_allreduce_grads_in_fp32",
    "bias_gelu_fusion": "PretrainConfig.bias_activation_fusion",
    "bias_swiglu_fusion": "PretrainConfig.bias_activation_fusion",
    "data_args_path": "data_path",
    "dataloader_type": "one legal value",
    "ckpt_format": "one legal value",
    "overlap_recompute_profile_warmup": "profile_iterations",
    "overlap_recompute_profile_iterations": "profile_iterations",
}


def names_read() -> set[str]:
    """Attributes and strings in the trainer's code outside of the configuration."""
    files = [path for path in CONFIG.parent.rglob("*.py") if CONFIG not in path.parents]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return attributes | {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_every_option_is_read() -> None:
    read = names_read()
    unread = [flag.name for _, options in GROUPS for flag in all_flags(options) if flag.field_name not in read]
    settled = {flag.name for _, options in GROUPS for flag in all_flags(options) if flag.field_name in SETTLED}
    assert set(unread) <= settled, set(unread) - settled
    assert len(settled) == len(SETTLED)
