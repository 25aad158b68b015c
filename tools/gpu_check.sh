#!/usr/bin/env bash
# gpu_check.sh [check|sanitize] [build folder]: the CUDA rows on a machine with an NVIDIA GPU, which CI
# does not have. Only the built programs are needed there: cmoe, libcmoe.so.0, libcmoe-io.so.0.
#
# check     every row against the reference on the built-in and on random problems
# sanitize  memcheck, initcheck, racecheck and synccheck of compute-sanitizer on a few problems
set -eu
what=${1:-check}
build=$(cd "${2:-build/release}" && pwd)
export LD_LIBRARY_PATH=$build${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
cmoe=$build/cmoe
"$cmoe" info
case $what in
check)
    "$cmoe" check --device cuda:0
    "$cmoe" check --device cuda:0 --count "${COUNT:-1000}" --seed "${SEED:-1}"
    ;;
sanitize)
    for tool in memcheck initcheck racecheck synccheck; do
        compute-sanitizer --tool $tool --error-exitcode 1 "$cmoe" check --device cuda:0 --count "${COUNT:-5}"
    done
    ;;
*)
    echo "usage: gpu_check.sh [check|sanitize] [build folder]" >&2
    exit 64
    ;;
esac
