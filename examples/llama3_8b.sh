#!/usr/bin/env bash
# Llama 3 of 8 billion parameters on one node of 8 GPUs: tensor parallel 4, two pipeline stages.
# Usage: bash examples/llama3_8b.sh [flags of pretrain_gpt.py]; examples/preset_run.sh lists the environment variables.
set -euo pipefail
cd "$(dirname "$0")/.."
source examples/preset_run.sh
MODEL=llama3-8b VOCABULARY=128256 TP=${TP:-4} PP=${PP:-2}
run_preset "$@"
