#!/usr/bin/env bash
# A mixture of 8 experts (Mixtral 8x7B) on four nodes of 8 GPUs: four stages, each with the experts over 8 ranks.
# Usage: bash examples/mixtral_moe_8x7b.sh [flags of pretrain_gpt.py]; examples/preset_run.sh lists the environment variables.
set -euo pipefail
cd "$(dirname "$0")/.."
source examples/preset_run.sh
MODEL=mixtral-8x7b VOCABULARY=32000 TP=${TP:-1} PP=${PP:-4}
NNODES=${NNODES:-4}
run_preset --expert-model-parallel-size "${EP:-8}" --moe-token-dispatcher-type alltoall --moe-aux-loss-coeff 1e-2 \
    "$@"
