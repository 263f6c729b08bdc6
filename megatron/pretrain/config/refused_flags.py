"""All that Megatron-LM's command line takes and this trainer refuses: flags, and values of supported flags."""

from fnmatch import fnmatchcase

from megatron.pretrain.config.refusal import Refusal, RefusedValue
from megatron.pretrain.config.refused_families import FAMILY_REFUSALS
from megatron.pretrain.config.refused_model_flags import MODEL_REFUSALS
from megatron.pretrain.config.refused_run_flags import RUN_REFUSALS

REFUSALS: tuple[Refusal, ...] = (*MODEL_REFUSALS, *RUN_REFUSALS, *FAMILY_REFUSALS)

REFUSED_VALUES: tuple[RefusedValue, ...] = (
    RefusedValue(
        flag="--tokenizer-type",
        values=(
            "TikTokenizer", "BertWordPieceLowerCase", "BertWordPieceCase", "MultimodalTokenizer",
            "NullMultimodalTokenizer", "SFTTokenizer",
        ),
        reason="it is not built here",
        instead="use HuggingFaceTokenizer with a tokenizer.json, or SentencePieceTokenizer with a .model file",
    ),
    RefusedValue(
        flag="--ckpt-format",
        values=("torch", "zarr", "torch_dcp", "fsdp_dtensor"),
        reason="only torch_dist loads at another TP and PP without unpickling",
        instead="use torch_dist",
    ),
    RefusedValue(
        flag="--position-embedding-type",
        values=("mrope", "relative", "yarn"),
        reason="it is not wired here",
        instead="use rope",
    ),
    RefusedValue(
        flag="--moe-token-dispatcher-type",
        values=("flex", "alltoall_seq"),
        reason="only the collectives of torch.distributed carry tokens to experts",
        instead="use alltoall",
    ),
    RefusedValue(
        flag="--recompute-modules",
        values=("mla_up_proj",),
        reason="multi-latent attention is not built here",
        instead="remove it",
    ),
    RefusedValue(
        flag="--optimizer",
        values=("muon", "dist_muon", "lion", "soap"),
        reason="only Adam and SGD are built here",
        instead="use adam or sgd",
    ),
    RefusedValue(
        flag="--dataloader-type",
        values=("cyclic", "external"),
        reason="exact resume needs the order of a single pass",
        instead="use single",
    ),
    RefusedValue(
        flag="--transformer-impl",
        values=("inference_optimized",),
        reason="this program trains and does not generate text",
        instead="use local or transformer_engine",
    ),
)  # fmt: skip


def find_refusal(flag: str) -> Refusal | None:
    """The refusal that covers `flag`, if any."""
    return next((entry for entry in REFUSALS if any(fnmatchcase(flag, name) for name in entry.flags)), None)


def find_refused_value(flag: str, value: str) -> RefusedValue | None:
    """The entry that refuses `value` for `flag`, if any."""
    return next((entry for entry in REFUSED_VALUES if entry.flag == flag and value in entry.values), None)
