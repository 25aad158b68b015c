#!/bin/sh
# quantize: every layout is read back with the values of quantising in memory; it resumes, refuses, and
# leaves nothing half done.
# ctest: cost=30
. "$(dirname "$0")/common"

x=$model/hidden.npy
# The same y from the written checkpoint as from quantising the layer when it is loaded.
same() {
    name=$(echo "$1" | tr ':,' '__')
    run 0 quantize "$model" "$work/$name" --scheme "$1"
    has "$work/out" "^layout *$2\$"
    has "$work/out" '^shards *5$'
    [ ! -e "$work/$name.partial" ] || fail "$1: the work folder stays"
    run 0 inspect "$work/$name" --deep
    has "$work/out" '^complete *4 of 4 checked$'
    run 0 run --model "$model" --layer 1 --input "$x" --scheme "$1" --device ref --output "$work/a.npy"
    run 0 run --model "$work/$name" --layer 1 --input "$x" --device ref --output "$work/b.npy"
    cmp -s "$work/a.npy" "$work/b.npy" || fail "$1: the copy computes something else"
}
same mxfp4-w4a16 mxfp4-pack-quantized
same int4-w4a16:g64,zp pack-quantized
same fp8-w8a16:b128 fp8
if [ "${TEST_SHORT:-0}" = 0 ]; then
    same int4-w4a16 pack-quantized
    same int4-w4a16:channel pack-quantized
    same int8-w8a16 int-quantized
    same int8-w8a16:g128 pack-quantized
    same fp8-w8a16 float-quantized
    same fp8-w8a16:tensor float-quantized
fi
run 0 quantize "$model" "$work/nv" --scheme nvfp4-w4a16
has "$work/out" '^layout *nvfp4-pack-quantized$'
run 0 inspect "$work/nv" --deep
run 0 quantize "$model" "$work/mx8" --scheme mxfp8
run 0 inspect "$work/mx8" --deep
has "$work/out" 'w=e4m3/mx32'

# Static activation scales are observed once and come back with the checkpoint.
calibrated() {
    name=$(echo "$1" | tr ':,' '__')
    run 64 quantize "$model" "$work/$name" --scheme "$1"
    has "$work/err" 'static activation scales'
    run 0 quantize "$model" "$work/$name" --scheme "$1" --calib "$x"
    grep -q '"dynamic": '"$2" "$work/$name/config.json" || fail "$1: the configuration is not static"
    run 0 inspect "$work/$name"
    has "$work/out" '^complete *4 of 4 checked$'
    run 0 run --model "$model" --layer 2 --input "$x" --scheme "$1" --device ref --output "$work/a.npy"
    has "$work/out" '^scales *x 0\.[0-9]*, mid 0\.[0-9]*$'
    run 0 run --model "$work/$name" --layer 2 --input "$x" --scheme "$1" --device ref --output "$work/b.npy"
    want=$(grep '^scales ' "$work/out")
    cmp -s "$work/a.npy" "$work/b.npy" || fail "$1: the calibrated copy computes something else"
    # other tokens, the same scales
    run 0 run --model "$work/$name" --layer 2 --input "$model/hidden_layer2_mlp_out.npy" --scheme "$1"
    [ "$(grep '^scales ' "$work/out")" = "$want" ] || fail "$1: the checkpoint's scales are not used"
}
calibrated fp8-tensor:static false
calibrated mxfp4-w4a8 false
run 64 quantize "$model" "$work/no-calib" --scheme int4-w4a16 --calib "$x"
has "$work/err" 'nothing to calibrate'
run 65 quantize "$model" "$work/no-calib" --scheme mxfp4-w4a8 --calib "$model/logits-0.npy"
has "$work/err" 'rows of 128 columns'
run 66 quantize "$model" "$work/no-calib" --scheme mxfp4-w4a8 --calib "$work/none.npy"
if [ -e "$work/no-calib" ] || [ -e "$work/no-calib.partial" ]; then fail "a refused calibration writes"; fi

# Every family and every scheme, from checkpoints of their own tools: what is quantised already is decoded and
# quantised again as in memory; of GGUF files only the layers are written.
n=0
for from in "$root"/tests/vectors/checkpoints/*; do
    n=$((n + 1))
    if [ "${TEST_SHORT:-0}" != 0 ] && [ $((n % 4)) != 3 ]; then continue; fi
    family=$(basename "$from")
    path=$from
    if [ -e "$from/model.gguf" ]; then path=$from/model.gguf; fi
    layer=$("$CMOE" inspect "$path" | sed -n 's/^layers .*from layer \([0-9]*\) on$/\1/p')
    quantised=$("$CMOE" inspect "$path" | sed -n 's/^quantization *//p')
    run 0 quantize "$path" "$work/$family" --scheme fp8-w8a16
    if [ "$quantised" != none ]; then has "$work/out" '^source .*, decoded to f32 and then quantised'; fi
    run 0 inspect "$work/$family"
    has "$work/out" 'w=e4m3/channel'
    run 0 run --model "$path" --layer "$layer" --input "$from/x.npy" --scheme fp8-w8a16 --device ref \
        --output "$work/a.npy"
    run 0 run --model "$work/$family" --layer "$layer" --input "$from/x.npy" --device ref \
        --output "$work/b.npy"
    cmp -s "$work/a.npy" "$work/b.npy" || fail "$family: the copy computes something else"
