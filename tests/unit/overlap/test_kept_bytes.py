"""What a layer keeps equals the formula, to the byte, for every choice of units."""

import itertools
from dataclasses import replace

import pytest

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.kept_bytes import FLASH, MATH, UNFUSED, LayerShape, dropped_bytes, kept_bytes
from overlap_recompute.plan.layer_units import LAYER_UNITS
from overlap_recompute.runtime import Policy
from tests.unit.model.support import LLAMA as LLAMA_WITH_QK_NORM
from tests.unit.overlap.support import forward_backward, model_of, reports_of, session_of

LLAMA = LLAMA_WITH_QK_NORM.replace(" --qk-layernorm", "")
# The tiny model of tests/unit/model: 2 sequences of 16 tokens, width 32, 4 heads of 8 channels; two equal layers.
GPT_SHAPE = LayerShape(
    sequence=16, micro_batch=2, hidden=32, ffn_hidden=128, heads=4, groups=4, channels=8, element_bytes=4, biased=True,
    rms_norm=False, rotary=False, gated=False, fused_activation=True,
)  # fmt: skip
LLAMA_SHAPE = replace(GPT_SHAPE, ffn_hidden=64, groups=2, rms_norm=True, rotary=True, gated=True, biased=False)
DROPOUT_SHAPE = replace(GPT_SHAPE, attention_dropout=True, hidden_dropout=True, core=MATH)
DROPOUT = "--attention-dropout 0.1 --hidden-dropout 0.1"
ROPE = "--position-embedding-type rope"
EVERY_CHOICE = {"gpt": ("", GPT_SHAPE), "llama": (LLAMA, LLAMA_SHAPE)}
SOME_CHOICES = {
    "gpt bf16": ("--bf16", replace(GPT_SHAPE, element_bytes=2)),
    "gpt dropout": (DROPOUT, DROPOUT_SHAPE),
    "gpt unfused": (
        f"{DROPOUT} --attention-backend unfused --no-bias-gelu-fusion",
        replace(DROPOUT_SHAPE, fused_activation=False, core=UNFUSED),
    ),
    "llama bf16": (f"{LLAMA} --bf16", replace(LLAMA_SHAPE, element_bytes=2)),
    "llama unfused": (f"{LLAMA} --no-bias-swiglu-fusion", replace(LLAMA_SHAPE, fused_activation=False)),
    "rope without groups": (ROPE, replace(GPT_SHAPE, rotary=True)),
    "rope with dropout": (f"{ROPE} {DROPOUT}", replace(DROPOUT_SHAPE, rotary=True)),
    "llama of one group": (
        LLAMA.replace("--num-query-groups 2", "--num-query-groups 1"),
        replace(LLAMA_SHAPE, groups=1),
    ),
    "groups without rope": ("--group-query-attention --num-query-groups 2", replace(GPT_SHAPE, groups=2)),
}


def compare(flags: str, shape: LayerShape, choices: list[tuple[str, ...]]) -> None:
    chunks = model_of(flags)
    with session_of(chunks) as session:
        reports = reports_of(session)
        for units in choices:
            session.runtime.set_policy(Policy.recompute(*units))
            forward_backward(session, chunks[0])
            found = {layer.layer: (layer.kept_bytes, layer.dropped_bytes) for layer in reports.pop().layers}
            expected = kept_bytes(shape, set(units)), dropped_bytes(shape, set(units))
            assert found[0] == found[1] == expected, f"dropped: {units}"


def units_of(shape: LayerShape) -> tuple[str, ...]:
    return tuple(unit for unit in LAYER_UNITS if shape.rotary or unit != "rotary")


@pytest.mark.parametrize("name", EVERY_CHOICE)
def test_every_choice_of_units(rank: None, name: str) -> None:
    flags, shape = EVERY_CHOICE[name]
    units = units_of(shape)
    compare(flags, shape, [c for size in range(len(units) + 1) for c in itertools.combinations(units, size)])


@pytest.mark.parametrize("name", SOME_CHOICES)
def test_other_layers(rank: None, name: str) -> None:
    flags, shape = SOME_CHOICES[name]
    units = units_of(shape)
    ones = [(unit,) for unit in units]
    compare(flags, shape, [(), units, *ones, *(tuple(u for u in units if u != unit) for unit in units)])


def test_all_keeps_two_widths() -> None:
    assert kept_bytes(LLAMA_SHAPE, set(LAYER_UNITS)) == 2 * 16 * 2 * 32 * 4
    halves = replace(LLAMA_SHAPE, tensor_parallel=2, sequence_parallel=True)
    assert kept_bytes(halves, set(LAYER_UNITS)) == 16 * 2 * 32 * 4


@pytest.mark.parametrize(("core", "groups"), [(UNFUSED, 2), ("other", 4)])
def test_what_the_table_does_not_know_is_refused(core: str, groups: int) -> None:
    with pytest.raises(ConfigError, match="measure what such a layer keeps"):
        kept_bytes(replace(GPT_SHAPE, groups=groups, core=core), set())
    assert kept_bytes(replace(GPT_SHAPE, groups=2, core=FLASH), set())
    with pytest.raises(ConfigError, match="found the back end tpu; expected one of cpu, cuda"):
        kept_bytes(replace(GPT_SHAPE, backend="tpu"), set())


@pytest.mark.parametrize("shape", [replace(LLAMA_SHAPE, element_bytes=2), replace(DROPOUT_SHAPE, element_bytes=2)])
def test_fused_norms_and_masks_of_a_byte_keep_less(shape: LayerShape) -> None:
    fused = replace(shape, backend="cuda")
    tokens, width = 16 * 2, 16 * 2 * 32
    if shape.rms_norm:
        # Two norms: the scaled and the converted input in fp32 are not kept, but the input of each is, in any case.
        assert kept_bytes(shape, set()) - kept_bytes(fused, set()) == 2 * (2 * 4 * width - 2 * width)
    else:
        scores = 2 * 4 * 16**2
        statistics = 2 * 2 * tokens * (4 - 2)
        assert kept_bytes(shape, set()) - kept_bytes(fused, set()) == 2 * width + scores - statistics
    everything = set(LAYER_UNITS)
    masks = 2 * width if shape.hidden_dropout else 0
    assert kept_bytes(fused, everything) == 2 * 2 * width + masks
