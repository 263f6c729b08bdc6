"""Hooks megatron/core/transformer/multi_latent_attention.py of megatron-core 0.16.1."""

from types import ModuleType

from megatron.pretrain.platform.seam import Expected, Seam


def _correct_the_flag(module: ModuleType) -> None:
    # The import that should have failed succeeds with placeholders: TELinear is no class and HAVE_TE is True.
    module.HAVE_TE = module.HAVE_TE and isinstance(module.TELinear, type)  # type: ignore[attr-defined]


LATENT_ATTENTION_WITHOUT_TRANSFORMER_ENGINE = Seam(
    module="megatron.core.transformer.multi_latent_attention",
    purpose="HAVE_TE is True without Transformer Engine and isinstance(layer, <no class>) raises TypeError",
    expects=(
        Expected(
            name="MultiLatentAttention.__init__",
            parameters=(
                "self", "config", "submodules", "layer_number", "attn_mask_type", "attention_type", "cp_comm_type",
                "pg_collection",
            ),
        ),
    ),
    adjust=_correct_the_flag,
)  # fmt: skip
