#!/usr/bin/env bash
# GPT of 7 billion parameters on one node of 8 GPUs: tensor parallel 4, two pipeline stages.
# Usage: bash examples/gpt_7b.sh [flags of pretrain_gpt.py]; examples/preset_run.sh lists the environment variables.
set -euo pipefail
cd "$(dirname "$0")/.."
source examples/preset_run.sh
MODEL=gpt-7b VOCABULARY=50257 TP=${TP:-4} PP=${PP:-2}
run_preset "$@"
