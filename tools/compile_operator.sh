#!/usr/bin/env bash
# The C++ compiler that tools/setup_env.sh lets mmcv's operators be built with: $REAL_CXX, and
#   -std=c++20  mmcv asks for c++17, torch's headers need C++20, and the last -std on a command line wins;
#   -g0         Python's own flags ask for debug information, which takes a quarter of the time and most of the space;
#   torch's headers, in which a file spends nearly all of its time, compiled once. The first call does this, with its own
#   flags as they have to match, into the folder $HEADERS; the others wait. Where it fails they do without.
set -euo pipefail

operator='' flags=() arguments=("$@")
while [ $# -gt 0 ]; do
    case $1 in
        */csrc/*.cpp) operator=$1 ;;
        -o | -MF) shift ;;
        -c | -MMD) ;;
        *) flags+=("$1") ;;
    esac
    shift
done

include=()
if [ -n "$operator" ] && command -v flock >/dev/null; then
    header=$HEADERS/operators.h
    exec 9>"$HEADERS/lock"
    flock 9
    if [ ! -f "$header" ]; then
        echo '#include <torch/types.h>' >"$header"
        "$REAL_CXX" "${flags[@]}" -std=c++20 -g0 -x c++-header "$header" -o "$header.gch" || rm -f "$header.gch"
    fi
    flock -u 9
    [ ! -f "$header.gch" ] || include=(-include "$header")
fi
exec "$REAL_CXX" ${include[@]+"${include[@]}"} "${arguments[@]}" -std=c++20 -g0
