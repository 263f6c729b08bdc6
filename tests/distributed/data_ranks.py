"""What each rank of test_data.py does: build the splits over a process group and report what it reads, as JSON.

Usage: data_ranks.py <folder with text.bin and text.idx> <folder for the reports>
"""

import json
import os
import pathlib
import sys

from megatron.pretrain.config import PretrainConfig, parse_command_line
from megatron.pretrain.platform import install_platform

install_platform("gloo")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.utils import get_batch_on_this_cp_rank  # noqa: E402

from megatron.pretrain.data.datasets import DatasetSplits, build_datasets  # noqa: E402
from megatron.pretrain.data.loader import build_loader  # noqa: E402
from megatron.pretrain.data.tokenizers import build_tokenizer  # noqa: E402

FLAGS = (
    "--distributed-backend gloo --num-layers 4 --hidden-size 16 --num-attention-heads 2 --seq-length 16 "
    "--max-position-embeddings 16 --micro-batch-size 2 --global-batch-size 8 --train-iters 6 --lr 1e-3 --eval-iters 1 "
    "--eval-interval 5 --tokenizer-type ByteLevelTokenizer --num-workers 1"
)


def config_for(layout: str, data: str) -> PretrainConfig:
    return parse_command_line([*FLAGS.split(), *layout.split(), *data.split()], os.environ)


def build(config: PretrainConfig) -> DatasetSplits:
    return build_datasets(config, build_tokenizer(config))


def pipeline(data: str) -> dict[str, object]:
    """Four stages: the inner ones read nothing, for a single prefix and for a blend."""
    parallel_state.initialize_model_parallel(1, 4)
    config = config_for("--pipeline-model-parallel-size 4", data)
    splits = build(config)
    parallel_state.destroy_model_parallel()
    lengths = {name: None if (part := getattr(splits, name)) is None else len(part) for name in splits.__slots__}
    first = None if splits.train is None else splits.train[0]["tokens"].tolist()
    return {"lengths": lengths, "first": first}


def two_by_two(data: str) -> dict[str, object]:
    """Two data-parallel ranks of two context-parallel ranks each."""
    parallel_state.initialize_model_parallel(1, 1, context_parallel_size=2)
    config = config_for("--context-parallel-size 2", data)
    dataset = build(config).train
    assert dataset is not None
    place = {
        "dp_rank": parallel_state.get_data_parallel_rank(),
        "dp_size": parallel_state.get_data_parallel_world_size(),
    }
    cut = {
        "cp_rank": parallel_state.get_context_parallel_rank(),
        "cp_size": parallel_state.get_context_parallel_world_size(),
    }
    whole = list(build_loader(dataset, consumed_samples=8, config=config, **place))
    parts = list(build_loader(dataset, consumed_samples=8, config=config, **place, **cut))
    as_stock = all(
        torch.equal(mine[field], stock[field])
        for mine, stock in zip(parts, (get_batch_on_this_cp_rank(dict(batch)) for batch in whole), strict=True)
        for field in stock
    )
    parallel_state.destroy_model_parallel()
    return {**place, **cut, "tokens": [batch["tokens"].tolist() for batch in whole], "cut_as_stock": as_stock}


def main() -> None:
    data_folder, reports = (pathlib.Path(argument) for argument in sys.argv[1:])
    dist.init_process_group("gloo")
    prefix, cache = data_folder / "text", data_folder / "cache"
    single = f"--data-path {prefix} --split 90,10,0 --data-cache-path {cache}"
    blend = f"--train-data-path 3 {prefix} 1 {prefix} --valid-data-path {prefix} --data-cache-path {cache}"
    report = {"single": pipeline(single), "blend": pipeline(blend), "parallel": two_by_two(single)}
    (reports / f"{dist.get_rank()}.json").write_text(json.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
