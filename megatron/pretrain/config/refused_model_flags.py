"""Megatron-LM flags on the model and its layout that this trainer refuses, each with its reason.

Names as in Megatron-LM core_v0.16.1 and core_v0.19.0, megatron/training/arguments.py; a trailing * stands for any end.
"""

from megatron.pretrain.config.refusal import Refusal

MODEL_REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        reason="it is an old spelling",
        flags=("--batch-size",),
        instead="use --micro-batch-size",
    ),
    Refusal(
        reason="it is an old spelling",
        flags=("--warmup",),
        instead="use --lr-warmup-fraction",
    ),
    Refusal(
        reason="it is an old spelling",
        flags=("--model-parallel-size",),
        instead="use --tensor-model-parallel-size",
    ),
    Refusal(
        reason="it is an old spelling",
        flags=("--checkpoint-activations", "--moe-layer-recompute"),
        instead="use --recompute-granularity, and --recompute-modules moe for experts",
    ),
    Refusal(
        reason="it is an old spelling",
        flags=("--no-position-embedding",),
        instead="use --position-embedding-type none or rope",
    ),
    Refusal(
        reason="it is an old spelling",
        flags=("--moe-extended-tp",),
        instead="use --expert-tensor-parallel-size",
    ),
    Refusal(
        reason="data are read from local files",
        flags=("--s3-cache-path", "--object-storage-cache-path"),
        instead="copy the data to a local disk",
    ),
    Refusal(
        reason="models are those of Megatron-Core",
        flags=("--use-legacy-models",),
    ),
    Refusal(
        reason="flash attention has no such step",
        flags=("--apply-query-key-layer-scaling",),
        instead="use --attention-softmax-in-fp32 with --attention-backend unfused",
    ),
    Refusal(
        reason="only GELU, SwiGLU and squared ReLU are wired here",
        flags=(
            "--openai-gelu", "--quick-geglu", "--activation-func-clamp-value", "--glu-linear-offset",
            "--use-fused-weighted-squared-relu",
        ),
        instead="choose --swiglu, --squared-relu or neither",
    ),
    Refusal(
        reason="this form of the layer is not wired here",
        flags=(
            "--apply-residual-connection-post-layernorm", "--fp32-residual-connection", "--no-rope-freq",
            "--mrope-section", "--relative-attention-*", "--no-clone-scatter-output-in-embedding",
            "--disable-clone-scatter-output-in-embedding", "--disable-bf16-reduced-precision-matmul",
            "--disable-jit-fuser",
            "--mlp-chunks-for-*",
        ),
    ),
    Refusal(
        reason="weights start from one normal distribution",
        flags=("--init-method-xavier-uniform", "--embedding-init-method-std", "--no-initialization"),
        instead="use --init-method-std",
    ),
    Refusal(
        reason="no layer may be frozen here",
        flags=("--freeze-all-layers",),
    ),
    Refusal(
        reason="this variant of mixture of experts is not wired here",
        flags=(
            "--moe-router-num-groups", "--moe-router-group-topk", "--moe-router-enable-expert-bias",
            "--moe-router-bias-update-rate", "--moe-router-force-biased", "--moe-router-quantile-balancing-ema",
            "--moe-input-jitter-eps", "--moe-per-layer-logging", "--moe-apply-probs-on-input", "--moe-use-upcycling",
            "--moe-upcycling-granularity", "--moe-use-legacy-grouped-gemm",
            "--moe-pad-experts-for-cuda-graph-inference", "--moe-latent-size", "--moe-mlp-glu-interleave-size",
            "--moe-shared-expert-gate", "--moe-shared-expert-glu-interleave-size", "--moe-enable-routing-replay",
            "--moe-routing-trace-*", "--moe-single-grouped-*", "--moe-paged-stash*",
            "--moe-expert-rank-capacity-factor", "--expert-tensor-parallel-num-weight-shards",
        ),
    ),
    Refusal(
        reason="only the collectives of torch.distributed carry tokens to experts",
        flags=(
            "--moe-enable-deepep", "--moe-deepep-*", "--moe-hybridep-*", "--moe-ncclep-*", "--moe-flex-dispatcher-*",
            "--moe-permute-fusion-into-hybridep",
        ),
        instead="use --moe-token-dispatcher-type alltoall",
    ),
    Refusal(
        reason="Megatron-Core's schedule for it and recompute in windows exclude each other",
        flags=(
            "--overlap-moe-expert-parallel-comm", "--overlap-dispatch-backward-with-experts-wgrad",
            "--high-priority-a2a-comm-stream", "--ep-overlap-early-attn-memory-release",
        ),
    ),
    Refusal(
        reason="an explicit layout says it better",
        flags=("--account-for-embedding-in-pipeline-split", "--account-for-loss-in-pipeline-split"),
        instead="use --pipeline-model-parallel-layout",
    ),
    Refusal(
        reason="context parallelism gathers keys and values over one group",
        flags=(
            "--cp-comm-type", "--hierarchical-context-parallel-sizes", "--hybrid-context-parallel",
            "--max-seqlen-per-dp-cp-rank",
        ),
    ),
    Refusal(
        reason="the pipeline schedules take only their standard settings here",
        flags=(
            "--microbatch-group-size-per-virtual-pipeline-stage", "--overlap-p2p-communication-warmup-flush",
            "--use-ring-exchange-p2p", "--no-scatter-gather-tensors-in-pipeline", "--defer-embedding-wgrad-compute",
            "--wgrad-deferral-limit", "--pipeline-model-parallel-comm-backend",
        ),
    ),
    Refusal(
        reason="process groups and gradient buckets take only their standard settings here",
        flags=(
            "--use-tp-pp-dp-mapping", "--num-distributed-optimizer-instances", "--disable-gloo-process-groups",
            "--fake-process-group", "--distributed-timeout-seconds-after-init", "--nccl-communicator-config-path",
            "--use-nccl-ub", "--use-sharp", "--sharp-enabled-group", "--disable-symmetric-registration",
            "--high-priority-stream-groups", "--no-align-grad-reduce", "--disable-align-grad-reduce",
            "--no-align-param-gather", "--ddp-num-buckets", "--ddp-pad-buckets-for-high-nccl-busbw",
            "--ddp-reduce-scatter-with-fp32-accumulation", "--ddp-param-name-patterns-for-fp32-local-accumulation",
            "--overlap-param-gather-with-optimizer-step", "--tensor-parallel-num-weight-shards",
            "--no-async-tensor-model-parallel-allreduce", "--disable-async-tensor-model-parallel-allreduce",
        ),
    ),
    Refusal(
        reason="the launcher's LOCAL_RANK tells it",
        flags=("--local-rank",),
        instead="start with torchrun or srun",
    ),
)  # fmt: skip
