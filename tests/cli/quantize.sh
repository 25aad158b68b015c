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
same int4-w4a16 pack-quantized
same int4-w4a16:g64,zp pack-quantized
same int4-w4a16:channel pack-quantized
same int8-w8a16 int-quantized
same int8-w8a16:g128 pack-quantized
same fp8-w8a16 float-quantized
same fp8-w8a16:tensor float-quantized
same fp8-w8a16:b128 fp8
run 0 quantize "$model" "$work/nv" --scheme nvfp4-w4a16
has "$work/out" '^layout *nvfp4-pack-quantized$'
run 0 inspect "$work/nv" --deep
run 0 quantize "$model" "$work/mx8" --scheme mxfp8
run 0 inspect "$work/mx8" --deep
has "$work/out" 'w=e4m3/mx32'

# Every family that is written, from its own tensors and names.
for family in mixtral olmoe deepseek_v3 glm4_moe llama4 llama4-whole qwen3_moe-fused; do
    from=$root/tests/vectors/checkpoints/$family
    layer=$("$CMOE" inspect "$from" | sed -n 's/^layers .*from layer \([0-9]*\) on$/\1/p')
    run 0 quantize "$from" "$work/$family" --scheme fp8-w8a16
    run 0 inspect "$work/$family"
    has "$work/out" 'w=e4m3/channel'
    run 0 run --model "$from" --layer "$layer" --input "$from/x.npy" --scheme fp8-w8a16 --device ref \
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
run 69 quantize "$work/nv" "$work/again" --scheme int4-w4a16
run 69 quantize "$root/tests/vectors/checkpoints/gpt_oss" "$work/again" --scheme int4-w4a16
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
finish
