"""One rank of tests/distributed/test_model_layouts.py: build the same model in several layouts and compare.

Every rank first builds the whole model alone, runs one global batch and keeps weights and gradients, whole and by name.
In each layout it then builds its part and compares its shards with the same parts of the whole.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from megatron.pretrain.platform import install_platform

DEVICE = install_platform("gloo")

import torch  # noqa: E402
from megatron.core import parallel_state, tensor_parallel  # noqa: E402
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory  # noqa: E402
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402
from megatron.core.utils import get_batch_on_this_cp_rank  # noqa: E402

from megatron.pretrain.config import PretrainConfig, parse_command_line  # noqa: E402
from megatron.pretrain.model import build_model, build_transformer_config  # noqa: E402

SHAPE = (
    "--hidden-size 64 --num-attention-heads 4 --seq-length 32 --micro-batch-size 2 --train-iters 1 --lr 1e-3 "
    "--distributed-backend gloo --attention-dropout 0 --hidden-dropout 0 --mock-data --vocab-size 128"
)
GPT = f"{SHAPE} --num-layers 4 --qk-layernorm"
LLAMA = (
    f"{SHAPE} --num-layers 2 --normalization RMSNorm --swiglu --position-embedding-type rope --group-query-attention "
    "--num-query-groups 2 --disable-bias-linear --untie-embeddings-and-output-weights"
)
MOE = f"{SHAPE} --num-layers 2 --num-experts 4 --moe-token-dispatcher-type alltoall --moe-aux-loss-coeff 1e-2"
TP2, PP2 = "--tensor-model-parallel-size 2 --sequence-parallel", "--pipeline-model-parallel-size 2"
CASES = (
    (GPT, (TP2, PP2, f"{PP2} --num-layers-per-virtual-pipeline-stage 1", "--context-parallel-size 2")),
    (LLAMA, (TP2, PP2, "--context-parallel-size 2")),
    (MOE, ("--expert-model-parallel-size 2", TP2, f"{TP2} --expert-model-parallel-size 2")),
)
VOCAB, MICROBATCHES = 128, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What this rank holds of one tensor."""

    name: str
    """Key of the whole tensor, with the layer and the expert where the key leaves them open."""

    place: tuple[tuple[int, int], ...]
    """First and last-plus-one index in the whole tensor, per axis."""

    shape: tuple[int, ...]
    """Shape of the whole tensor."""

    values: torch.Tensor

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(*bounds) for bounds in self.place)


def main() -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for model_flags, layouts in CASES:
        weights, gradients, whole_norm = run(model_flags)
        whole_weights, whole_gradients = assemble(weights), assemble(gradients)
        for layout in layouts:
            weights, gradients, norm = run(f"{model_flags} {layout}")
            assert_all_is_held(weights, whole_weights)
            for part in weights:
                assert torch.equal(part.values, whole_weights[part.name][part.slices]), f"{layout}: weight {part.name}"
            for part in gradients:
                expected = whole_gradients[part.name][part.slices]
                error = (part.values - expected).norm() / max(expected.norm(), 1e-3 * whole_norm)
                assert error < 2e-5, f"{layout}: gradient of {part.name} is off by {error:.1e}"
            assert abs(norm - whole_norm) < 2e-5 * whole_norm, f"{layout}: gradient norm {norm}, not {whole_norm}"
            print("same:", layout)
    torch.distributed.destroy_process_group()


def run(flags: str) -> tuple[list[Part], list[Part], float]:
    """Build, run one global batch; this rank's weights before and gradients after it, and the gradient norm."""
    config = parse_command_line(flags.split(), os.environ)
    transformer_config = build_transformer_config(config)
    with model_parallel(config, transformer_config):
        model = build_model(config, transformer_config, VOCAB, DEVICE)
        optimizer = get_megatron_optimizer(OptimizerConfig(optimizer="adam", lr=1e-3, min_lr=0.0), model)
        weights = parts_of(model, lambda parameter: parameter.detach().clone())
        iterators = [microbatches() for _ in model]
        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iterators if len(model) > 1 else iterators[0],
            model=model if len(model) > 1 else model[0],
            num_microbatches=MICROBATCHES,
            seq_length=config.model.seq_length,
            micro_batch_size=config.training.micro_batch_size,
            forward_only=False,
        )
        gradients = parts_of(model, lambda parameter: parameter.main_grad.clone())
        _, norm, _ = optimizer.step()
        return weights, gradients, float(norm)


def parts_of(model: list[torch.nn.Module], value_of: Callable[[torch.nn.Parameter], torch.Tensor]) -> list[Part]:
    found = []
    for chunk in model:
        for entry in chunk.module.sharded_state_dict().values():
            if isinstance(getattr(entry, "data", None), torch.nn.Parameter):
                entry.data = value_of(entry.data)
                shards = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
                found.extend(part_of(shard) for shard in shards)
    return found


def part_of(shard: ShardedTensor) -> Part:
    lead = shard.prepend_axis_num
    starts = shard.global_offset[lead:]
    return Part(
        name=".".join([shard.key, *map(str, shard.global_offset[:lead])]),
        place=tuple((start, start + length) for start, length in zip(starts, shard.local_shape, strict=True)),
        shape=tuple(shard.global_shape[lead:]),
        values=shard.data,
    )


def assemble(parts: list[Part]) -> dict[str, torch.Tensor]:
    whole: dict[str, torch.Tensor] = {}
    for part in parts:
        whole.setdefault(part.name, torch.full(part.shape, float("nan")))[part.slices] = part.values
    assert not any(tensor.isnan().any() for tensor in whole.values())
    return whole


def assert_all_is_held(parts: list[Part], whole: dict[str, torch.Tensor]) -> None:
    """The ranks together hold every element of every tensor."""
    places: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(places, {(part.name, part.place) for part in parts})
    held = dict.fromkeys(whole, 0)
    for name, place in set().union(*places):
        held[name] += math.prod(end - start for start, end in place)
    assert held == {name: tensor.numel() for name, tensor in whole.items()}


@contextmanager
def model_parallel(config: PretrainConfig, transformer_config: TransformerConfig) -> Iterator[None]:
    parallel = config.parallel
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=config.virtual_pipeline_size,
        context_parallel_size=parallel.context_parallel_size,
        expert_model_parallel_size=parallel.expert_model_parallel_size,
        expert_tensor_parallel_size=transformer_config.expert_tensor_parallel_size,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(1234)
    yield
    parallel_state.destroy_model_parallel()


def microbatches() -> Iterator[dict[str, torch.Tensor]]:
    """The same on every data-parallel rank, so that averaging over them changes nothing."""
    generator = torch.Generator().manual_seed(0)
    while True:
        tokens = torch.randint(0, VOCAB, (2, 33), generator=generator)
        places = torch.arange(32).expand(2, -1)
        batch = {"tokens": tokens[:, :-1], "labels": tokens[:, 1:], "position_ids": places}
        yield get_batch_on_this_cp_rank({name: values.contiguous() for name, values in batch.items()})


def forward_step(iterator: Iterator[dict[str, torch.Tensor]], model: torch.nn.Module) -> tuple:
    batch = next(iterator)
    losses = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    return losses, partial(mean_of_the_sequence, 2 * 32)


def mean_of_the_sequence(tokens: int, losses: torch.Tensor) -> tuple[torch.Tensor, dict]:
    return losses.sum() / tokens, {}


if __name__ == "__main__":
    main()
    sys.exit(0)
