"""Megatron-LM flags that need no support of their own: what they ask for always holds here, or is spelled otherwise."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AlwaysOn:
    """A flag whose effect always holds."""

    flag: str
    """Name of the flag."""

    note: str
    """What holds, as the rest of a sentence."""

    value: str | None = None
    """The one value that holds, of a flag that takes a value."""


ALWAYS_ON: tuple[AlwaysOn, ...] = (
    AlwaysOn(flag="--use-mcore-models", note="models are always those of Megatron-Core"),
    AlwaysOn(flag="--no-persist-layer-norm", note="Apex's persistent kernel is never used"),
    AlwaysOn(flag="--use-dist-ckpt", note="checkpoints are always distributed"),
    AlwaysOn(flag="--dist-ckpt-format", value="torch_dist", note="checkpoints are always torch_dist"),
    AlwaysOn(flag="--auto-detect-ckpt-format", note="checkpoints are always torch_dist"),
    AlwaysOn(
        flag="--ckpt-fully-parallel-save", note="it is the default; --no-ckpt-fully-parallel-save switches it off"
    ),
    AlwaysOn(
        flag="--dist-ckpt-optim-fully-reshardable",
        note="the distributed optimizer's state always loads at another layout",
    ),
    AlwaysOn(flag="--no-create-attention-mask-in-dataloader", note="the causal mask is never made by the loader"),
    AlwaysOn(flag="--no-one-logger", note="nothing is reported to One Logger"),
    AlwaysOn(flag="--disable-msc", note="data and checkpoints are always local files"),
    AlwaysOn(flag="--tokenizer-hf-use-fast", note="Hugging Face tokenizers are always the fast ones"),
    AlwaysOn(
        flag="--no-use-tokenizer-model-from-checkpoint-args", note="the tokenizer always comes from the command line"
    ),
    AlwaysOn(
        flag="--disable-use-tokenizer-model-from-checkpoint-args",
        note="the tokenizer always comes from the command line",
    ),
)

ALIASES: dict[str, tuple[str, ...]] = {
    "--use-flash-attn": ("--attention-backend", "flash"),
    "--recompute-activations": ("--recompute-granularity", "selective"),
    "--use-rotary-position-embeddings": ("--position-embedding-type", "rope"),
    "--override-opt_param-scheduler": ("--override-opt-param-scheduler",),
    "--use-checkpoint-opt_param-scheduler": ("--use-checkpoint-opt-param-scheduler",),
    "--disable-log-loss-scale-to-tensorboard": ("--no-log-loss-scale-to-tensorboard",),
    "--disable-manual-gc-eval": ("--no-manual-gc-eval",),
    "--disable-ckpt-fully-parallel-save": ("--no-ckpt-fully-parallel-save",),
}
"""Another spelling of Megatron-LM -> the words that it stands for."""
