"""Train a GPT with Megatron-Core: `torchrun --nproc-per-node 4 pretrain_gpt.py --help` teaches the flags."""

import sys

from megatron.pretrain.distributed.failure import leave
from megatron.pretrain.main import main

# The guard matters: a checkpoint's writer process imports this file again.
if __name__ == "__main__":
    status = main()
    if status:
        leave(status)  # a process group that lost a rank cannot be taken down in order
    sys.exit(0)
