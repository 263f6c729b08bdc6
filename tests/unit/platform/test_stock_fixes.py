"""Every fix of megatron-core: the fault is there without it and gone with it."""

import pytest
import torch
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.tensor_parallel import mappings, random
from megatron.core.transformer import multi_latent_attention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.transformer_config import MLATransformerConfig

from megatron.pretrain.model import FlashCoreAttention, build_model, build_transformer_config
from megatron.pretrain.model.norm import SequenceParallelRMSNorm
from tests.unit.model.support import CPU, VOCAB, batch, config_of

pytestmark = pytest.mark.usefixtures("rank")
Patch = pytest.MonkeyPatch


# --- megatron/core/tensor_parallel/random.py


def test_output_discarding_checkpoint(monkeypatch: Patch) -> None:
    norm = torch.nn.LayerNorm(8)
    random.CheckpointWithoutOutput().checkpoint(norm, torch.randn(2, 8, requires_grad=True))
    monkeypatch.setattr(random.CheckpointWithoutOutput.__init__, "__defaults__", (False,))
    with pytest.raises(NameError, match="FP8GlobalStateManager"):
        random.CheckpointWithoutOutput().checkpoint(norm, torch.randn(2, 8, requires_grad=True))


@pytest.mark.parametrize("fixed", [True, False])
def test_checkpoint_of_a_returned_parameter(fixed: bool) -> None:
    bias = torch.nn.Parameter(torch.ones(4))
    checkpoint = random.checkpoint if fixed else random.checkpoint.__wrapped__
    x = torch.ones(4, requires_grad=True)
    out, returned = checkpoint(lambda y: (y * 2, bias), False, x)
    # Without the fix the parameter itself becomes the checkpoint's output: its replay would enter itself for ever.
    assert bias.is_leaf is fixed
    if fixed:
        (out * returned).sum().backward()
        assert torch.equal(bias.grad, torch.full((4,), 2.0))
        assert torch.equal(x.grad, torch.full((4,), 2.0))


def test_checkpoint_of_one_tensor() -> None:
    x = torch.ones(4, requires_grad=True)
    random.checkpoint(lambda y: y * 3, False, x).sum().backward()
    assert torch.equal(x.grad, torch.full((4,), 3.0))


# --- megatron/core/transformer/moe/moe_utils.py


