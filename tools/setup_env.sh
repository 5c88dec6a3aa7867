#!/usr/bin/env bash
# Build .venv with the whole stack (torch, compiled mmcv ops, mmengine, mmdet, mmpretrain, mmsnn).
#
# Safe to run again: a finished environment is recognised in well under a second. The compiled mmcv
# wheel is kept in the user's cache folder, so another clone on the same machine does not compile again.
#
#   PYTHON=python3.11 tools/setup_env.sh     choose the interpreter
#   VENV=folder REQUIREMENTS=file ...        another stack, elsewhere (noxfile.py)
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m[setup] %s\033[0m\n' "$*"; }
die() { printf '\n[setup] ERROR: %s\n' "$*" >&2; exit 1; }

venv=${VENV:-.venv}
requirements=${REQUIREMENTS:-requirements.txt}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.12 python3.11 python3.10 python3.13 python; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

python=$(find_python) || die "Python >= 3.10 was not found (looked for \$PYTHON, python3, python3.10 to 3.13). Install it, or name it: PYTHON=/path/to/python3.11 make demo"

# What the finished environment was made from; any change makes this script run again.
stamp=$({ cat "$requirements" setup.py "$0" tools/compile_operator.sh; "$python" -VV; pwd; } | sha256sum | cut -c1-16)
if [ -f "$venv/.mmsnn-$stamp" ]; then
    exit 0
fi

# --- is this machine able to? ------------------------------------------------------------------------
"$python" -c 'import venv, ensurepip' 2>/dev/null || die "$python has no venv module (Debian and Ubuntu: apt install python3-venv)"
[ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h" ] ||
    die "the headers of $python are missing; mmcv's ops need them to compile (Debian and Ubuntu: apt install python3-dev)"
compiler=${CXX:-g++}
command -v "$compiler" >/dev/null || die "no C++ compiler ('$compiler'); mmcv's ops need one (Debian and Ubuntu: apt install g++; or set CXX)"
echo 'int main() { return 0; }' | "$compiler" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null ||
    die "'$compiler' does not understand -std=c++20, which torch's headers need (g++ >= 10 or clang >= 12; set CXX)"
need_gb=12
free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
[ -d "$venv" ] || [ "$free_gb" -ge $need_gb ] ||
    die "the environment needs about $need_gb GB (PyTorch's CUDA build), only $free_gb GB are free in $(pwd)"

# --- install -----------------------------------------------------------------------------------------
say "environment: $(pwd)/$venv with $("$python" -V) ($python)"
[ -x "$venv/bin/python" ] && [ "$("$venv/bin/python" -VV 2>/dev/null)" = "$("$python" -VV)" ] ||
    { rm -rf "$venv"; "$python" -m venv "$venv"; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
# On a terminal pip's own progress bars show that something happens; in a log they are noise.
quiet=--quiet; [ -t 1 ] && quiet=--progress-bar=on
pinned() { grep -E "^($1)==" "$requirements"; }

say "1/4 PyTorch (downloads about 3 GB the first time)"
mapfile -t torch < <(pinned 'torch|torchvision|numpy')
pip install $quiet "${torch[@]}" 'setuptools<81' wheel ninja psutil

mmcv=$(pinned 'mmcv|onedl-mmcv')
abi=$("$venv/bin/python" -c 'import sys, torch, platform; print(f"cp{sys.version_info[0]}{sys.version_info[1]}-torch{torch.__version__}-{platform.machine()}")')
wheels=${XDG_CACHE_HOME:-$HOME/.cache}/mmsnn/${mmcv/==/-}-$abi
job=
if compgen -G "$wheels/*.whl" >/dev/null; then
    say "2/4 mmcv ops: using the wheel compiled before ($wheels)"
else
    say "2/4 mmcv ops: compiling, a few minutes on 2 cores, once per machine (log: $venv/mmcv-build.log)"
    mkdir -p "$wheels"
    build=$(mktemp -d "$wheels/build.XXXXXX")
    # The compiler runs beside the downloads of the next step, in a process group that ends with this script.
    trap '[ -z "$job" ] || kill -- "-$job" 2>/dev/null || true; rm -rf "$build"' EXIT
    set -m
    REAL_CXX=$compiler HEADERS=$build CC=$PWD/tools/compile_operator.sh CXX=$PWD/tools/compile_operator.sh \
        MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} \
        pip wheel -v --no-build-isolation --no-deps --wheel-dir "$build" "$mmcv" >"$venv/mmcv-build.log" 2>&1 </dev/null &
    job=$!
    set +m
fi

say "3/4 mmengine, mmdetection, mmpretrain and tools"
grep -vE '^(onedl-)?mmcv==' "$requirements" >"$venv/others.txt"
pip install $quiet --no-build-isolation -r "$venv/others.txt"
# It reads the NIR files of the tests, where Python is new enough for it. Its requirements (torchaudio, tensorboard ...)
# serve other parts of it; those of this part are in requirements.txt.
if [ "$requirements" = requirements.txt ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    pip install --quiet --no-deps spikingjelly==2.0.0
fi

if [ -n "$job" ]; then
    while kill -0 "$job" 2>/dev/null; do
        progress=$(grep -oE '^ *\[[0-9]+/[0-9]+\]' "$venv/mmcv-build.log" | tail -n 1 || true)
        [ -z "$progress" ] || [ "$progress" = "${shown:-}" ] || say "    mmcv ops: compiled $progress"
        shown=$progress
        sleep 5
    done
    wait "$job" || { job=; tail -n 30 "$venv/mmcv-build.log" >&2; die "compiling mmcv failed; the whole log is in $(pwd)/$venv/mmcv-build.log"; }
    job=
    mv "$build"/*.whl "$wheels"/
fi
pip install --quiet --no-deps "$wheels"/*.whl
pip install --quiet --no-build-isolation -r "$requirements"  # what mmcv itself asks for

say "4/4 mmsnn itself (editable)"
pip install --quiet --no-build-isolation --no-deps -e .
"$venv/bin/python" - <<'PY' || die "the environment was built but does not import; see above"
import mmcv.ops, mmdet, mmengine, mmpretrain, torch, torchvision
assert mmcv.ops.nms(torch.tensor([[0., 0., 1., 1.]]), torch.tensor([1.]), .5)[0].shape == (1, 5)
PY
rm -f "$venv"/.mmsnn-*
touch "$venv/.mmsnn-$stamp"
say "done"
