"""A tiny GPT with its optimizer and schedule on any parallel layout; imported by the ranks of the checkpoint tests."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron.pretrain.platform import install_platform

install_platform("gloo")

from megatron.core import parallel_state as mpu  # noqa: E402
from megatron.core import tensor_parallel  # noqa: E402
from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.transformer.module import Float16Module  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

from megatron.pretrain.checkpoint import random_state  # noqa: E402
from megatron.pretrain.training.state import Progress, TrainingState  # noqa: E402

SEQUENCE, VOCABULARY, MICROBATCHES = 16, 64, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What to build."""

    tensor: int = 1
    pipeline: int = 1
    chunks: int = 1
    expert: int = 1
    bf16: bool = False
    distributed_optimizer: bool = False
    optimizer: str = "adam"
    experts: int | None = None
    swiglu: bool = True
    vocabulary: int = VOCABULARY
    layers: int = 4
    seed: int = 1

    def but(self, **changes: object) -> "Setup":
        """The same with some changes."""
        return replace(self, **changes)  # type: ignore[arg-type]


def build(setup: Setup) -> TrainingState:
    """Build model, optimizer and schedule on the setup's layout; weights depend on `setup.seed`."""
    _use_layout(setup)
    torch.manual_seed(setup.seed + 7 * mpu.get_pipeline_model_parallel_rank())
    tensor_parallel.model_parallel_cuda_manual_seed(setup.seed + 7 * mpu.get_pipeline_model_parallel_rank())
    config = _transformer_config(setup)
    model = [_build_chunk(setup, config, index) for index in range(setup.chunks)]
    optimizer = get_megatron_optimizer(_optimizer_config(setup), model)
    config.grad_scale_func = optimizer.scale_loss
    scheduler = OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=1e-2, min_lr=1e-4, lr_warmup_steps=8, lr_decay_steps=80,
        lr_decay_style="cosine", start_wd=0.01, end_wd=0.1, wd_incr_steps=80, wd_incr_style="linear",
        use_checkpoint_opt_param_scheduler=False,
    )  # fmt: skip
    return TrainingState(model=model, optimizer=optimizer, scheduler=scheduler, progress=Progress())


def _use_layout(setup: Setup) -> None:
    """Initialise the layout, unless the last one was the same: groups are costly, and so are those left behind."""
    chunks = setup.chunks if setup.chunks > 1 else None
    if mpu.is_initialized():
        current = (
            mpu.get_tensor_model_parallel_world_size(), mpu.get_pipeline_model_parallel_world_size(),
            mpu.get_virtual_pipeline_model_parallel_world_size(), mpu.get_expert_model_parallel_world_size(),
        )  # fmt: skip
        if current == (setup.tensor, setup.pipeline, chunks, setup.expert):
            return
        mpu.destroy_model_parallel()
        for group in [group for group in dist.distributed_c10d._world.pg_map if group is not dist.group.WORLD]:
            dist.destroy_process_group(group)
    mpu.initialize_model_parallel(
        tensor_model_parallel_size=setup.tensor,
        pipeline_model_parallel_size=setup.pipeline,
        virtual_pipeline_model_parallel_size=chunks,
        expert_model_parallel_size=setup.expert,
        expert_tensor_parallel_size=1,
    )


def train(state: TrainingState, iterations: int) -> list[float]:
    """Train on samples that follow from the position; return the losses of this rank's last stage (else zeros)."""
    losses = []
    for _ in range(iterations):
        for chunk in state.model:
            chunk.zero_grad_buffer()
        state.optimizer.zero_grad()
        out = get_forward_backward_func()(
            forward_step_func=_forward_step,
            data_iterator=[_samples(state.progress.iteration) for _ in state.model],
            model=state.model,
            num_microbatches=MICROBATCHES // mpu.get_data_parallel_world_size(),
            seq_length=SEQUENCE,
            micro_batch_size=1,
        )
        state.optimizer.step()
        state.scheduler.step(increment=MICROBATCHES)
        samples = state.progress.consumed_train_samples + MICROBATCHES
        state.progress = replace(state.progress, iteration=state.progress.iteration + 1, consumed_train_samples=samples)
        losses.append(sum(float(part["loss"]) for part in out))
    return losses


