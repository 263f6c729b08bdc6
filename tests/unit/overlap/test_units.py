"""Units of Megatron layers: found by name, replayed once and in time, taken back without a trace."""

import sys
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker, model_parallel_cuda_manual_seed
from megatron.core.transformer import attention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron.overlap.session import OverlapSession
from overlap_recompute.plan.errors import ConfigError, UserError
from overlap_recompute.plan.layer_units import LAYER_UNITS
from overlap_recompute.runtime import Journal, Kind, ReplayError, VerifyError
from tests.unit.model.support import EXPERTS, LLAMA
from tests.unit.overlap.support import Chunks, forward_backward, model_of, session_of, settings_of

GPT_UNITS = tuple(unit for unit in LAYER_UNITS if unit != "rotary")
OF_EXPERTS = tuple(f"experts.{number}.{unit}" for number in range(4) for unit in ("linear_fc1", "activation"))
ATTENTION_AND_NORMS = ("input_layernorm", "linear_qkv", "core_attention", "pre_mlp_layernorm")
SHARED = ("shared_experts.linear_fc1", "shared_experts.activation")
MODELS = {
    "gpt": ("--attention-dropout 0.1 --hidden-dropout 0.1", GPT_UNITS),
    "gpt unfused": ("--attention-dropout 0.1 --attention-backend unfused --no-bias-gelu-fusion", GPT_UNITS),
    "squared relu": ("--squared-relu", GPT_UNITS),
    "llama": (LLAMA, LAYER_UNITS),
    "llama unfused": (f"{LLAMA} --no-bias-swiglu-fusion --bf16", LAYER_UNITS),
    "experts": (f"{EXPERTS} --disable-bias-linear", (*ATTENTION_AND_NORMS, *OF_EXPERTS)),
    "biased experts": (EXPERTS, (*ATTENTION_AND_NORMS, *OF_EXPERTS)),
    "shared experts": (
        f"{EXPERTS} --disable-bias-linear --swiglu --moe-shared-expert-intermediate-size 64",
        (*ATTENTION_AND_NORMS, *OF_EXPERTS, *SHARED),
    ),
}
CALLS = {"rotary": 2}
"""Calls of a unit in one forward pass; one unless given."""


def gradients(chunks: Chunks) -> list[torch.Tensor]:
    return [buffer.grad_data.clone() for chunk in chunks for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)]


@pytest.mark.parametrize("name", MODELS)
def test_each_dropped_unit_is_replayed_once_before_its_first_use(rank: None, name: str) -> None:
    flags, units = MODELS[name]
    chunks, journal = model_of(flags), Journal()
    with session_of(chunks, settings_of("all", verify=True), journal) as session:
        assert set(session.runtime.units) == {(unit, layer) for unit in units for layer in (0, 1)}
        forward_backward(session, chunks[0], microbatches=2)
    places = {
        (unit, layer, (0, 0, number), call)
        for unit in units for layer in (0, 1) for number in (0, 1) for call in range(CALLS.get(unit, 1))
    }  # fmt: skip
    order = {kind: [event[1:5] for event in journal.of(kind)] for kind in (Kind.DROP, Kind.REPLAY_BEGIN)}
    for found in order.values():
        assert len(found) == len(places)
        assert set(found) == places
    first_use: dict[tuple[Any, ...], int] = {}
    replayed: dict[tuple[Any, ...], int] = {}
    for position, event in enumerate(journal.events):
        if event.kind is Kind.REPLAY_END:
            replayed[event[1:5]] = position
        elif event.kind is Kind.USE:
            first_use.setdefault(event[1:5], position)
    assert set(replayed) == places
    assert all(replayed[place] < position for place, position in first_use.items())


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_without_recompute(rank: None, name: str) -> None:
    flags, _ = MODELS[name]
    chunks = model_of(flags)
    found = []
    for policy in ("none", "all"):
        model_parallel_cuda_manual_seed(3)
        with session_of(chunks, settings_of(policy)) as session:
            forward_backward(session, chunks[0], microbatches=2)
        found.append((*gradients(chunks), torch.get_rng_state(), *get_cuda_rng_tracker().get_states().values()))
    assert all(gradient.any() for gradient in found[0])
    assert all(map(torch.equal, *found))


class NormInside(torch.nn.Module):
    """A column-parallel linear with the norm before it, as Transformer Engine has one."""

    def __init__(self, norm: torch.nn.Module, linear: torch.nn.Module) -> None:
        super().__init__()
        self.norm, self.linear = norm, linear

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.linear(self.norm(x))


def test_norms_that_are_fused_into_a_linear_come_back_with_it(rank: None) -> None:
    """The shape of a layer of Transformer Engine: no norm of its own, and linears by the same names."""
    chunks = model_of()
    for layer in layers_of(chunks):
        attention, mlp = layer.self_attention, layer.mlp
        attention.linear_qkv = NormInside(layer.input_layernorm, attention.linear_qkv)
        mlp.linear_fc1 = NormInside(layer.pre_mlp_layernorm, mlp.linear_fc1)
        layer.input_layernorm = layer.pre_mlp_layernorm = IdentityOp()
    found, journal = [], Journal()
    for policy in ("none", "all"):
        with session_of(chunks, settings_of(policy, verify=True), journal) as session:
            names = {unit for unit, _ in session.runtime.units}
            assert names == {"linear_qkv", "core_attention", "linear_fc1", "activation"}
            forward_backward(session, chunks[0])
        found.append(gradients(chunks))
    assert all(gradient.any() for gradient in found[0]) and all(map(torch.equal, *found))
    assert len(list(journal.of(Kind.REPLAY_END))) == 2 * 4


