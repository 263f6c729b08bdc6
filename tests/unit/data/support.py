"""What the data tests share: a configuration from flags, the tools as modules, and some text."""

import importlib.util
import pathlib
from types import ModuleType

from megatron.pretrain.config import PretrainConfig, parse_command_line

ROOT = pathlib.Path(__file__).resolve().parents[3]
TEXTS = [
    f"def function_{number}(left, right):\n    return left * {number} + right  # naïve – 漢字 🙂\n"
    for number in range(40)
]
BASE_FLAGS = (
    "--distributed-backend gloo --num-layers 2 --hidden-size 16 --num-attention-heads 2 --seq-length 8 "
    "--max-position-embeddings 8 --micro-batch-size 2 --global-batch-size 4 --train-iters 5 --lr 1e-3 "
    "--eval-iters 2 --eval-interval 5 --num-workers 0"
)


def make_config(flags: str = "", *more: str) -> PretrainConfig:
    """A run's configuration; `flags` are parted at blanks, later ones win."""
    return parse_command_line([*BASE_FLAGS.split(), *flags.split(), *more], {})


def load_tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
