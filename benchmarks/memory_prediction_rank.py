"""One rank of a measured run: trains like `pretrain_gpt.py` and writes its peak resident memory at the end.

Usage: memory_prediction_rank.py FOLDER FLAGS...
"""

import os
import sys
from pathlib import Path

from megatron.pretrain.logs.memory import peak_memory_bytes
from megatron.pretrain.main import main

if __name__ == "__main__":
    status = main(sys.argv[2:])
    rank = os.environ["RANK"]
    Path(sys.argv[1], f"rank-{rank}").write_text(str(peak_memory_bytes("cpu")), encoding="utf-8")
    sys.exit(status)
