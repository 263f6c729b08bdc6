"""What a layer keeps equals the formula, to the byte, for every choice of units."""

import itertools

import pytest
import torch

from megatron.overlap.policy import choose_policy
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.kept_bytes import FLASH, MATH, UNFUSED, LayerShape, dropped_bytes, kept_bytes
from overlap_recompute.plan.layer_units import LAYER_UNITS
from overlap_recompute.plan.policy_text import Drop
from tests.unit.model.support import LLAMA
from tests.unit.overlap.support import forward_backward, model_of, session_of, settings_of

LLAMA = LLAMA.replace(" --qk-layernorm", "")
# Flags -> shape: 16 tokens, 2 sequences, width 32, 4 heads of 8 channels; the same layer twice.
GPT_SHAPE = dict(
    sequence=16, micro_batch=2, hidden=32, ffn_hidden=128, heads=4, groups=4, channels=8, element_bytes=4, rms_norm=False,
    rotary=False, gated=False, biased=True, fused_activation=True,
)  # fmt: skip
LLAMA_SHAPE = GPT_SHAPE | dict(
    ffn_hidden=64, groups=2, rms_norm=True, rotary=True, gated=True, biased=False,
)  # fmt: skip
BOTH_DROPOUTS = "--attention-dropout 0.1 --hidden-dropout 0.1"
WITH_DROPOUT = dict(attention_dropout=True, hidden_dropout=True)
EVERY_CHOICE = {
    "gpt": ("", LayerShape(**GPT_SHAPE)),
    "llama": (LLAMA, LayerShape(**LLAMA_SHAPE)),
}
SOME_CHOICES = {
    "gpt bf16": ("--bf16", LayerShape(**GPT_SHAPE | dict(element_bytes=2))),
    "gpt dropout": (BOTH_DROPOUTS, LayerShape(**GPT_SHAPE | WITH_DROPOUT, core=MATH)),
    "gpt unfused": (
        f"{BOTH_DROPOUTS} --attention-backend unfused --no-bias-gelu-fusion",
        LayerShape(**GPT_SHAPE | WITH_DROPOUT | dict(fused_activation=False), core=UNFUSED),
    ),
    "llama bf16": (f"{LLAMA} --bf16", LayerShape(**LLAMA_SHAPE | dict(element_bytes=2))),
    "llama unfused": (f"{LLAMA} --no-bias-swiglu-fusion", LayerShape(**LLAMA_SHAPE | dict(fused_activation=False))),
    "rope, no groups": ("--position-embedding-type rope", LayerShape(**GPT_SHAPE | dict(rotary=True))),
    "rope, dropout": (
        f"--position-embedding-type rope {BOTH_DROPOUTS}",
        LayerShape(**GPT_SHAPE | WITH_DROPOUT | dict(rotary=True), core=MATH),
    ),
    "grouped, no rope": (
        "--group-query-attention --num-query-groups 2", LayerShape(**GPT_SHAPE | dict(groups=2)),
    ),
}  # fmt: skip


def choices(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Every set of units."""
    return [kept for size in range(len(names) + 1) for kept in itertools.combinations(names, size)]


def compare(flags: str, shape: LayerShape, selected: list[tuple[str, ...]]) -> None:
    _, chunks = model_of(flags)
    settings = settings_of()
    with session_of(chunks, settings) as session:
        reports = []
        add = session.figures.add
        session.figures.add = lambda report, windows: (reports.append(report), add(report, windows))
        for units in selected:
            drop = Drop(units=units, by_name=False)
            policy, _ = choose_policy(settings_with(drop), session.runtime.units, {}, (0, 1))
            session.runtime.set_policy(policy)
            forward_backward(session, chunks[0])
            found = {layer.layer: (layer.kept_bytes, layer.dropped_bytes) for layer in reports.pop().layers}
            expected = kept_bytes(shape, set(units)), dropped_bytes(shape, set(units))
            assert found[0] == found[1] == expected, f"dropped: {units}"


def settings_with(drop: Drop) -> object:
    class Settings:
        stage = 0

    Settings.drop = drop  # type: ignore[attr-defined]
    return Settings


@pytest.mark.parametrize("name", EVERY_CHOICE)
def test_every_choice_of_units(rank: None, name: str) -> None:
    flags, shape = EVERY_CHOICE[name]
    names = LAYER_UNITS if shape.rotary else tuple(unit for unit in LAYER_UNITS if unit != "rotary")
    compare(flags, shape, choices(names))


@pytest.mark.parametrize("name", SOME_CHOICES)
def test_other_layers(rank: None, name: str) -> None:
    flags, shape = SOME_CHOICES[name]
    names = LAYER_UNITS if shape.rotary else tuple(unit for unit in LAYER_UNITS if unit != "rotary")
    compare(flags, shape, [(), names, *((unit,) for unit in names), *(tuple(u for u in names if u != unit) for unit in names)])


def test_all_keeps_two_widths() -> None:
    shape = LayerShape(**LLAMA_SHAPE)
    assert kept_bytes(shape, set(LAYER_UNITS)) == 2 * 16 * 2 * 32 * 4
    halves = LayerShape(**LLAMA_SHAPE | dict(tensor_parallel=2, sequence_parallel=True))
    kept = kept_bytes(halves, set(LAYER_UNITS))
    assert kept == 16 * 2 * 32 * 4


def test_what_the_table_does_not_know_is_refused() -> None:
    for core, groups in ((UNFUSED, 2), ("other", 4)):
        with pytest.raises(ConfigError, match="measure what such a layer keeps"):
            kept_bytes(LayerShape(**GPT_SHAPE | dict(groups=groups), core=core), set())
    assert kept_bytes(LayerShape(**GPT_SHAPE | dict(groups=2), core=FLASH), set())
    assert torch.__version__.startswith("2.")
