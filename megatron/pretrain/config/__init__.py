"""Options of a run: one dataclass per group, the command line and the flag page derived from them.

Standard library only, so that --help and every check of the options run before torch is imported.
"""

from megatron.pretrain.config.command_line import parse_command_line
from megatron.pretrain.config.groups.checkpoint import CheckpointOptions
from megatron.pretrain.config.groups.data import DataOptions
from megatron.pretrain.config.groups.distributed import DistributedOptions
from megatron.pretrain.config.groups.logging import LoggingOptions
from megatron.pretrain.config.groups.model import ModelOptions
from megatron.pretrain.config.groups.moe import MoEOptions
from megatron.pretrain.config.groups.optimizer import OptimizerOptions
from megatron.pretrain.config.groups.overlap import OverlapOptions
from megatron.pretrain.config.groups.parallel import ParallelOptions
from megatron.pretrain.config.groups.precision import PrecisionOptions
from megatron.pretrain.config.groups.recompute import RecomputeOptions
from megatron.pretrain.config.groups.training import TrainingOptions
from megatron.pretrain.config.pretrain_config import PretrainConfig
from megatron.pretrain.config.validation import validate
from megatron.pretrain.config.world import World

__all__ = [
    "CheckpointOptions",
    "DataOptions",
    "DistributedOptions",
    "LoggingOptions",
    "MoEOptions",
    "ModelOptions",
    "OptimizerOptions",
    "OverlapOptions",
    "ParallelOptions",
    "PrecisionOptions",
    "PretrainConfig",
    "RecomputeOptions",
    "TrainingOptions",
    "World",
    "parse_command_line",
    "validate",
]
