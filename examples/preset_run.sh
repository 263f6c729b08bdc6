# What examples/gpt_*.sh, llama*.sh and mixtral*.sh share: start torchrun on this node with a model preset.
# They set MODEL, VOCABULARY and the layout that fits 80 GB GPUs; everything can be set from outside:
#
#   NNODES, NODE_RANK            nodes of the run, and which one this is (1, 0): call the same script on every node
#   GPUS_PER_NODE                ranks that are started here (8)
#   MASTER_ADDR, MASTER_PORT     first node, as all nodes see it (127.0.0.1, 29500)
#   TP, PP                       tensor- and pipeline-parallel sizes; what is left of the ranks is data parallel
#   MICRO_BATCH, GLOBAL_BATCH    sequences of a microbatch and of an iteration
#   DATA_PATH, TOKENIZER_MODEL   prefix of token files and tokenizer.json (docs/data.md); without them made-up tokens
#   RUN_DIR                      checkpoints and metrics (runs/MODEL)
#   BACKEND                      nccl on GPUs, gloo to try things out on CPUs
#   TORCHRUN                     the launcher (torchrun)
#
# Words after the script's name are further flags of pretrain_gpt.py; of a flag that is given twice the last one counts.
# shellcheck shell=bash

run_preset() {
    local launcher=${TORCHRUN:-torchrun} run_dir=${RUN_DIR:-runs/$MODEL}
    command -v "$launcher" >/dev/null || {
        printf '%s: error: found no program %s; expected torchrun, which comes with PyTorch; %s.\n' \
            "$0" "$launcher" "activate the environment (source .venv/bin/activate) or set TORCHRUN" >&2
        exit 2
    }
    local data=(--mock-data --vocab-size "$((VOCABULARY - 1))")  # the end of a document is one token more
    if [[ -n ${DATA_PATH:-} ]]; then
        data=(--data-path "$DATA_PATH" --split "99,1,0"
            --tokenizer-type HuggingFaceTokenizer --tokenizer-model "${TOKENIZER_MODEL:?goes with DATA_PATH}")
    fi
    # With one connection kernels start in the order of the calls, as Megatron's tensor-parallel overlap wants it. For
    # recompute in windows another value may be faster: measure, and state the value beside the figure.
    export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    exec "$launcher" --nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}" --nproc-per-node "${GPUS_PER_NODE:-8}" \
        --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
        pretrain_gpt.py --distributed-backend "${BACKEND:-nccl}" --model-preset "$MODEL" \
        --tensor-model-parallel-size "$TP" --pipeline-model-parallel-size "$PP" \
        --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --overlap-recompute \
        --micro-batch-size "${MICRO_BATCH:-1}" --global-batch-size "${GLOBAL_BATCH:-128}" \
        --train-iters 1000 --bf16 --lr 1e-4 --min-lr 1e-5 --lr-decay-style cosine --lr-warmup-fraction 0.05 \
        --weight-decay 0.1 --adam-beta2 0.95 "${data[@]}" \
        --log-interval 10 --log-throughput --metrics-file "$run_dir/metrics.jsonl" \
        --save "$run_dir/checkpoints" --save-interval 500 "$@"
}
