"""Megatron-LM flags on batches, data and checkpoints that this trainer refuses, each with its reason.

Names as in Megatron-LM core_v0.16.1 and core_v0.19.0, megatron/training/arguments.py; a trailing * stands for any end.
"""

from megatron.pretrain.config.refusal import Refusal

RUN_REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        reason="the number of microbatches must stay the same: a recompute plan is made for one",
        flags=(
            "--rampup-batch-size", "--step-batch-size-schedule", "--decrease-batch-size-if-needed",
            "--phase-transition-iterations",
        ),
        instead="give one --global-batch-size",
    ),
    Refusal(
        reason="the loss is the mean over each microbatch's tokens",
        flags=("--calculate-per-token-loss",),
    ),
    Refusal(
        reason="this way to steer the loop is not built here",
        flags=(
            "--iterations-to-skip", "--train-sync-interval", "--data-parallel-random-init", "--exit-signal",
            "--exit-signal-handler-for-*",
        ),
    ),
    Refusal(
        reason="evaluation reads --eval-iters global batches of one validation set",
        flags=(
            "--full-validation", "--multiple-validation-sets", "--validation-set-names", "--eval-global-batch-size",
            "--eval-micro-batch-size", "--start-eval-at-iter", "--test-mode",
        ),
    ),
    Refusal(
        reason="progress is in the lines of the metrics file",
        flags=("--log-progress",),
        instead="use --metrics-file",
    ),
    Refusal(
        reason="options come from the command line alone",
        flags=("--yaml-cfg",),
        instead="write flags",
    ),
    Refusal(
        reason="it is an old spelling",
        flags=("--encoder-seq-length",),
        instead="use --seq-length",
    ),
    Refusal(
        reason="tokenizers are used as their files describe them",
        flags=(
            "--padded-vocab-size", "--no-pad-vocab-size", "--disable-pad-vocab-size",
            "--tiktoken-*", "--legacy-tokenizer", "--tokenizer-metadata", "--tokenizer-special-tokens",
            "--tokenizer-sentencepiece-*", "--no-tokenizer-sentencepiece-*", "--disable-tokenizer-sentencepiece-*",
            "--tokenizer-hf-include-special-tokens", "--tokenizer-hf-no-*", "--null-tokenizer-*",
        ),
        instead="give --tokenizer-type and --tokenizer-model",
    ),
    Refusal(
        reason="code that comes with a tokenizer is never run",
        flags=("--trust-remote-code",),
    ),
    Refusal(
        reason="attention is causal over the whole sequence, with no mask per document",
        flags=(
            "--reset-attention-mask", "--dataloader-inter-document-masking", "--allow-ambiguous-pad-tokens",
        ),
    ),
    Refusal(
        reason="fill-in-the-middle data is not built here",
        flags=("--fim-*",),
    ),
    Refusal(
        reason="data are read from local .bin/.idx pairs that are mapped into memory",
        flags=(
            "--no-mmap-bin-files", "--dataloader-fast-cache-load", "--dataloader-defer-npy-index-mmap",
            "--per-dataset-sequences-path", "--num-dataset-builder-threads", "--mid-level-dataset-surplus",
            "--enable-msc",
        ),
    ),
    Refusal(
        reason="only the blend of --data-path can come from a file",
        flags=("--per-split-data-args-path",),
        instead="use --train-data-path, --valid-data-path and --test-data-path",
    ),
    Refusal(
        reason="the command line says what the model is, and a checkpoint of another model is refused",
        flags=("--use-checkpoint-args", "--use-mp-args-from-checkpoint-args"),
        instead="repeat the flags of the run that wrote the checkpoint",
    ),
    Refusal(
        reason="its process gets live tensors on a CPU, and would save weights that training has since changed",
        flags=("--use-persistent-ckpt-worker", "--async-strategy", "--async-ckpt-*"),
        instead="use --async-save alone",
    ),
    Refusal(
        reason="it has no effect with --async-save's forked writer",
        flags=("--dist-ckpt-workers",),
    ),
    Refusal(
        reason="a checkpoint must hold exactly what the model needs",
        flags=(
            "--dist-ckpt-strictness", "--ckpt-assume-constant-structure", "--*-ckpt-load-validate-sharding-integrity",
            "--verify-integrity",
        ),
    ),
    Refusal(
        reason="optimizer state is saved whole or not at all",
        flags=(
            "--load-main-params-from-ckpt", "--distrib-optim-fully-reshardable-mem-efficient",
            "--dist-ckpt-save-pre-mcore-014",
        ),
    ),
    Refusal(
        reason="only torch_dist checkpoints are written and read",
        flags=(
            "--ckpt-convert-*", "--*stream-ckpt-dequant", "--ckpt-fully-parallel-*-process-group",
            "--ckpt-fully-parallel-load-exchange-algo",
        ),
    ),
    Refusal(
        reason="there is one series of checkpoints, all kept",
        flags=("--non-persistent-*", "--persistent-save-interval", "--save-retain-interval"),
        instead="use --save-interval",
    ),
    Refusal(
        reason="it is a second name for the same thing",
        flags=("--pretrained-checkpoint",),
        instead="use --load with --finetune",
    ),
    Refusal(
        reason="it is a second name for the same thing",
        flags=("--override-ckpt-iteration",),
        instead="use --ckpt-step",
    ),
)  # fmt: skip
