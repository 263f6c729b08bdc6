"""Model presets are as large as their names say."""

import re
from pathlib import Path

import pytest

from overlap_recompute.plan.model_flops import flops_per_token
from overlap_recompute.plan.model_shape import parameter_count
from overlap_recompute.plan.presets import PRESETS, ModelPreset, preset_named

# As the published checkpoints hold, for the models whose makers publish them.
PUBLISHED = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "mixtral-8x7b": 46_702_792_704,
}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_model_is_as_large_as_its_name_says(preset: ModelPreset) -> None:
    found = parameter_count(preset.shape(padded=False))
    if preset.name in PUBLISHED:
        assert found == PUBLISHED[preset.name]
        return
    said = re.fullmatch(r"gpt-([0-9.]+)b", preset.name)
    assert said is not None
    assert found == pytest.approx(float(said[1]) * 1e9, rel=0.05)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_shapes_can_be_spread(preset: ModelPreset) -> None:
    assert preset.hidden % preset.heads == 0 and preset.channels % 64 == 0
    assert preset.heads % 8 == 0 and preset.groups % 8 == 0 and preset.layers % 4 == 0
    assert preset.ffn_hidden % (8 * 16) == 0


def test_padding_follows_the_tensor_parallel_size() -> None:
    gpt = preset_named("gpt-7b", flag="x")
    assert (gpt.padded_vocabulary(), gpt.padded_vocabulary(8)) == (50304, 51200)
    assert gpt.shape(tensor_parallel=8).padded_vocab_size == 51200
    assert gpt.shape(sequence=64).max_position_embeddings == 64


def test_a_token_of_a_mixture_passes_two_experts() -> None:
    mixture = preset_named("mixtral-8x7b", flag="x").shape(padded=False)
    active = parameter_count(mixture) - 32 * 6 * 3 * 4096 * 14336
    assert active == pytest.approx(12.9e9, rel=0.01)
    assert flops_per_token(mixture) < 6.5 * active


def test_the_page_has_every_preset() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "presets.md").read_text()
    for preset in PRESETS:
        figures = (preset.layers, preset.hidden, preset.heads, preset.groups, preset.ffn_hidden, preset.vocabulary)
        count = parameter_count(preset.shape(padded=False)) / 1e9
        row = " | ".join([f"| `{preset.name}`", *map(str, figures), str(preset.sequence), f"{count:.2f} |"])
        assert row in page, row
