#!/usr/bin/env bash
# gpu_check.sh [all|check|ptx|sanitize|determinism|demo|bench|layers] [build folder]: the CUDA rows on a machine with an
# NVIDIA GPU, which CI does not have. Only the built programs are needed there: cmoe, libcmoe.so.0,
# libcmoe-io.so.0, and those named below.
#
# all       all of the following but bench and layers, side by side: 400 s where there are 16 cores; $LOGS keeps what they print
# check     every row against the reference on the built-in and on random problems
# ptx       the portable rows from the PTX that later GPUs would use: CUDA_FORCE_PTX_JIT=1 keeps the driver from
#           machine code, so a Hopper GPU is treated as sm_80; the driver compiles first, for a minute or so
# bench     times of twelve models' layers in bf16 and fp8 into $RESULT (default: h100.json), as the peers were
#           measured: no shared experts, no weights on inputs, all slots local under expert parallelism
# layers    times of eleven models' whole layers into $RESULT (default: h100-layers.json): from logits, with shared
#           experts, results between GEMM2 and the combine in f32, as `cmoe bench` has them without --problem
# determinism  gpu_replay: 100 replays of captured plans, alone, beside another stream and with other inputs;
#           gpu_batch: a token's bits alone and in batches (cmake --build build/release --target gpu_replay gpu_batch)
# demo      cmoe-lm-demo and cmoe-lm-schemes on the GPU: the CPU's greedy text, logits within the tests' limits;
#           cmoe run and replay of a layer under every scheme
# sanitize  memcheck, initcheck, racecheck and synccheck of compute-sanitizer on small problems that use every row,
#           each tool's divided among $JOBS processes (4); $LOGS is a folder that keeps what they print
set -eu
what=${1:-check}
build=$(cd "${2:-build/release}" && pwd)
export LD_LIBRARY_PATH=$build${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
cmoe=$build/cmoe
model=${MODEL:-$(dirname "$0")/../models/tiny-moe}

# Small problems that together use every row: ragged and whole sizes, all kinds of weights, sorts of few and
# many ids, the orders of other libraries.
small='t=7 e=5 k=2 h=75 i=53 renorm scheme=bf16;t=7 e=5 k=2 h=72 i=56 renorm scheme=f16;t=7 e=5 k=2 h=75 i=53 scheme=f32'
small+=';t=9 e=16 k=4 h=48 i=40 rx renorm scheme=bf16;t=140 e=3 k=2 h=264 i=192 hpad=3 acc=0.5 reduced scheme=bf16'
small+=';t=70 e=2 k=1 h=256 i=136 reduced scheme=fp8-block;t=7 e=5 k=2 h=80 i=64 scheme=fp8-token'
small+=';t=70 e=2 k=1 h=256 i=128 reduced scheme=fp8-block;t=400 e=1 k=1 h=128 i=128 reduced scheme=bf16'
small+=';t=7 e=5 k=2 h=75 i=53 scheme=int8-w8a8;t=7 e=5 k=2 h=72 i=56 scheme=int4-w4a8'
small+=';t=70 e=2 k=1 h=264 i=200 scheme=int4-w4a16:zp;t=70 e=2 k=1 h=264 i=200 reduced scheme=mxfp8'
small+=';t=5 e=4 k=2 h=160 i=96 scheme=int4-w4a16;t=5 e=4 k=2 h=72 i=88 scheme=mxfp4-w4a16'
small+=';t=7 e=5 k=2 h=75 i=53 scheme=nvfp4-w4a4;t=7 e=5 k=2 h=64 i=96 scheme=nvfp4-w4a4;t=7 e=5 k=2 h=75 i=53 scheme=nvfp4-w4a16'
small+=';t=3000 e=12 k=3 h=8 i=8 stages=route..sort scheme=bf16'
small+=';t=70 e=60 k=4 h=8 i=8 stages=route..sort renorm shared=1 scheme=bf16'
small+=';t=40 e=160 k=6 h=8 i=8 stages=route..sort lg=f32 scheme=bf16'
small+=';t=130 e=32 k=4 h=8 i=8 stages=route..sort renorm scheme=bf16'
small+=';t=300 e=128 k=8 h=8 i=8 stages=route..sort renorm lg=f16 scheme=bf16'
small+=';t=40 e=160 k=6 h=8 i=8 stages=route..sort router=deepseek-v2 rbias lg=f32 scheme=bf16'
small+=';t=20 e=12 k=3 h=40 i=36 stages=sort..sort sort=packed bm=8 scheme=bf16'
small+=';t=20 e=12 k=3 h=40 i=36 stages=gemm1..combine sort=packed bm=8 shared=1 scheme=bf16'
small+=';t=20 e=12 k=3 h=40 i=36 stages=gemm1..combine sort=flat bm=16 scheme=int8-w8a8'
small+=';t=20 e=12 k=1 h=40 i=36 stages=gemm1..combine sort=m-indices scheme=bf16'
small+=';e=4 k=2 h=40 i=36 stages=gemm1..combine sort=batched cap=7 scheme=bf16'
small+=';t=20 e=12 k=3 h=40 i=36 stages=route..sort sort=flat bm=16 scheme=bf16'
small+=';t=6 e=4 k=2 h=40 i=36 reduced scheme=f16;t=9 e=5 k=2 h=264 i=192 reduced scheme=bf16'
small+=';t=200 e=1 k=1 h=256 i=128 reduced scheme=fp8-block;t=200 e=1 k=1 h=128 i=128 reduced scheme=fp8-token'
small+=';t=20 e=3 k=2 h=256 i=128 reduced scheme=fp8-block;t=20 e=3 k=2 h=256 i=256 reduced scheme=fp8-token'
small+=';t=60 e=2 k=1 h=64 i=2304 reduced scheme=fp8-token;t=300 e=1 k=1 h=768 i=256 reduced fastsums scheme=fp8-token'
small+=';t=5 e=4 k=2 h=512 i=512 acc=0.5 scheme=fp8-block;t=3 e=4 k=2 h=1024 i=256 scheme=bf16'
small+=';t=3 e=3 k=1 h=512 i=512 scheme=fp8-block;t=8 e=6 k=4 h=512 i=384 renorm scheme=bf16'
# More stages than the rings have
small+=';t=200 e=1 k=1 h=656 i=128 reduced scheme=fp8-token;t=200 e=1 k=1 h=328 i=128 reduced scheme=bf16'

sanitize() { # tool, which of so many shares of the problems: every n-th of them
    local problems share=
    IFS=';' read -ra problems <<<"${PROBLEM:-$small}"
    for ((p = $2; p < ${#problems[@]}; p += $3)); do share+=";${problems[p]}"; done
    [ -z "$share" ] || compute-sanitizer --tool "$1" --error-exitcode 1 "$cmoe" check --device cuda:0 --problem "${share#;}"
}

demo() { "$build/cmoe-lm-demo" --model "$model" --temp 0 --tokens 200 "$@"; }
text() { sed '/^[0-9]* tokens, /,$d' "$1"; }

"$cmoe" info
case $what in
check)
    "$cmoe" check --device cuda:0
    "$cmoe" check --device cuda:0 --count "${COUNT:-1000}" --seed "${SEED:-1}"
    ;;
ptx)
    set -o pipefail
    CUDA_FORCE_PTX_JIT=1 "$cmoe" check --device cuda:0 --count "${COUNT:-40}" --seed "${SEED:-3}" |
        awk '{ print } / cases, / { done = 1 } /__sm90a / { print "without PTX: " $1; bad = 1 } END { exit bad || !done }'
    ;;
determinism)
    "$build/gpu_replay"
    "$build/gpu_batch" cuda:0 8192
    ;;
demo)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    demo >"$work/auto"
    grep '^[0-9]* tokens, ' "$work/auto"
    grep -q -- '--device cpu' "$work/auto" || { echo "the demo did not choose the GPU"; exit 1; }
    for scheme in bf16 f32 fp8-block int4-w4a16 mxfp4-w4a8; do
        demo --scheme $scheme --device cuda:0 >"$work/gpu"
        demo --scheme $scheme --device cpu >"$work/cpu"
        text "$work/gpu" >"$work/gpu.text"
        text "$work/cpu" >"$work/cpu.text"
        if cmp "$work/gpu.text" "$work/cpu.text"; then echo "$scheme: the same text"; else echo "$scheme: DIFFERS"; exit 1; fi
    done
    "$build/cmoe-lm-schemes" --model "$model" --windows 0 --max-error 2e-4 f32
    "$build/cmoe-lm-schemes" --model "$model" --windows 0 --max-error 0.5 bf16
    "$build/cmoe-lm-schemes" --model "$model" --windows 1 --max-error 8
    "$cmoe" list --schemes >"$work/schemes"
    while read -r scheme; do
        echo "run and replay: $scheme"
        CMOE_RECORD=$work/call "$cmoe" run --device cuda:0 --model "$model" --layer 2 --input "$model/hidden.npy" \
            --scheme "$scheme" --scales "$model/expected/scales.npy" --expected "$model/expected/$scheme.npy" >"$work/run"
        "$cmoe" replay --device cuda:0 "$work/call" >"$work/replay"
        "$cmoe" replay --device cpu "$work/call" >>"$work/replay"
        grep -h '^reference\|^expected' "$work/run" "$work/replay"
        rm -r "$work/call"
    done <"$work/schemes"
    ;;
