"""What must be installed, and what the gloo backend cannot do."""

from megatron.pretrain.config.checks.common import Check, require
from megatron.pretrain.config.pretrain_config import PretrainConfig
from megatron.pretrain.config.resolve import has_module


def transformer_engine_is_there(config: PretrainConfig) -> None:
    """Its layers need the package, and GPUs."""
    chosen = config.model.transformer_impl == "transformer_engine"
    on_gloo = config.distributed.distributed_backend == "gloo"
    require(
        not chosen or not on_gloo,
        "--transformer-impl transformer_engine with --distributed-backend gloo",
        "GPUs: Transformer Engine has no CPU kernels",
        "use --transformer-impl local, or train on GPUs with nccl",
    )
    require(
        not chosen or has_module("transformer_engine"),
        "--transformer-impl transformer_engine, but no module transformer_engine",
        "Transformer Engine, installed",
        "install it or use --transformer-impl local",
    )


def kernels_match_the_layers(config: PretrainConfig) -> None:
    """Some kernels belong to Transformer Engine, one to Megatron-Core."""
    model = config.model
    has_engine = model.transformer_impl == "transformer_engine"
    of_engine = {
        "--attention-backend fused": model.attention_backend == "fused",
        "--cross-entropy-fusion-impl te": model.cross_entropy_fusion_impl == "te",
    }
    for flag, given in of_engine.items():
        require(
            not given or has_engine,
            f"{flag} with --transformer-impl {model.transformer_impl}",
            "--transformer-impl transformer_engine: the kernel is Transformer Engine's",
            "choose another kernel or implementation",
        )
    require(
        not has_engine or model.attention_backend != "local",
        "--attention-backend local with --transformer-impl transformer_engine",
        "--transformer-impl local: that attention is Megatron-Core's",
        "choose another attention backend or implementation",
    )


def optional_packages_are_there(config: PretrainConfig) -> None:
    """Packages that a flag asks for, found out before the start and not at the first log line."""
    kind = config.data.tokenizer_type or ""
    packages = {
        "tensorboard": ("--tensorboard-dir", config.logging.tensorboard_dir is not None),
        "wandb": ("--wandb-project", bool(config.logging.wandb_project)),
        "tokenizers": (f"--tokenizer-type {kind}", kind in ("HuggingFaceTokenizer", "GPT2BPETokenizer")),
        "sentencepiece": (f"--tokenizer-type {kind}", "SentencePiece" in kind or kind == "Llama2Tokenizer"),
    }
    for package, (flag, is_used) in packages.items():
        require(
            not is_used or has_module(package),
            f"{flag}, but no module {package}",
            f"the package {package}, installed",
            f"pip install {package}, or remove the flag",
        )


CHECKS: tuple[Check, ...] = (transformer_engine_is_there, kernels_match_the_layers, optional_packages_are_there)
