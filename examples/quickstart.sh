#!/usr/bin/env bash
# Train a small GPT on real text over four CPU ranks (tensor parallel 2 x pipeline parallel 2), from nothing.
# The text is the source of Python's own standard library: every machine has it, nothing is downloaded for it.
# Usage: bash examples/quickstart.sh [extra pretrain_gpt.py flags, e.g. --train-iters 50]
# Environment: RUN_DIR (default runs/quickstart), PYTHON (the interpreter to start from, >= 3.10).
set -euo pipefail
cd "$(dirname "$0")/.."
run_dir=${RUN_DIR:-runs/quickstart}
started=$SECONDS
step() { printf '\n== %s\n' "$1"; }

step "1/8 set up .venv (first time: a few minutes, mostly torch)"
python=$(bash tools/setup_env.sh)
setup_s=$((SECONDS - started))
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=true
mkdir -p "$run_dir/data"

step "2/8 corpus: the standard library's sources"
"$python" tools/build_stdlib_corpus.py --output "$run_dir/data/corpus.jsonl"

step "3/8 tokenizer (byte-level BPE) and token files"
"$python" tools/train_tokenizer.py --input "$run_dir/data/corpus.jsonl" --vocab-size 4096 \
    --output "$run_dir/data/tokenizer.json"
"$python" tools/preprocess_data.py --input "$run_dir/data/corpus.jsonl" --output-prefix "$run_dir/data/stdlib" \
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$run_dir/data/tokenizer.json" --append-eod --workers 2

step "4/8 train on 4 ranks: tensor parallel 2 x pipeline parallel 2"
rm -rf "$run_dir/checkpoints" "$run_dir/metrics.jsonl" "$run_dir/tensorboard"  # a fresh run each time
"$python" -m torch.distributed.run --standalone --nproc-per-node 4 pretrain_gpt.py \
    --distributed-backend gloo --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --sequence-parallel \
    --num-layers 4 --hidden-size 128 --num-attention-heads 4 --seq-length 256 --max-position-embeddings 256 \
    --position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear \
    --untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0 \
    --micro-batch-size 4 --global-batch-size 16 --train-iters 200 --lr 3e-3 --min-lr 3e-4 --lr-warmup-iters 10 \
    --lr-decay-style cosine --weight-decay 0.1 --adam-beta2 0.95 --seed 1234 --bf16 \
    --data-path "$run_dir/data/stdlib" --split 95,5,0 --data-cache-path "$run_dir/data/cache" \
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$run_dir/data/tokenizer.json" --num-workers 0 \
    --save "$run_dir/checkpoints" --save-interval 100 --eval-interval 100 --eval-iters 2 \
    --log-interval 10 --log-throughput --metrics-file "$run_dir/metrics.jsonl" \
    --tensorboard-dir "$run_dir/tensorboard" "$@"

step "5/8 what came out of it"
entropy=$("$python" -c 'import json, sys; print(round(json.load(open(sys.argv[1]))["unigram_entropy_nats"], 3))' \
    "$run_dir/data/stdlib.meta.json")
"$python" tools/plot_metrics.py "$run_dir" --output "$run_dir/loss.png" --yardstick "unigram entropy=$entropy" \
    --title "Quick start: a small GPT on the standard library's sources"
"$python" tools/summarize_run.py "$run_dir" --yardstick "unigram entropy=$entropy" --plot "$run_dir/loss.png"

step "6/8 profile: what units and waits cost (2 ranks, emulated link of 0.4 Gbit/s)"
link="--emulate-link-gbps 0.4 --emulate-link-latency-us 100"
model="--num-layers 4 --hidden-size 512 --num-attention-heads 8 --seq-length 256 --max-position-embeddings 256
    --attention-dropout 0 --hidden-dropout 0 --micro-batch-size 2 --global-batch-size 8 --lr 1e-4 --seed 1234
    --mock-data --tokenizer-type NullTokenizer --vocab-size 2047 --num-workers 0 --eval-iters 0"
# shellcheck disable=SC2086  # words, not one text
"$python" -m overlap_recompute profile --nproc 2 --warmup 1 --iterations 3 --output "$run_dir/profile.json" -- \
    --distributed-backend gloo --tensor-model-parallel-size 2 $link $model

step "7/8 plan: half of the memory between full recompute and none"
"$python" -m overlap_recompute plan "$run_dir/profile.json" --memory-share 0.5 --output "$run_dir/plan.json"

step "8/8 train with one flag more, --overlap-recompute-plan, beside every other way to recompute"
"$python" tools/show_overlap.py --plan "$run_dir/plan.json" --output "$run_dir/overlap"

printf '\n%d s after the set-up (which took %d s).\n' $((SECONDS - started - setup_s)) "$setup_s"
