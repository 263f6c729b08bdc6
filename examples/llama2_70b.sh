#!/usr/bin/env bash
# Llama 2 of 70 billion parameters on four nodes of 8 GPUs: tensor parallel within a node, a pipeline stage a node.
# Usage: bash examples/llama2_70b.sh [flags of pretrain_gpt.py]; examples/preset_run.sh lists the environment variables.
set -euo pipefail
cd "$(dirname "$0")/.."
source examples/preset_run.sh
MODEL=llama2-70b VOCABULARY=32000 TP=${TP:-8} PP=${PP:-4}
NNODES=${NNODES:-4}
run_preset "$@"
