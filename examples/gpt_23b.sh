#!/usr/bin/env bash
# GPT of 23 billion parameters on two nodes of 8 GPUs: tensor parallel within a node, a pipeline stage a node.
# Usage: bash examples/gpt_23b.sh [flags of pretrain_gpt.py]; examples/preset_run.sh lists the environment variables.
set -euo pipefail
cd "$(dirname "$0")/.."
source examples/preset_run.sh
MODEL=gpt-23b VOCABULARY=50257 TP=${TP:-8} PP=${PP:-2}
NNODES=${NNODES:-2}
run_preset "$@"