def digest(state: TrainingState) -> str:
    """A hash of everything that the next iteration depends on, on this rank."""
    content = hashlib.sha256()
    for tensor in [*state_tensors(state), *random_state.capture().values()]:
        content.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    content.update(repr((state.progress, state.scheduler.state_dict())).encode())
    return content.hexdigest()


def state_tensors(state: TrainingState) -> Iterator[torch.Tensor]:
    """Weights, main parameters and optimizer state of this rank."""
    yield from (parameter for chunk in state.model for parameter in chunk.parameters())
    for part in state.optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                yield parameter
                moments = part.optimizer.state[parameter]
                yield from (moments[name].view(-1) for name in sorted(moments))


def _transformer_config(setup: Setup) -> TransformerConfig:
    dtype = torch.bfloat16 if setup.bf16 else torch.float32
    mixture = {
        "num_moe_experts": setup.experts, "moe_router_topk": 2, "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": False,
    }  # fmt: skip
    return TransformerConfig(
        num_layers=setup.layers, hidden_size=32, num_attention_heads=4, hidden_dropout=0.1, attention_dropout=0.1,
        gated_linear_unit=setup.swiglu, activation_func=F.silu if setup.swiglu else F.gelu, add_bias_linear=False,
        tensor_model_parallel_size=setup.tensor, pipeline_model_parallel_size=setup.pipeline,
        virtual_pipeline_model_parallel_size=setup.chunks if setup.chunks > 1 else None,
        expert_model_parallel_size=setup.expert, expert_tensor_parallel_size=1,
        bf16=setup.bf16, params_dtype=dtype, pipeline_dtype=dtype, batch_p2p_comm=False,
        use_cpu_initialization=False, gradient_accumulation_fusion=False, masked_softmax_fusion=False,
        bias_activation_fusion=False, bias_dropout_fusion=False, finalize_model_grads_func=finalize_model_grads,
        **(mixture if setup.experts else {}),
    )  # fmt: skip


def _build_chunk(setup: Setup, config: TransformerConfig, index: int) -> DistributedDataParallel:
    stage = index if setup.chunks > 1 else None
    model = GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(num_experts=setup.experts, moe_grouped_gemm=False),
        vocab_size=setup.vocabulary,
        max_sequence_length=SEQUENCE,
        pre_process=mpu.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
        post_process=mpu.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
        position_embedding_type="rope",
        vp_stage=stage,
    )
    wrapped = Float16Module(config, model) if setup.bf16 else model
    overlap = setup.distributed_optimizer
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=setup.distributed_optimizer, grad_reduce_in_fp32=True,
        overlap_grad_reduce=overlap, overlap_param_gather=overlap, bucket_size=20_000,
    )  # fmt: skip
    return DistributedDataParallel(config, ddp_config, wrapped, disable_bucketing=index > 0)


def _optimizer_config(setup: Setup) -> OptimizerConfig:
    return OptimizerConfig(
        optimizer=setup.optimizer, lr=1e-2, min_lr=1e-4, clip_grad=1.0, bf16=setup.bf16,
        params_dtype=torch.bfloat16 if setup.bf16 else torch.float32,
        use_distributed_optimizer=setup.distributed_optimizer, overlap_param_gather=setup.distributed_optimizer,
    )  # fmt: skip


def _samples(iteration: int) -> Iterator[torch.Tensor]:
    """This data-parallel rank's microbatches of an iteration: tokens [1, SEQUENCE + 1]."""
    generator = torch.Generator().manual_seed(iteration)
    tokens = torch.randint(VOCABULARY, (MICROBATCHES, 1, SEQUENCE + 1), generator=generator)
    return iter(tokens[mpu.get_data_parallel_rank() :: mpu.get_data_parallel_world_size()])


def _forward_step(samples: Iterator[torch.Tensor], model: DistributedDataParallel) -> tuple:
    tokens = next(samples)
    output = model(tokens[:, :-1], torch.arange(SEQUENCE).unsqueeze(0), None, labels=tokens[:, 1:])

    def loss_func(losses: torch.Tensor) -> tuple:
        loss = losses.float().mean()
        return loss, {"loss": loss.detach().clone()}

    return output, loss_func


def all_equal(value: object) -> list[object]:
    """The value of every rank, in rank order."""
    values: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
