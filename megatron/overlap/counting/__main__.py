"""Entry point: see `megatron.overlap.counting.command`."""

import sys

from megatron.pretrain.platform import install_platform

install_platform("gloo")  # before the first import of megatron.core, which the next line causes

from megatron.overlap.counting.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
