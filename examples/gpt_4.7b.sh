#!/usr/bin/env bash
# GPT of 4.7 billion parameters on one node of 8 GPUs: tensor parallel 4, data parallel 2.
# Usage: bash examples/gpt_4.7b.sh [flags of pretrain_gpt.py]; examples/preset_run.sh lists the environment variables.
set -euo pipefail
cd "$(dirname "$0")/.."
source examples/preset_run.sh
MODEL=gpt-4.7b VOCABULARY=50257 TP=${TP:-4} PP=${PP:-1}
run_preset "$@"