def test_router(monkeypatch: Patch) -> None:
    tokens, weight = torch.randn(3, 1, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    logits = moe_utils.router_gating_linear(tokens, weight, None, torch.float32)
    torch.testing.assert_close(logits, tokens @ weight.t())
    logits.sum().backward()
    monkeypatch.delattr(moe_utils, "te_general_gemm")
    with pytest.raises(NameError, match="te_general_gemm"):
        moe_utils.router_gating_linear(tokens, weight, None, torch.float32)


# --- megatron/core/transformer/multi_latent_attention.py


def latent_attention() -> torch.nn.Module:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    from megatron.pretrain.model.layer_spec import replace_modules

    config = MLATransformerConfig(
        num_layers=1, hidden_size=32, num_attention_heads=2, q_lora_rank=8, kv_lora_rank=8, qk_head_dim=8,
        qk_pos_emb_head_dim=4, v_head_dim=6, rope_type="rope", use_cpu_initialization=True,
        attention_dropout=0.0,
    )  # fmt: skip
    spec = get_gpt_layer_local_spec(multi_latent_attention=True, qk_layernorm=True, normalization="RMSNorm")
    spec = replace_modules(
        spec, {DotProductAttention: FlashCoreAttention, WrappedTorchNorm: SequenceParallelRMSNorm}
    ).submodules.self_attention
    return spec.module(config=config, submodules=spec.submodules, layer_number=1, attn_mask_type=AttnMaskType.causal)


def test_latent_attention(monkeypatch: Patch) -> None:
    out, _ = latent_attention()(torch.randn(5, 2, 32), None)
    assert out.shape == (5, 2, 32)
    monkeypatch.setattr(multi_latent_attention, "HAVE_TE", True)
    with pytest.raises(TypeError, match="isinstance"):
        latent_attention()


# --- megatron/core/optimizer/distrib_optimizer.py


def distributed_optimizer():
    config = config_of("--use-distributed-optimizer --num-layers 1")
    model = build_model(config, build_transformer_config(config), VOCAB, CPU)
    options = OptimizerConfig(optimizer="adam", lr=1e-2, min_lr=0.0, use_distributed_optimizer=True)
    (optimizer,) = get_megatron_optimizer(options, model).chained_optimizers
    assert isinstance(optimizer, DistributedOptimizer)
    return model[0], optimizer


def step(model: torch.nn.Module, optimizer: DistributedOptimizer) -> float:
    model.zero_grad_buffer()
    loss = model(**batch()).mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def without_the_fix(monkeypatch: Patch, *names: str) -> None:
    for name in names:
        monkeypatch.setattr(DistributedOptimizer, name, getattr(DistributedOptimizer, name).__wrapped__)


def test_optimizer_state_before_the_first_step(monkeypatch: Patch) -> None:
    model, optimizer = distributed_optimizer()
    (twin_model, twin) = distributed_optimizer()
    groups = optimizer.state_dict()["optimizer"]["param_groups"]
    assert {group["step"] for group in groups} == {0.0}
    assert [step(model, optimizer) for _ in range(2)] == [step(twin_model, twin) for _ in range(2)]
    without_the_fix(monkeypatch, "state_dict")
    with pytest.raises(AssertionError):
        distributed_optimizer()[1].state_dict()


def reload(optimizer: DistributedOptimizer) -> None:
    """Load the optimizer's own state, as from a checkpoint of the kind "dp_reshardable"."""
    parameters = optimizer.get_parameter_state_dp_reshardable()
    del parameters["per_bucket_numel"], parameters["per_bucket_numel_unpadded"]
    for buckets in (buckets for dtypes in parameters.values() for buckets in dtypes.values()):
        for element in (element for bucket in buckets for element in bucket):
            element.pop("step", None)  # not a tensor of the parameter's shape: checkpoints do not hold it
            element["padding"] = False
    optimizer.load_state_dict(
        {**optimizer.state_dict(), "param_state": parameters, "param_state_sharding_type": "dp_reshardable"}
    )


def test_optimizer_state_after_a_load() -> None:
    model, optimizer = distributed_optimizer()
    reference_model, reference = distributed_optimizer()
    for _ in range(2):
        assert step(model, optimizer) == step(reference_model, reference)
    reload(optimizer)
    steps = [state["step"] for state in optimizer.optimizer.state.values()]
    assert len({tensor.data_ptr() for tensor in steps}) == len(steps) > 1
    for _ in range(3):
        assert step(model, optimizer) == step(reference_model, reference)


def test_a_shared_step_counts_too_fast(monkeypatch: Patch) -> None:
    without_the_fix(monkeypatch, "load_state_dict")
    model, optimizer = distributed_optimizer()
    step(model, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    step(model, optimizer)
    assert max(state["step"].item() for state in optimizer.optimizer.state.values()) > 2


def test_loading_tensors_without_the_fix(monkeypatch: Patch) -> None:
    without_the_fix(monkeypatch, "_set_main_param_and_optimizer_states")
    model, optimizer = distributed_optimizer()
    step(model, optimizer)
    with pytest.raises((KeyError, RuntimeError)):
        reload(optimizer)


# --- megatron/core/tensor_parallel/mappings.py


@pytest.mark.parametrize(
    "name", ["reduce_from_tensor_model_parallel_region", "reduce_scatter_to_sequence_parallel_region"]
)
def test_reduction_over_one_rank_can_be_changed_in_place(name: str) -> None:
    reduce = getattr(mappings, name)
    x = torch.ones(3, requires_grad=True)
    out = reduce(x * 2)
    out += 1
    out.sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))
    out = reduce.__wrapped__(x * 2)
    with pytest.raises(RuntimeError, match="modified inplace"):
        out += 1
