# Sourced by the other tools: goes to the repository, and makes .venv with the package in it unless it is there.
# Set PYTHON to choose the interpreter; otherwise the first Python 3.10 to 3.13 that is found is taken.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $*" >&2
    exit 2
}

find_python() {
    local candidate without_venv="" candidates=(python3 python3.13 python3.12 python3.11 python3.10 python)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || continue
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        without_venv=$candidate
    done
    [[ -z $without_venv ]] || fail "$without_venv has no module venv; on Debian or Ubuntu: sudo apt install python3-venv"
    fail "no Python 3.10 to 3.13 ${PYTHON:+at $PYTHON}; install one from https://www.python.org/downloads/, or name it: PYTHON=..."
}

make_environment() {
    local stamp=.venv/installed_for wanted python
    wanted="$(cat setup.cfg pyproject.toml | cksum) $PWD"
    if .venv/bin/python -m pip --version >/dev/null 2>&1; then
        [[ $(cat "$stamp" 2>/dev/null) != "$wanted" ]] || return 0
    else
        python=$(find_python)
        echo "making .venv with $("$python" --version)" >&2
        "$python" -m venv --clear .venv
    fi
    echo "installing kerasllm into .venv; the first time this downloads about 1 GB" >&2
    # The pip that comes with Python 3.10 takes hours to find versions that fit together, a new one takes seconds.
    .venv/bin/python -m pip install --disable-pip-version-check --quiet --upgrade pip >&2
    .venv/bin/python -m pip install --disable-pip-version-check --editable ".[test]" >&2
    echo "$wanted" > "$stamp"
}

make_environment
