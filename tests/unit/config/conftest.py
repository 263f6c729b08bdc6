"""Shared by the tests of the configuration: command lines that are right, to be made wrong in one place."""

from collections.abc import Callable

import pytest

from megatron.pretrain.config import PretrainConfig, parse_command_line

MINIMAL = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64 --micro-batch-size 2 --train-iters 10 "
    "--lr 1e-3 --mock-data --vocab-size 512 --distributed-backend gloo"
)

INSTALLED = ("tensorboard", "tokenizers", "sentencepiece")

Parse = Callable[..., PretrainConfig]


def environment(world_size: int) -> dict[str, str]:
    """What torchrun gives rank 0."""
    place = {"RANK": "0", "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    return {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "4000"}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optional packages of a CPU machine, whatever this one has."""
    for module in ("resolve", "checks.machine"):
        monkeypatch.setattr(f"megatron.pretrain.config.{module}.has_module", lambda name: name in INSTALLED)


@pytest.fixture
def parse() -> Parse:
    """Parse the minimal command line with `more` flags on it, as rank 0 of `world_size`."""

    def run(more: str = "", *, world_size: int = 1, without: str = "") -> PretrainConfig:
        words = MINIMAL
        for flag in without.split(","):
            words = words.replace(flag, "")
        return parse_command_line([*words.split(), *more.split()], environment(world_size))

    return run
