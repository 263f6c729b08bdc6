"""FLOPs and parameters: by hand, against the paper, and against what real Megatron-Core models hold and execute."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron.pretrain.logs.memory import peak_memory_bytes
from megatron.pretrain.logs.model_shape import ModelShape, parameter_count
from megatron.pretrain.logs.throughput import flops_per_iteration, flops_per_token, tflops_per_rank, tokens_per_s

PROBE = Path(__file__).with_name("model_shape_probe.py")
ROOT = Path(__file__).resolve().parents[3]
GPT3 = ModelShape(
    num_layers=96, hidden_size=12288, num_attention_heads=96, num_query_groups=96, kv_channels=128,
    ffn_hidden_size=4 * 12288, padded_vocab_size=51200, sequence_length=2048, max_position_embeddings=2048,
)  # fmt: skip
GPT2 = ModelShape(
    num_layers=12, hidden_size=768, num_attention_heads=12, num_query_groups=12, kv_channels=64,
    ffn_hidden_size=4 * 768, padded_vocab_size=50257, sequence_length=1024, max_position_embeddings=1024,
)  # fmt: skip
LLAMA3_8B = ModelShape(
    num_layers=32, hidden_size=4096, num_attention_heads=32, num_query_groups=8, kv_channels=128,
    ffn_hidden_size=14336, padded_vocab_size=128256, sequence_length=8192, gated=True, linear_bias=False,
    norm_parameters_per_channel=1, tied_embeddings=False,
)  # fmt: skip
MIXTRAL_8X7B = ModelShape(
    num_layers=32, hidden_size=4096, num_attention_heads=32, num_query_groups=8, kv_channels=128,
    ffn_hidden_size=14336, padded_vocab_size=32000, sequence_length=4096, gated=True, linear_bias=False,
    norm_parameters_per_channel=1, tied_embeddings=False, moe_layers=32, num_experts=8, experts_per_token=2,
    moe_ffn_hidden_size=14336,
)  # fmt: skip
TINY = ModelShape(
    num_layers=1, hidden_size=2, num_attention_heads=1, num_query_groups=1, kv_channels=2, ffn_hidden_size=3,
    padded_vocab_size=5, sequence_length=4,
)  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        # As their published checkpoints have.
        (GPT2, 124_439_808),
        (LLAMA3_8B, 8_030_261_248),
        (MIXTRAL_8X7B, 46_702_792_704),
        # By hand: embedding 10; norms 3*4; qkv 12+6; projection 4+2; mlp 6+3 and 6+2.
        (TINY, 10 + 12 + 18 + 6 + 9 + 8),
    ],
    ids=["gpt2", "llama3_8b", "mixtral_8x7b", "tiny"],
)
def test_parameter_counts_of_known_models(shape: ModelShape, parameters: int) -> None:
    assert parameter_count(shape) == parameters


def test_flops_by_hand() -> None:
    # Per token: qkv 2*2*6, projection 2*2*2, attention 2*(2*2*4)/2, mlp 2*2*3*2, logits 2*2*5; three times the sum.
    assert flops_per_token(TINY) == 3 * (24 + 8 + 16 + 24 + 20)
    assert flops_per_token(TINY, causal=False) == 3 * (24 + 8 + 32 + 24 + 20)
    assert flops_per_iteration(TINY, 7) == 7 * 4 * flops_per_token(TINY)


def test_the_paper_s_formula_without_its_recompute() -> None:
    batch, shape = 1536, GPT3
    length, layers, hidden, vocabulary = shape.sequence_length, 96, shape.hidden_size, shape.padded_vocab_size
    # 96 B s l h^2 (1 + s / 6h + V / 16lh) counts four passes over the layers and three over the logits.
    with_recompute = (
        96 * batch * length * layers * hidden**2
        * (1 + length / (6 * hidden) + vocabulary / (16 * layers * hidden))
    )  # fmt: skip
    logits = 6 * batch * length * hidden * vocabulary
    ours = flops_per_iteration(shape, batch, causal=False)
    assert ours == pytest.approx((with_recompute - logits) * 3 / 4 + logits, rel=1e-12)


def test_a_dense_model_costs_six_flops_per_parameter_and_token_plus_attention() -> None:
    embedding = LLAMA3_8B.padded_vocab_size * LLAMA3_8B.hidden_size
    norms = (2 * 32 + 1) * 4096
    attention = 3 * 32 * 2 * 2 * 4096 * 8192 / 2
    assert flops_per_token(LLAMA3_8B) == 6 * (parameter_count(LLAMA3_8B) - embedding - norms) + attention


def test_only_the_experts_that_a_token_passes_count() -> None:
    two = flops_per_token(MIXTRAL_8X7B)
    assert flops_per_token(replace(MIXTRAL_8X7B, num_experts=64)) == two
    one_expert = 3 * 32 * 2 * 3 * 4096 * 14336
    assert flops_per_token(replace(MIXTRAL_8X7B, experts_per_token=3)) - two == one_expert
    shared = replace(MIXTRAL_8X7B, shared_expert_ffn_hidden_size=14336)
    assert flops_per_token(shared) - two == one_expert


def test_rates() -> None:
    assert tflops_per_rank(8e12, elapsed_s=2.0, world_size=4) == 1.0
    assert tokens_per_s(16, 128, 0.5) == 4096.0


def test_real_models_hold_and_compute_what_the_formulas_say() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    probe = subprocess.run(
        [sys.executable, str(PROBE)], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert probe.returncode == 0, probe.stderr
    measured = json.loads(probe.stdout.splitlines()[-1])
    assert set(measured) == {"gpt2", "qkv_bias", "llama", "qk_norm", "moe"}
    for name, figures in measured.items():
        assert figures["parameters"] == figures["predicted_parameters"], name
        assert figures["flops"] == figures["predicted_flops"], name


def test_peak_memory_of_a_cpu_rank_remembers_what_was_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrusage", lambda who: pytest.fail("also counts what the launcher needed"))
    before = peak_memory_bytes("cpu")
    resident_now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    grow = before - resident_now + (64 << 20)
    block = bytearray(grow)
    block[:: os.sysconf("SC_PAGE_SIZE")] = b"x" * len(block[:: os.sysconf("SC_PAGE_SIZE")])
    del block
    assert before + (32 << 20) < peak_memory_bytes("cpu") < before + (256 << 20)
