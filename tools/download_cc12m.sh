#!/usr/bin/env bash
# Downloads CC12M, or any table of links and captions, as WebDataset shards:
#
#     tools/download_cc12m.sh [OUT] [options]        # --help lists them
#
# The first run makes an environment for img2dataset alone (no torch, no W&B), in .venv-download of
# the checkout or in $TESSERA_DOWNLOAD_ENV. $TESSERA_DOWNLOAD_PYTHON names the Python of an
# environment that has everything already and is taken as it is.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
requirements="$root/tools/download/requirements.txt"

fail() {
    echo "error: $*" >&2
    exit 2
}

# The first Python found that img2dataset runs on.
find_python() {
    local name
    for name in python3.12 python3.11 python3 python; do
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
            2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail "img2dataset needs Python 3.11 or 3.12, and none is on the PATH"
}

# Makes the environment unless it is there, whole, and of these requirements.
make_environment() {
    local env="$1" wanted base
    wanted="$(cksum <"$requirements")"
    if [[ -x "$env/bin/python" && "$(cat "$env/made-for" 2>/dev/null)" == "$wanted" ]]; then
        return
    fi
    if [[ -d "$env" && ! -f "$env/pyvenv.cfg" && -n "$(ls -A "$env")" ]]; then
        fail "$env is not an environment and not empty: name another TESSERA_DOWNLOAD_ENV"
    fi
    base="$(find_python)"
    echo "making the environment for img2dataset in $env (once, about 600 MB)" >&2
    "$base" -m venv --clear "$env" \
        || fail "$base cannot make environments: install its venv module (python3-venv on Debian)"
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
        --requirement "$requirements" >&2 \
        || fail "the packages could not be installed; the same command tries again"
    # Last, so that what a kill leaves behind is made anew.
    echo "$wanted" >"$env/made-for"
}

# The checkout comes first wherever this is called from, and the caller's folder not at all.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1

for word in "$@"; do
    if [[ "$word" == -h || "$word" == --help ]]; then  # which needs no environment
        python="${TESSERA_DOWNLOAD_PYTHON:-$(find_python)}"
        exec "$python" -m tessera.tools.download --help
    fi
done

python="${TESSERA_DOWNLOAD_PYTHON:-}"
if [[ -z "$python" ]]; then
    env="${TESSERA_DOWNLOAD_ENV:-$root/.venv-download}"
    mkdir -p "$(dirname "$env")"
    if command -v flock >/dev/null; then
        exec 9>"$env.lock"
        flock 9
        make_environment "$env"
        exec 9>&-
    else
        make_environment "$env"
    fi
    python="$env/bin/python"
fi

exec "$python" -m tessera.tools.download "$@"
