#!/usr/bin/env bash
# Makes the environments for scripts/bench: rlopt and the libraries that it is compared with, and rliable on its own.
# RLOPT_BENCH_VENV and RLOPT_RLIABLE_VENV are their folders (default .venv-bench and .venv-rliable in the repository), PYTHON the
# interpreter.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

venv=${RLOPT_BENCH_VENV:-$ROOT/.venv-bench}
if ! is_recent "$venv/bin/python"; then
    find_python
    "$BASE_PYTHON" -m venv "$venv" || fail "could not make the environment $venv with '$BASE_PYTHON'."
fi
cd "$ROOT"
# Only what the measurements depend on is pinned: the other libraries have limits of their own for the rest.
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
grep -E '^(torch|numpy|numba|gymnasium|stable_baselines3|mujoco)==' constraints.txt >"$pins"
"$venv/bin/python" -m pip install --disable-pip-version-check --quiet -c "$pins" -e '.[mujoco]' cpprb torchrl tianshou sbx-rl ||
    fail "the installation into $venv failed (see above)."
# Its requirements would replace packages that are here already.
"$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps locoprop==0.1.0 ||
    fail "the installation of locoprop into $venv failed (see above)."
# rliable and what it builds on are older than rlopt's requirements.
rliable=${RLOPT_RLIABLE_VENV:-$ROOT/.venv-rliable}
if ! is_recent "$rliable/bin/python"; then
    "$venv/bin/python" -m venv "$rliable" || fail "could not make the environment $rliable."
fi
"$rliable/bin/python" -m pip install --disable-pip-version-check --quiet \
    rliable==1.2.0 arch==6.3.0 numpy==1.26.4 'pandas<3' 'scipy<1.15' ||
    fail "the installation of rliable into $rliable failed (see above)."
echo "Ready: scripts/bench"