def everything_in(chunks: Chunks) -> dict[tuple[str, str], Any]:
    """Every attribute of every module of the model, and the names that adapters bind in megatron-core.

    Not what warnings leave in a module, once.
    """
    found = {
        (path, name): value
        for chunk in chunks for path, module in chunk.named_modules() for name, value in vars(module).items()
        if not name.startswith("_")
    }  # fmt: skip
    for name in ("mappings", "layers"):
        upstream = sys.modules[f"megatron.core.tensor_parallel.{name}"]
        found |= {(name, key): value for key, value in vars(upstream).items()}
    found |= {("attention", key): value for key, value in vars(attention).items()}
    return {place: value for place, value in found.items() if place[1] != "__warningregistry__"}


@pytest.mark.parametrize("flags", [LLAMA, f"{EXPERTS} --moe-shared-expert-intermediate-size 64 --disable-bias-linear"])
def test_closing_takes_everything_back(rank: None, flags: str) -> None:
    chunks = model_of(flags)
    before = everything_in(chunks)
    with session_of(chunks) as session:
        forward_backward(session, chunks[0])
        assert everything_in(chunks).keys() - before.keys()
        session.close()
    after = everything_in(chunks)
    assert after.keys() == before.keys()
    assert all(after[key] is before[key] for key in before)


def layers_of(chunks: Chunks) -> list[Any]:
    return [module for module in chunks[0].modules() if isinstance(module, TransformerLayer)]


def test_a_replay_that_fails_names_its_place(rank: None, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = model_of()
    before = everything_in(chunks)
    with session_of(chunks) as session:
        fails_in_replay(session, layers_of(chunks)[1].mlp.linear_fc1, monkeypatch)
        with pytest.raises(ReplayError, match="a bad day") as error:
            forward_backward(session, chunks[0])
        assert not session.windows.active
        monkeypatch.undo()
        forward_backward(session, chunks[0])
    assert "unit 'linear_fc1' of layer 1, microbatch 0, chunk 0, pipeline stage 0" in str(error.value)
    assert everything_in(chunks).keys() == before.keys()


def fails_in_replay(session: OverlapSession, linear: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = linear._forward_impl

    def forward(*args: Any, **options: Any) -> Any:
        if session.runtime.replaying:
            raise RuntimeError("a bad day")
        return stock(*args, **options)

    monkeypatch.setattr(linear, "_forward_impl", forward)


def test_verify_finds_a_unit_that_is_not_deterministic(rank: None) -> None:
    chunks = model_of("--no-bias-gelu-fusion")
    mlp, calls = layers_of(chunks)[0].mlp, []
    stock = mlp.activation_func

    def drifting(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return stock(x) * (1 + 1e-6 * len(calls))

    mlp.activation_func = drifting
    expected = pytest.raises(VerifyError, match="unit 'activation' of layer 0, microbatch 0")
    with session_of(chunks, settings_of("all", verify=True)) as session, expected:
        forward_backward(session, chunks[0])


def test_what_cannot_be_dropped_is_refused_by_name_and_kept_by_all(rank: None, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = model_of()
    monkeypatch.setattr(layers_of(chunks)[0].self_attention.config, "context_parallel_size", 2)
    with pytest.raises(ConfigError, match="core_attention on pipeline stage 0, which cannot drop it: it gathers keys"):
        OverlapSession(settings_of("core_attention"), chunks)
    with session_of(chunks) as session:
        assert {unit for unit, _ in session.runtime.units} == {*GPT_UNITS} - {"core_attention"}


@pytest.mark.parametrize("precision", ["fp8", "fp4"])
def test_products_whose_replay_would_scale_twice_are_kept(
    rank: None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under FP8 a replay would also update the scaling history; what has no scales is dropped as ever."""
    chunks = model_of()
    for layer in layers_of(chunks):
        monkeypatch.setattr(layer.self_attention.config, precision, "hybrid")
    with session_of(chunks) as session:
        names = {unit for unit, _ in session.runtime.units}
        assert names == {"input_layernorm", "core_attention", "pre_mlp_layernorm", "activation"}
    for unit in ("linear_qkv", "linear_fc1"):
        with pytest.raises(ConfigError, match=f"{unit} on pipeline stage 0, which cannot drop it: .*scal"):
            OverlapSession(settings_of(unit), chunks)


def test_hooks_inside_a_unit_keep_it(rank: None) -> None:
    chunks = model_of()
    for layer in layers_of(chunks):
        layer.self_attention.linear_qkv.register_forward_hook(lambda module, arguments, output: None)
    with pytest.raises(ConfigError, match="linear_qkv on pipeline stage 0, which cannot drop it: it has forward hooks"):
        OverlapSession(settings_of("linear_qkv"), chunks)
    with session_of(chunks) as session:
        assert {unit for unit, _ in session.runtime.units} == {*GPT_UNITS} - {"linear_qkv"}
        forward_backward(session, chunks[0])


def test_another_megatron_core_is_refused(rank: None, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = model_of()
    before = everything_in(chunks)
    monkeypatch.setattr(attention, "apply_rotary_pos_emb", lambda t, frequencies: t)
    with pytest.raises(UserError, match="apply_rotary_pos_emb"):
        OverlapSession(settings_of("all"), chunks)
    monkeypatch.undo()
    assert everything_in(chunks).keys() == before.keys()
