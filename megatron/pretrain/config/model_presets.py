"""What `--model-preset` stands for: the shape flags of a model, under whatever flags the user gives besides."""

from collections.abc import Mapping, Set
from typing import Any

from overlap_recompute.plan.presets import ModelPreset, preset_named

PRESET_FLAG = "--model-preset"


def preset_values(name: str) -> dict[str, Any]:
    """Option field -> value of the preset of this name.

    Raises:
        ConfigError: there is none.
    """
    preset = preset_named(name, flag=PRESET_FLAG)
    values: dict[str, Any] = {
        "num_layers": preset.layers,
        "hidden_size": preset.hidden,
        "num_attention_heads": preset.heads,
        "seq_length": preset.sequence,
        "ffn_hidden_size": preset.ffn_hidden,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }
    return values | _llama(preset) | _experts(preset)


def preset_note(name: str, flags: Mapping[str, Any], given: Set[str]) -> str:
    """A line for the log: what the preset sets, and what the user gave instead.

    Args:
        name: of the preset.
        flags: flag -> value of the preset.
        given: flags of the user.
    """
    taken = [flag if value is True else f"{flag} {value}" for flag, value in flags.items() if flag not in given]
    kept = [flag for flag in flags if flag in given]
    note = f"{PRESET_FLAG} {name} sets {' '.join(taken) or 'nothing'}"
    return note + (f"; given instead: {', '.join(kept)}" if kept else "")


def _llama(preset: ModelPreset) -> dict[str, Any]:
    if not preset.llama_style:
        return {}
    grouped = {"group_query_attention": True, "num_query_groups": preset.groups}
    return {
        "position_embedding_type": "rope",
        "rotary_base": preset.rotary_base,
        "normalization": "RMSNorm",
        "swiglu": True,
        "disable_bias_linear": True,
        "untie_embeddings_and_output_weights": True,
    } | (grouped if preset.groups != preset.heads else {})


def _experts(preset: ModelPreset) -> dict[str, Any]:
    if not preset.experts:
        return {}
    return {"num_experts": preset.experts, "moe_router_topk": preset.experts_per_token}
