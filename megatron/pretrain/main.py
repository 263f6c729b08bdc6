"""Entry point: read and check the command line before anything heavy is imported, then train.

What is imported late is late for two reasons: `--help` answers in a fraction of a second, and the platform must be
installed before the first import of `megatron.core` (docs/platform.md).
"""

import os
import sys
from collections.abc import Sequence

from megatron.pretrain.config import parse_command_line, validate
from megatron.pretrain.distributed.failure import run_guarded
from megatron.pretrain.logs.console import configure_logging
from megatron.pretrain.logs.run_log import check_log_packages


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says and return the process's exit status (docs/faults.md lists them)."""
    return run_guarded(lambda: _train(sys.argv[1:] if argv is None else argv))


def _train(argv: Sequence[str]) -> int:
    config = parse_command_line(argv, os.environ)
    validate(config)
    configure_logging(config.world.rank, config.world.world_size, config.logging.logging_level)
    check_log_packages(config.logging)
    from megatron.pretrain.data.checks import check_data_files

    check_data_files(config)
    from megatron.pretrain.platform import install_platform

    device = install_platform(config.distributed.distributed_backend)
    from megatron.pretrain.training.run import run

    return run(config, device, argv)