sanitize)
    work=${LOGS:-$(mktemp -d)} jobs=${JOBS:-4} failed=0
    [ -n "${LOGS:-}" ] || trap 'rm -rf "$work"' EXIT
    mkdir -p "$work" && rm -f "$work"/*.ok
    for tool in memcheck initcheck racecheck synccheck; do
        for ((job = 0; job < jobs; job++)); do
            (sanitize $tool $job "$jobs" >"$work/$tool.$job" 2>&1 && echo passed >"$work/$tool.$job.ok") &
        done
    done
    wait
    for tool in memcheck initcheck racecheck synccheck; do
        for ((job = 0; job < jobs; job++)); do
            echo "== $tool $job"
            grep -v '^=========     ' "$work/$tool.$job" | tail -n "${LINES_OF_EACH:-60}"
            [ -e "$work/$tool.$job.ok" ] || failed=1
        done
    done
    # Rows of the GPU that no problem used
    "$cmoe" list | awk '$2 == "cuda" { print $1 }' | while read -r row; do
        cat "$work"/memcheck.[0-9]* | grep -q "^$row " || echo "not used: $row"
    done
    exit $failed
    ;;
all)
    logs=${LOGS:-$(mktemp -d)}
    mkdir -p "$logs"
    rm -f "$logs"/*.passed
    for part in check ptx sanitize determinism demo; do
        (LOGS=$logs/$part.logs COUNT=${COUNT:-50} bash "$0" $part "$build" >"$logs/$part" 2>&1 && touch "$logs/$part.passed") &
    done
    wait
    failed=0
    for part in check ptx sanitize determinism demo; do
        result=passed
        [ -e "$logs/$part.passed" ] || { result=FAILED && failed=1; }
        echo "== $part: $result"
        tail -n 4 "$logs/$part"
    done
    [ -n "${LOGS:-}" ] || rm -rf "$logs"
    exit $failed
    ;;
bench)
    MODELS=${MODELS:-qwen3-30b-a3b deepseek-v3-tp8 qwen3-235b-a22b gpt-oss-120b gpt-oss-20b mixtral-8x7b deepseek-v3 \
deepseek-v3-ep8:e=32,local=32 llama4-scout kimi-k2 mixtral-8x22b deepseek-v2} SCHEMES=${SCHEMES:-bf16+fp8-token+fp8-block} \
        TOKENS=${TOKENS:-1,8,32,128,512,2048,8192} PROBLEM=${PROBLEM:-stages=quant..combine reduced shared=0 won=out} \
        "$(dirname "$0")/bench_grid.sh" cuda:0 "${RESULT:-h100.json}" "$build"
    ;;
layers)
    MODELS=${MODELS:-qwen3-30b-a3b deepseek-v3-tp8 qwen3-235b-a22b gpt-oss-120b gpt-oss-20b mixtral-8x7b deepseek-v3 \
llama4-scout kimi-k2 mixtral-8x22b deepseek-v2} SCHEMES=${SCHEMES:-bf16+fp8-block} TOKENS=${TOKENS:-1,128,8192} PROBLEM='' \
        "$(dirname "$0")/bench_grid.sh" cuda:0 "${RESULT:-h100-layers.json}" "$build"
    ;;
*)
    echo "usage: gpu_check.sh [all|check|ptx|sanitize|determinism|demo|bench|layers] [build folder]" >&2
    exit 64
    ;;
esac
