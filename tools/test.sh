#!/usr/bin/env bash
# Set up, then lint and run all tests. Usage: bash tools/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(bash tools/setup_env.sh requirements-dev.txt)
bin=$(dirname "$python")
export OMP_NUM_THREADS=1

echo "== ruff" && "$bin/ruff" check . && "$bin/ruff" format --check --quiet .
echo "== mypy" && "$bin/mypy" -p megatron.pretrain -p overlap_recompute
if [ $# -gt 0 ]; then
    echo "== pytest $*" && exec "$python" -m pytest "$@"
fi
echo "== pytest" && exec "$python" -m pytest -q --durations=15 tests/unit tests/distributed tests/gpu
