#!/usr/bin/env bash
# gpu_check.sh [check|sanitize|determinism|bench] [build folder]: the CUDA rows on a machine with an NVIDIA
# GPU, which CI does not have. Only the built programs are needed there: cmoe, libcmoe.so.0, libcmoe-io.so.0.
#
# check     every row against the reference on the built-in and on random problems
# bench     times of twelve models' layers in bf16 and fp8 into $RESULT (default: h100.json)
# determinism  100 replays of captured plans, alone, beside another stream and with other inputs; needs
#           gpu_replay as well (cmake --build build/release --target gpu_replay)
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
determinism)
    "$build/gpu_replay"
    ;;
sanitize)
    for tool in memcheck initcheck racecheck synccheck; do
        compute-sanitizer --tool $tool --error-exitcode 1 "$cmoe" check --device cuda:0 --count "${COUNT:-5}"
    done
    ;;
bench)
    MODELS=${MODELS:-qwen3-30b-a3b deepseek-v3-tp8 qwen3-235b-a22b gpt-oss-120b gpt-oss-20b mixtral-8x7b deepseek-v3 \
deepseek-v3-ep8 llama4-scout kimi-k2 mixtral-8x22b deepseek-v2} SCHEMES=${SCHEMES:-bf16+fp8-token+fp8-block} \
        TOKENS=${TOKENS:-1,8,32,128,512,2048,8192} PROBLEM=${PROBLEM:-stages=quant..combine reduced} \
        "$(dirname "$0")/bench_grid.sh" cuda:0 "${RESULT:-h100.json}" "$build"
    ;;
*)
    echo "usage: gpu_check.sh [check|sanitize|determinism|bench] [build folder]" >&2
    exit 64
    ;;
esac
