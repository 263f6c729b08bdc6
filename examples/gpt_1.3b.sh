#!/usr/bin/env bash
# GPT of 1.3 billion parameters on one node of 8 GPUs: tensor parallel 2, data parallel 4.
# Usage: bash examples/gpt_1.3b.sh [flags of pretrain_gpt.py]; examples/preset_run.sh lists the environment variables.
set -euo pipefail
cd "$(dirname "$0")/.."
source examples/preset_run.sh
MODEL=gpt-1.3b VOCABULARY=50257 TP=${TP:-2} PP=${PP:-1}
run_preset "$@"
