#!/usr/bin/env bash
# Set up, then lint and run all tests. Usage: bash tools/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(bash tools/setup_env.sh requirements-dev.txt)
bin=$(dirname "$python")
export OMP_NUM_THREADS=1

# The tests over shaped links want iproute2; where it cannot be had they skip and say so.
if [ "$(id -u)" = 0 ] && ! { command -v ip && command -v tc; } >/dev/null && command -v apt-get >/dev/null; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends iproute2; } >/dev/null || true
fi

# Likewise those that bring up a Slurm of their own.
if [ "$(id -u)" = 0 ] && ! { command -v slurmctld && command -v slurmd && command -v munged; } >/dev/null &&
    command -v apt-get >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 || true
fi

# And those that look at a page in a browser.
if [ "$(id -u)" = 0 ] && ! command -v chromium >/dev/null && command -v apt-get >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 || true
fi

echo "== ruff" && "$bin/ruff" check . && "$bin/ruff" format --check --quiet .
echo "== mypy" && "$bin/mypy" -p megatron.pretrain -p megatron.overlap -p overlap_recompute
MYPYPATH=tools "$bin/mypy" -p linklab_lib
if [ $# -gt 0 ]; then
    echo "== pytest $*" && exec "$python" -m pytest "$@"
fi

# Tests of one process run beside each other; those that start ranks, hosts or jobs have the machine to themselves.
workers=$(nproc)
if [ "$workers" -gt 4 ]; then
    workers=4
fi
status=0
echo "== pytest, $workers at a time"
"$python" -m pytest -q -n "$workers" --dist worksteal --durations=15 tests/unit tests/browser || status=$?
echo "== pytest, one at a time"
"$python" -m pytest -q --durations=15 tests/distributed tests/slurm tests/gpu || status=$?
exit "$status"
