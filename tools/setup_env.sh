#!/usr/bin/env bash
# Make .venv with everything the project needs (pinned), build the package into it, and print the path of its Python.
# Usage: bash tools/setup_env.sh [requirements.txt | requirements-dev.txt]
# Environment: PYTHON names the interpreter to start from (>= 3.10); default: the first suitable one on PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=${1:-requirements.txt}

suitable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.12 python3.11 python3.10 python3.13; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null && suitable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    echo "setup_env: found no Python >= 3.10 on PATH; install one, or set PYTHON to it." >&2
    return 1
}

make_venv() {
    if ! "$1" -m venv .venv >/dev/null 2>&1; then
        # Debian and Ubuntu ship venv apart from Python itself.
        rm -rf .venv
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            apt-get update -qq >&2 && apt-get install -y -qq --no-install-recommends python3-venv >&2
        else
            echo "setup_env: this Python has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv)." >&2
            return 1
        fi
        "$1" -m venv .venv
    fi
}

# The names of packages count, too: an editable install knows only those that were there.
inputs() {
    cat "$requirements" requirements.txt setup.py pyproject.toml
    find megatron overlap_recompute -maxdepth 1 -type d | sort
    find csrc -type f -not -name '*.pyc' 2>/dev/null | sort | xargs -r cat
}

stamp=".venv/.stamp-$(basename "$requirements" .txt)"
wanted=$(inputs | sha256sum | cut -d' ' -f1)
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    echo "$PWD/.venv/bin/python"
    exit 0
fi
[ -x .venv/bin/python ] || make_venv "$(find_python)"
echo "setup_env: installing $requirements into .venv" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2
echo "setup_env: building the package" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e . >&2
echo "$wanted" >"$stamp"
echo "$PWD/.venv/bin/python"
