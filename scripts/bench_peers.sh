#!/usr/bin/env bash
# Makes the environment for scripts/bench: rlopt and the libraries that its buffers are compared with.
# RLOPT_BENCH_VENV is its folder (default .venv-bench in the repository), PYTHON the interpreter.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

venv=${RLOPT_BENCH_VENV:-$ROOT/.venv-bench}
if ! is_recent "$venv/bin/python"; then
    find_python
    "$BASE_PYTHON" -m venv "$venv" || fail "could not make the environment $venv with '$BASE_PYTHON'."
fi
cd "$ROOT"
"$venv/bin/python" -m pip install --disable-pip-version-check --quiet -c constraints.txt -e . cpprb torchrl tianshou ||
    fail "the installation into $venv failed (see above)."
echo "Ready: scripts/bench replay"
