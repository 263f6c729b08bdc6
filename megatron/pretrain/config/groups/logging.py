"""What a run tells about itself."""

from dataclasses import dataclass
from typing import Literal

from megatron.pretrain.config.ranges import NonNegativeInt, PositiveInt


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingOptions:
    """Logging: what a run tells about itself, and where."""

    log_interval: PositiveInt = 100
    """Iterations between lines in the log."""

    log_throughput: bool = False
    """Add tokens/s and TFLOP/s per rank to the log."""

    log_params_norm: bool = False
    """Log the L2 norm of the parameters."""

    log_num_zeros_in_grad: bool = False
    """Log the number of zeros in the gradient."""

    timing_log_level: Literal[0, 1, 2] = 0
    """Detail of timers: 0 the iteration, 1 its parts, 2 every communication too."""

    timing_log_option: Literal["max", "minmax", "all"] = "minmax"
    """Which ranks' times to log."""

    barrier_with_level_1_timing: bool = True
    """Wait for all ranks before each level-1 timer."""

    tensorboard_dir: str | None = None
    """Folder for TensorBoard events."""

    tensorboard_log_interval: PositiveInt = 1
    """Iterations between TensorBoard entries."""

    tensorboard_queue_size: PositiveInt = 1000
    """TensorBoard entries held back before they are written."""

    log_timers_to_tensorboard: bool = False
    """Write timers to TensorBoard."""

    log_loss_scale_to_tensorboard: bool = True
    """Write the loss scale to TensorBoard."""

    log_validation_ppl_to_tensorboard: bool = False
    """Write validation perplexity to TensorBoard."""

    log_memory_to_tensorboard: bool = False
    """Write memory use to TensorBoard."""

    log_world_size_to_tensorboard: bool = False
    """Write the number of ranks to TensorBoard."""

    wandb_project: str = ""
    """Weights & Biases project; not used when empty."""

    wandb_entity: str = ""
    """Weights & Biases team or user."""

    wandb_exp_name: str = ""
    """Name of the run in Weights & Biases; needed with --wandb-project."""

    wandb_save_dir: str = ""
    """Folder for Weights & Biases' local files; wandb in the --save folder when empty."""

    logging_level: NonNegativeInt | None = None
    """Python logging level (10 debug, 20 info, 30 warning); 20 when not given."""

    metrics_file: str | None = None
    """File for one JSON line per logged iteration. (Own flag.)"""

    progress_bar: Literal["auto", "on", "off"] = "auto"
    """Progress bar on standard error; auto shows it on a terminal. (Own flag.)"""
