"""One rank of tests/distributed/test_model_layouts.py: build the same model in several layouts and compare.

Every rank first builds the whole model alone, runs one global batch and keeps weights and gradients, whole and by name.
In each layout it then builds its part and compares its shards with the same parts of the whole.
"""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
Named = dict[str, tuple[torch.Tensor, tuple[slice, ...], tuple[int, ...]]]  # name -> values, place, whole shape


def main() -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for model_flags, layouts in CASES:
        whole_weights, whole_gradients, whole_norm = run(model_flags)
        for layout in layouts:
            weights, gradients, norm = run(f"{model_flags} {layout}")
            assert_covered(weights, whole_weights)
            for name, (values, place, _) in weights.items():
                assert torch.equal(values, whole_weights[name][0][place]), f"{layout}: weight {name}"
            for name, (values, place, _) in gradients.items():
                expected = whole_gradients[name][0][place]
                error = (values - expected).norm() / max(expected.norm(), 1e-3 * whole_norm)
                assert error < 2e-5, f"{layout}: gradient of {name} is off by {error:.1e}"
            assert abs(norm - whole_norm) < 2e-5 * whole_norm, f"{layout}: gradient norm {norm}, not {whole_norm}"
            print("same:", layout)
    torch.distributed.destroy_process_group()


def run(flags: str) -> tuple[Named, Named, float]:
    """Build, run one global batch; this rank's weights before and gradients after it, and the gradient norm."""
    config = parse_command_line(flags.split(), {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})
    transformer_config = build_transformer_config(config)
    with model_parallel(config, transformer_config):
        model = build_model(config, transformer_config, VOCAB, DEVICE)
        optimizer = get_megatron_optimizer(OptimizerConfig(optimizer="adam", lr=1e-3, min_lr=0.0), model)
        weights = named(model, lambda parameter: parameter.detach().clone())
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
        gradients = named(model, lambda parameter: parameter.main_grad.clone())
        _, norm, _ = optimizer.step()
        return weights, gradients, float(norm)


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


def named(model: list[torch.nn.Module], value_of) -> Named:
    """Values of this rank's shards, by the name of the whole tensor and its layer and expert."""
    found: Named = {}
    for chunk in model:
        for entry in chunk.module.sharded_state_dict().values():
            if not isinstance(getattr(entry, "data", None), torch.nn.Parameter):
                continue
            if isinstance(entry, ShardedTensorFactory):
                shards = dataclasses.replace(entry, data=value_of(entry.data)).build()
            else:
                shards = [dataclasses.replace(entry, data=value_of(entry.data), dtype=entry.data.dtype)]
            for part, shard in enumerate(shards):
                add(found, shard, part)
    return found


def add(found: Named, shard: ShardedTensor, part: int) -> None:
    lead = shard.prepend_axis_num
    name = ".".join([shard.key, *map(str, shard.global_offset[:lead])])
    starts = shard.global_offset[lead:]
    place = tuple(slice(start, start + length) for start, length in zip(starts, shard.local_shape, strict=True))
    shape = shard.global_shape[lead:]
    if name in found and found[name][0].shape == shape:  # the other half of a gated layer, in the whole model
        found[name][0][place] = shard.data
        return
    if all(start == 0 for start in starts) and tuple(shard.local_shape) != shape and part == 0 and is_whole(shard):
        whole = torch.full(shape, float("nan"))
        whole[place] = shard.data
        found[name] = (whole, tuple(slice(0, length) for length in shape), shape)
        return
    found[f"{name}" if name not in found else f"{name}#{part}"] = (shard.data, place, shape)


if __name__ == "__main__":
    main()
    sys.exit(0)