done

# Nothing is written by a dry run, over an existing folder, or from what is not read.
run 0 quantize "$model" "$work/dry" --scheme int4-w4a16 --dry-run
has "$work/out" '^memory *[0-9]* bytes at most$'
if [ -e "$work/dry" ] || [ -e "$work/dry.partial" ]; then fail "a dry run writes"; fi
run 73 quantize "$model" "$work/nv" --scheme int4-w4a16
cp -r "$root/tests/vectors/checkpoints/qwen3_moe-gptq-v1" "$work/packed"
chmod -R u+w "$work/packed"
sed -i 's/"mlp_only_layers": \[\]/"mlp_only_layers": [0]/' "$work/packed/config.json"
run 69 quantize "$work/packed" "$work/again" --scheme int4-w4a16
has "$work/err" 'is packed and no routed expert'
run 64 quantize "$model" "$work/again" --scheme nothing
run 64 quantize "$model" "$work/again"
run 64 quantize "$model" --scheme int4-w4a16
run 73 quantize "$model" "$work/no/such/folder" --scheme int4-w4a16
if [ -e "$work/again" ] || [ -e "$work/again.partial" ]; then fail "a refused run writes"; fi

# A full disk: nothing at OUT; the next run takes what is finished and ends with the same bytes.
code=0
(
    trap '' XFSZ
    ulimit -f 250
    "$CMOE" quantize "$model" "$work/full" --scheme fp8-w8a16:b128 2>"$work/err"
) >"$work/out" || code=$?
[ "$code" = 73 ] || fail "a full disk gives exit code $code"
[ ! -e "$work/full" ] || fail "a full disk leaves OUT"
if ls "$work/full.partial"/*.partial >/dev/null 2>&1; then fail "a broken shard stays"; fi
mkdir -p "$work/full.partial"
cp "$work/fp8-w8a16_b128/model-00002-of-00005.safetensors" "$work/full.partial/"
run 65 quantize "$model" "$work/full" --scheme int4-w4a16
has "$work/err" 'another run'
run 0 quantize "$model" "$work/full" --scheme fp8-w8a16:b128
has "$work/out" '^shards *5, [1-4] of an earlier run$'
diff -r "$work/full" "$work/fp8-w8a16_b128" >&2 || fail "a resumed run differs"

# Interrupted wherever: OUT is whole or not there, IN is as it was, and the next run ends the work.
before=$(cat "$model"/* 2>/dev/null | cksum)
interrupted=0
for delay in 0.005 0.01 0.02 0.04 0.08 0.16; do
    "$CMOE" quantize "$model" "$work/int" --scheme fp8-w8a16:b128 >"$work/out" 2>&1 &
    sleep $delay
    if kill -INT $! 2>/dev/null; then interrupted=$((interrupted + 1)); fi
    wait $! 2>/dev/null
    if [ -e "$work/int" ]; then
        diff -r "$work/int" "$work/fp8-w8a16_b128" >&2 || fail "an interrupted run leaves half of OUT"
        rm -r "$work/int"
    fi
done
[ $interrupted -gt 0 ] || fail "no run was interrupted"
[ "$before" = "$(cat "$model"/* 2>/dev/null | cksum)" ] || fail "an interrupted run touches IN"
run 0 quantize "$model" "$work/int" --scheme fp8-w8a16:b128
diff -r "$work/int" "$work/fp8-w8a16_b128" >&2 || fail "a run after an interrupted one differs"

# Memory: what --dry-run says, beside what the program takes before it begins. One file of the model
# is 3.7 MB and one written shard 0.5 MB, so holding either whole input or whole output would show.
memory=$("$CMOE" quantize "$model" "$work/mem" --scheme fp8-w8a16 --dry-run | sed -n 's/^memory *\([0-9]*\) .*/\1/p')
fits() { (ulimit -d "$1" && "$CMOE" quantize "$model" "$work/mem" --scheme fp8-w8a16 ${2:-}) >/dev/null 2>&1; }
if fits 65536 --dry-run; then # a sanitized program does not start under a limit
    low=0 high=65536
    while [ $((high - low)) -gt 16 ]; do
        mid=$(((low + high) / 2))
        if fits $mid --dry-run; then high=$mid; else low=$mid; fi
    done
    fits $((high + memory / 1024 + 256)) || fail "quantize takes more than the $memory bytes it says"
fi
finish
