"""A whole model on one rank."""

import math

import pytest
import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.transformer.module import Float16Module

from megatron.pretrain.model import build_model, build_transformer_config
from megatron.pretrain.model.expert_parameters import correct_expert_marks
from tests.unit.model.support import CPU, EXPERTS, LLAMA, VOCAB, batch, config_of

pytestmark = pytest.mark.usefixtures("rank")


@pytest.fixture(autouse=True)
def seeds(rank: None) -> None:
    """Dropout of every test starts at the same place."""
    model_parallel_cuda_manual_seed(1234)


def build(*flags: str):
    config = config_of(*flags)
    transformer_config = build_transformer_config(config)
    return build_model(config, transformer_config, VOCAB, CPU), transformer_config


@pytest.mark.parametrize("flags", ["", LLAMA, EXPERTS, f"{EXPERTS} {LLAMA}", "--bf16", "--attention-backend unfused"])
def test_loss_of_a_fresh_model(flags: str) -> None:
    (model,), _ = build(flags)
    losses = model(**batch())
    assert losses.shape == (2, 16)
    assert losses.mean().item() == pytest.approx(math.log(VOCAB), rel=0.02)
    losses.float().mean().backward()
    assert all(parameter.main_grad.isfinite().all() for parameter in model.parameters())
    assert isinstance(model.module, Float16Module) == ("--bf16" in flags)


def gradients(*flags: str) -> dict[str, torch.Tensor]:
    (model,), _ = build(*flags)
    model(**batch()).mean().backward()
    return {name: parameter.main_grad.clone() for name, parameter in model.module.named_parameters()}


@pytest.mark.parametrize(
    "recompute",
    [
        "--recompute-granularity selective --recompute-modules mlp",
        "--recompute-granularity selective --recompute-modules core_attn layernorm mlp",
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
        "--recompute-granularity full --recompute-method block --recompute-num-layers 1",
    ],
)
def test_recompute_changes_no_bit(recompute: str) -> None:
    dropout = "--hidden-dropout 0.1 --attention-dropout 0.1"
    plain = gradients(dropout)
    model_parallel_cuda_manual_seed(1234)
    replayed = gradients(dropout, recompute)
    assert plain.keys() == replayed.keys()
    assert all(torch.equal(plain[name], replayed[name]) for name in plain)


def test_schedules_are_connected() -> None:
    models, config = build("--overlap-grad-reduce")
    assert config.no_sync_func == models[0].no_sync
    assert config.grad_sync_func is None
    assert config.finalize_model_grads_func is finalize_model_grads
    assert build()[1].no_sync_func is None


def test_deterministic_mode_is_switched_on() -> None:
    try:
        build("--deterministic-mode")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("tensor", "expert", "expert_tensor", "own_ranks"),
    [(1, 1, 1, False), (2, 1, 2, False), (2, 1, 1, True), (1, 2, 1, True), (2, 2, 2, True)],
)
def test_expert_marks(tensor: int, expert: int, expert_tensor: int, own_ranks: bool) -> None:
    (model,), config = build(EXPERTS)
    config.tensor_model_parallel_size, config.expert_model_parallel_size = tensor, expert
    config.expert_tensor_parallel_size = expert_tensor
    correct_expert_marks(model.module, config)
    experts = {name: p for name, p in model.module.named_parameters() if ".mlp.experts." in name}
    assert len(experts) == 2 * 4 * 4  # layers, experts, two weights and two biases
    for name, parameter in experts.items():
        assert parameter.allreduce is not own_ranks, name
        assert parameter.sequence_parallel is False, name
        assert parameter.tensor_model_parallel or expert_tensor > 1, name
    dense = [p for name, p in model.module.named_parameters() if name not in experts]
    assert all(getattr(parameter, "allreduce", True) for parameter in dense)
