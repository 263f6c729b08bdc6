#!/usr/bin/env bash
# Llama 2 of 13 billion parameters on one node of 8 GPUs: tensor parallel 4, two pipeline stages.
# Usage: bash examples/llama2_13b.sh [flags of pretrain_gpt.py]; examples/preset_run.sh lists the environment variables.
set -euo pipefail
cd "$(dirname "$0")/.."
source examples/preset_run.sh
MODEL=llama2-13b VOCABULARY=32000 TP=${TP:-4} PP=${PP:-2}
run_preset "$@"
