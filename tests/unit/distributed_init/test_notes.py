"""What initialization tells about the environment, and the seeds it gives out."""

from dataclasses import replace

import pytest

from megatron.pretrain.config import PretrainConfig, parse_command_line
from megatron.pretrain.platform import install_platform

install_platform("gloo")

import torch  # noqa: E402

from megatron.pretrain.distributed.initialize import connection_notes  # noqa: E402
from megatron.pretrain.distributed.seeds import rank_seed  # noqa: E402

FLAGS = [
    "--num-layers", "2", "--hidden-size", "64", "--num-attention-heads", "4", "--seq-length", "32", "--lr", "1e-3",
    "--micro-batch-size", "1", "--train-iters", "10", "--mock-data", "--tokenizer-type", "NullTokenizer",
    "--vocab-size", "100", "--distributed-backend", "gloo",
]  # fmt: skip


def with_tensor_parallel(size: int) -> PretrainConfig:
    config = parse_command_line(FLAGS, {})
    return replace(config, parallel=replace(config.parallel, tensor_model_parallel_size=size))


@pytest.mark.parametrize(
    ("size", "device", "environ", "beginnings"),
    [
        (2, "cuda:0", {}, ["CUDA_DEVICE_MAX_CONNECTIONS is not set; with 1"]),
        (2, "cuda:0", {"CUDA_DEVICE_MAX_CONNECTIONS": "32"}, ["CUDA_DEVICE_MAX_CONNECTIONS is 32; with 1"]),
        (2, "cuda:0", {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}, ["CUDA_DEVICE_MAX_CONNECTIONS is 1"]),
        (1, "cuda:0", {}, []),
        (2, "cpu", {}, []),
    ],
)
def test_the_number_of_connections_is_reported_where_it_matters(
    size: int, device: str, environ: dict[str, str], beginnings: list[str]
) -> None:
    notes = connection_notes(with_tensor_parallel(size), torch.device(device), environ)
    assert len(notes) == len(beginnings)
    assert all(note.startswith(beginning) for note, beginning in zip(notes, beginnings, strict=True))


def test_seeds_differ_by_stage_and_by_data_rank_only_when_asked() -> None:
    assert rank_seed(1234, pp_rank=3, dp_rank=2) == 1534
    assert rank_seed(1234, pp_rank=3, dp_rank=2, data_parallel_random_init=True) == 1554
