# Sourced by the scripts beside it. Sets
#   ROOT         the repository, absolute
#   VENV_PYTHON  the interpreter of the environment `.venv` in the repository, which `ensure_env` makes once
#
# What the user may set:
#   PYTHON           interpreter that makes the environment (default: the first of python3, python3.13, ... that is new enough)
#   RLOPT_INSTALLER  pip or uv (default: uv where it is installed and pip has no package sources of its own configured)
#
# `.venv/.rlopt` holds the state: `installing` while packages are being installed, then a checksum of everything the
# environment depends on. With an equal checksum nothing is done; after another one the packages are brought up to
# date in place; an environment whose installation was cut off is made anew.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV_PYTHON=$ROOT/.venv/bin/python

# One thread per process: worker processes share the cores, and threads that wait for each other cost far more.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1
export MPLBACKEND=Agg PYGAME_HIDE_SUPPORT_PROMPT=1

fail() {
    echo "error: $*" >&2
    exit 1
}

# is_recent INTERPRETER: whether it runs and is Python 3.10 or newer.
is_recent() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        command -v "$PYTHON" >/dev/null || fail "PYTHON is set to '$PYTHON', which is not a program."
        is_recent "$PYTHON" || fail "rlopt needs Python 3.10 or newer, but PYTHON is '$PYTHON' ($("$PYTHON" --version 2>&1 | head -n 1))."
        BASE_PYTHON=$PYTHON
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if is_recent "$candidate"; then
            BASE_PYTHON=$candidate
            return
        fi
    done
    fail "rlopt needs Python 3.10 or newer and found none; install one, or name it: PYTHON=path/to/python $0"
}

make_venv() {
    find_python
    "$BASE_PYTHON" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        fail "'$BASE_PYTHON' has no working venv module; install it (Debian, Ubuntu: the package python3-venv) or set PYTHON to another interpreter."
    rm -rf "$ROOT/.venv"
    mkdir "$ROOT/.venv"
    echo installing >"$ROOT/.venv/.rlopt"
    "$BASE_PYTHON" -m venv "$ROOT/.venv" || fail "could not make the environment $ROOT/.venv with '$BASE_PYTHON'."
}

# uv does not read pip's configuration. Where pip is told where to find packages, pip is the one that finds them.
choose_installer() {
    INSTALLER=${RLOPT_INSTALLER:-}
    if [[ -z $INSTALLER ]]; then
        INSTALLER=pip
        if command -v uv >/dev/null && ! "$VENV_PYTHON" -m pip config list | grep -qE '(index-url|find-links|no-index)='; then
            INSTALLER=uv
        fi
    fi
    case $INSTALLER in
        pip) ;;
        uv) command -v uv >/dev/null || fail "RLOPT_INSTALLER is uv, but uv is not installed." ;;
        *) fail "RLOPT_INSTALLER must be pip or uv, got '$INSTALLER'." ;;
    esac
}

install_packages() {
    local quiet=()
    [[ -t 1 ]] || quiet=(--quiet)
    choose_installer
    echo "Installing rlopt and what it needs into $ROOT/.venv with $INSTALLER (once; some minutes)." >&2
    cd "$ROOT"
    case $INSTALLER in
        pip) "$VENV_PYTHON" -m pip install --disable-pip-version-check ${quiet[@]+"${quiet[@]}"} -c constraints.txt -e '.[dev]' ;;
        uv) uv pip install ${quiet[@]+"${quiet[@]}"} --python "$VENV_PYTHON" -c constraints.txt -e '.[dev]' ;;
    esac || fail "the installation failed (see above); start the same command again when the cause is gone."
}

# The environment is bound to its place and to its interpreter, so both are part of the checksum.
wanted_state() {
    {
        echo "$ROOT"
        "$VENV_PYTHON" --version
        cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt"
    } | cksum
}

ensure_env() {
    local state=
    [[ -f $ROOT/.venv/.rlopt ]] && state=$(<"$ROOT/.venv/.rlopt")
    if [[ $state == installing ]] || ! is_recent "$VENV_PYTHON" || ! "$VENV_PYTHON" -m pip --version >/dev/null 2>&1; then
        make_venv
        state=
    fi
    if [[ $state != "$(wanted_state)" ]]; then
        echo installing >"$ROOT/.venv/.rlopt"
        (install_packages)
        wanted_state >"$ROOT/.venv/.rlopt.new"
        mv "$ROOT/.venv/.rlopt.new" "$ROOT/.venv/.rlopt"
    fi
}
