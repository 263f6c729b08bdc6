"""Shapes of well-known models by name, for the trainer (`--model-preset`) and for the simulator.

The GPT sizes are those of the overlapped-recompute paper (1.3B to 23B, arXiv 2406.08756); its shapes were not at hand,
and `docs/presets.md` says how these were chosen. Llama and Mixtral are as their makers publish them.
"""

import difflib
from dataclasses import dataclass

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.model_shape import ModelShape

VOCABULARY_MULTIPLE = 128
"""Megatron pads the vocabulary to a multiple of this times the tensor-parallel size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPreset:
    """A model by name. All presets train without dropout."""

    name: str
    """As `--model-preset` takes it."""
    layers: int
    """Transformer layers."""
    hidden: int
    """Width of the residual stream."""
    heads: int
    """Query heads; a head has hidden / heads channels."""
    vocabulary: int
    """Tokens, before padding."""
    sequence: int
    """Tokens of a training sequence, unless the user chooses otherwise."""
    ffn_hidden: int
    """Inner width of the feed-forward block, or of one expert; of one half of a gated one."""
    groups: int
    """Key and value heads."""
    llama_style: bool
    """RMSNorm, rotary positions, SwiGLU, no biases, separate output matrix; else LayerNorm, a learned table of
    positions, GELU, biases, tied output matrix."""
    rotary_base: int = 10000
    """Base period of rotary positions."""
    experts: int = 0
    """Experts of every layer; 0: a dense feed-forward block."""
    experts_per_token: int = 0
    """Experts that a token passes."""

    @property
    def channels(self) -> int:
        """Of one head."""
        return self.hidden // self.heads

    def padded_vocabulary(self, tensor_parallel: int = 1) -> int:
        """Rows of the embedding by Megatron's rule of padding."""
        multiple = VOCABULARY_MULTIPLE * tensor_parallel
        return -(-self.vocabulary // multiple) * multiple

    def shape(self, *, sequence: int | None = None, tensor_parallel: int = 1, padded: bool = True) -> ModelShape:
        """The sizes that parameter counts and FLOPs follow from.

        Args:
            sequence: tokens of a sequence; None: the preset's.
            tensor_parallel: ranks that share a layer, on which the padding of the vocabulary depends.
            padded: whether to pad the vocabulary; published parameter counts do not.
        """
        tokens, dense = sequence or self.sequence, not self.experts
        return ModelShape(
            num_layers=self.layers,
            hidden_size=self.hidden,
            num_attention_heads=self.heads,
            num_query_groups=self.groups,
            kv_channels=self.channels,
            ffn_hidden_size=self.ffn_hidden,
            padded_vocab_size=self.padded_vocabulary(tensor_parallel) if padded else self.vocabulary,
            sequence_length=tokens,
            max_position_embeddings=0 if self.llama_style else tokens,
            gated=self.llama_style,
            linear_bias=not self.llama_style,
            norm_parameters_per_channel=1 if self.llama_style else 2,
            tied_embeddings=not self.llama_style,
            moe_layers=0 if dense else self.layers,
            num_experts=self.experts,
            experts_per_token=self.experts_per_token,
            moe_ffn_hidden_size=0 if dense else self.ffn_hidden,
        )


def _gpt(name: str, layers: int, hidden: int, heads: int) -> ModelPreset:
    """GPT-2's vocabulary, 2048 tokens, a feed-forward block of four widths."""
    return ModelPreset(
        name=name, layers=layers, hidden=hidden, heads=heads, vocabulary=50257, sequence=2048, ffn_hidden=4 * hidden,
        groups=heads, llama_style=False,
    )  # fmt: skip


def _llama2(name: str, layers: int, hidden: int, heads: int, ffn_hidden: int, groups: int) -> ModelPreset:
    return ModelPreset(
        name=name, layers=layers, hidden=hidden, heads=heads, vocabulary=32000, sequence=4096, ffn_hidden=ffn_hidden,
        groups=groups, llama_style=True,
    )  # fmt: skip


def _llama3(name: str, layers: int, hidden: int, heads: int, ffn_hidden: int) -> ModelPreset:
    return ModelPreset(
        name=name, layers=layers, hidden=hidden, heads=heads, vocabulary=128256, sequence=8192, ffn_hidden=ffn_hidden,
        groups=8, llama_style=True, rotary_base=500000,
    )  # fmt: skip


PRESETS: tuple[ModelPreset, ...] = (
    _gpt("gpt-1.3b", 24, 2048, 16),
    _gpt("gpt-4.7b", 40, 3072, 24),
    _gpt("gpt-7b", 32, 4096, 32),
    _gpt("gpt-13b", 40, 5120, 40),
    _gpt("gpt-20b", 44, 6144, 48),
    _gpt("gpt-23b", 36, 7168, 56),
    _llama2("llama2-7b", 32, 4096, 32, 11008, 32),
    _llama2("llama2-13b", 40, 5120, 40, 13824, 40),
    _llama2("llama2-70b", 80, 8192, 64, 28672, 8),
    _llama3("llama3-8b", 32, 4096, 32, 14336),
    _llama3("llama3-70b", 80, 8192, 64, 28672),
    ModelPreset(
        name="mixtral-8x7b", layers=32, hidden=4096, heads=32, vocabulary=32000, sequence=4096, ffn_hidden=14336,
        groups=8, llama_style=True, rotary_base=1000000, experts=8, experts_per_token=2,
    ),
)  # fmt: skip


def preset_named(name: str, *, flag: str) -> ModelPreset:
    """The preset of this name.

    Args:
        name: of the model.
        flag: what to call it in messages.

    Raises:
        ConfigError: there is none; the message has the nearest name.
    """
    presets = {preset.name: preset for preset in PRESETS}
    if name not in presets:
        spelled = name.lower().replace("_", "-").replace("llama-", "llama")
        near = difflib.get_close_matches(spelled, presets, n=1, cutoff=0.4)
        raise ConfigError(
            f"{flag} {name!r}, which is no model preset",
            f"one of {', '.join(presets)}",
            f"write {near[0]} if that was meant" if near else "correct the name, or give the shape flags one by one",
        )
    return presets[name]
