"""Families of Megatron-LM flags that this trainer refuses, each family for one reason.

Names as in Megatron-LM core_v0.16.1 and core_v0.19.0, megatron/training/arguments.py; a trailing * stands for any end.
"""

from megatron.pretrain.config.refusal import Refusal

_GPT_ONLY = "only GPT models are trained here"
_TE_ONLY = "it is a feature of Transformer Engine that has not been run with this trainer"

FAMILY_REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        reason="reinforcement learning is not part of pretraining",
        flags=(
            "--perform-rl-step", "--rl-*", "--no-rl-*", "--grpo-*", "--langrl-*", "--no-langrl-external-server",
            "--refit-method", "--use-same-sampling-seed-across-dp-ranks",
        ),
    ),
    Refusal(
        reason="this program trains and does not generate text",
        flags=(
            "--inference-*", "--no-inference-*", "--max-tokens-to-oom", "--flash-decode", "--decode-only-cuda-graphs",
            "--enable-chunked-prefill", "--disable-chunked-prefill", "--nccl-all-reduce-for-prefill",
            "--symmetric-ar-type", "--use-legacy-static-engine", "--num-speculative-tokens",
            "--mamba-inference-*", "--batch-invariant-mode", "--cache-mla-latents",
        ),
    ),
    Refusal(
        reason=_GPT_ONLY,
        flags=(
            "--encoder-num-layers", "--encoder-tensor-model-parallel-size", "--encoder-pipeline-model-parallel-size",
            "--decoder-num-layers", "--decoder-seq-length", "--pipeline-model-parallel-split-rank", "--bert-*",
            "--output-bert-embeddings", "--ict-*", "--biencoder-*", "--retriever-*", "--indexer-*",
            "--query-in-block-prob", "--use-one-sent-docs", "--titles-data-path", "--evidence-data-path",
            "--block-data-path", "--embedding-path", "--retro-*", "--mask-*", "--short-seq-prob", "--sample-rate",
            "--vision-*", "--swin-backbone-type", "--dino-*", "--img-*", "--num-classes", "--num-channels",
            "--patch-dim", "--classes-fraction", "--data-per-class-fraction", "--no-data-sharding", "--head-lr-mult",
            "--iter-per-epoch", "--lazy-mpu-init", "--onnx-safe", "--vocab-extra-ids",
        ),
    ),
    Refusal(
        reason="layers other than attention and feed-forward blocks are not built here",
        flags=(
            "--spec", "--is-hybrid-model", "--hybrid-attention-ratio", "--hybrid-mlp-ratio",
            "--hybrid-override-pattern", "--hybrid-layer-pattern", "--mamba-*", "--disable-mamba-mem-eff-path",
            "--heterogeneous-*", "--experimental-attention-variant", "--linear-*", "--dsa-*", "--no-dsa-*",
            "--disable-dsa-*", "--attention-output-gate", "--enable-experimental",
        ),
    ),
    Refusal(
        reason="multi-latent attention and its rotary scaling are not built here",
        flags=(
            "--multi-latent-attention", "--q-lora-rank", "--kv-lora-rank", "--qk-head-dim", "--qk-pos-emb-head-dim",
            "--v-head-dim", "--mla-down-proj-fusion", "--rotary-scaling-factor", "--mscale", "--mscale-all-dim",
            "--rope-type", "--yarn-*", "--no-yarn-*",
        ),
    ),
    Refusal(reason="multi-token prediction is not built here", flags=("--mtp-*",)),
    Refusal(reason="mu-parametrization is not built here", flags=("--use-mup", "--mup-*")),
    Refusal(reason="distillation from saved logits is not part of pretraining", flags=("--logits-*",)),
    Refusal(
        reason="fine-tuning on conversations is not part of pretraining", flags=("--sft*", "--chat-template")
    ),
    Refusal(
        reason="8-bit and 4-bit formats need Transformer Engine on a GPU and have not been run with this trainer",
        flags=(
            "--fp8-*", "--no-fp8-wgrad", "--disable-fp8-wgrad", "--fp4-*", "--first-last-layers-bf16",
            "--num-layers-at-start-in-bf16", "--num-layers-at-end-in-bf16", "--keep-fp8-transpose-cache",
            "--reuse-grad-buf-for-mxfp8-param-ag", "--te-precision-config-file", "--kitchen-*",
            "--use-kitchen-attention", "--moe-router-padding-for-*",
        ),
        instead="train with --bf16",
    ),
    Refusal(
        reason=_TE_ONLY,
        flags=(
            "--use-te-activation-func", "--te-rng-tracker", "--use-transformer-engine-op-fuser",
            "--delay-wgrad-compute", "--softmax-type", "--window-size", "--window-attn-skip-freq",
            "--apply-layernorm-1p", "--moe-permute-fusion", "--moe-router-fusion", "--qk-clip*", "--qk-l2-norm",
            "--log-max-attention-logit", "--flash-attention-version", "--use-grouped-gemm-for-*",
            "--fused-residual-rmsnorm",
        ),
    ),
    Refusal(
        reason="Transformer Engine would own the tensor-parallel communication that recompute is to hide behind",
        flags=("--tp-comm-*", "--no-tp-comm-*", "--disable-tp-comm-*"),
    ),
    Refusal(
        reason="a captured CUDA graph cannot take work into its communication",
        flags=("--cuda-graph-*", "--enable-cuda-graph", "--external-cuda-graph", "--optimizer-cuda-graph"),
    ),
    Refusal(
        reason="fully sharded data parallelism is not built here",
        flags=(
            "--use-torch-fsdp2", "--torch-fsdp2-*", "--use-megatron-fsdp", "--megatron-fsdp-*", "--fsdp-*",
            "--data-parallel-sharding-strategy", "--outer-dp-sharding-strategy", "--enable-full-sharding-in-hsdp",
            "--create-all-gather-group", "--suggested-communication-unit-size", "--no-gradient-reduce-div-fusion",
            "--init-model-with-meta-device", "--no-strict-fsdp-dtensor-load", "--disable-strict-fsdp-dtensor-load",
        ),
        instead="shard the optimizer with --use-distributed-optimizer",
    ),
    Refusal(
        reason="nothing is moved to host memory here: recompute is the way to save memory",
        flags=(
            "--optimizer-cpu-offload", "--optimizer-offload-fraction", "--use-torch-optimizer-for-cpu-offload",
            "--overlap-cpu-optimizer-d2h-h2d", "--no-pin-cpu-grads", "--no-pin-cpu-params", "--cpu-offloading-*",
            "--fine-grained-*", "--offload-modules", "--min-offloaded-tensor-size", "--activation-offload-fraction",
            "--delay-offload-until-cuda-graph", "--delta-offload-bytes-across-pp-ranks",
        ),
        instead="choose a --recompute-granularity",
    ),
    Refusal(
        reason="only Adam and SGD are built here, with one learning rate and fp32 state",
        flags=(
            "--muon-*", "--lion-*", "--use-precision-aware-optimizer", "--main-grads-dtype", "--main-params-dtype",
            "--exp-avg-dtype", "--exp-avg-sq-dtype", "--decoupled-lr", "--decoupled-min-lr",
            "--dump-param-to-param-group-map", "--no-weight-decay-cond-type", "--apply-wd-to-qk-layernorm",
            "--no-use-layer-wise-param-layout",
        ),
    ),
    Refusal(
        reason="restarting is left to the launcher, and a lost rank stops the run (--liveness-timeout-s)",
        flags=(
            "--inprocess-*", "--enable-ft-package", "--calc-ft-timeouts", "--ft-num-warmup-iters", "--rerun-mode",
            "--error-injection-*", "--fault-injector-*", "--result-rejected-tracker-filename", "--replication*",
            "--adlr-autoresume*", "--run-workload-inspector-server",
        ),
    ),
    Refusal(
        reason="this diagnosis is not built here",
        flags=(
            "--flight-recorder-*", "--no-flight-recorder-*", "--disable-flight-recorder-*", "--log-straggler",
            "--disable-straggler-on-startup", "--straggler-*", "--gpu-sniff-test-interval", "--log-energy",
            "--check-weight-hash-across-dp-replicas-interval", "--check-for-spiky-loss", "--check-for-large-grads",
            "--save-activations-interval", "--save-dgrads-interval", "--save-params-interval",
            "--save-wgrads-interval", "--save-tokens-per-expert-interval", "--config-logger-dir",
            "--log-device-memory-used", "--log-memory-interval", "--one-logger-*", "--app-tag-*",
        ),
    ),
    Refusal(
        reason="the trainer has no profiler switch",
        flags=(
            "--profile", "--profile-*", "--use-pytorch-profiler", "--pytorch-profiler-*", "--record-memory-history",
            "--memory-snapshot-path", "--record-shapes", "--nvtx-ranges",
        ),
        instead="start it under nsys or torch.profiler",
    ),
)  # fmt: skip
