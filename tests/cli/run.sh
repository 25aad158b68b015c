#!/bin/sh
# run: a layer of the trained model under every scheme against numbers that torch computed.
# ctest: cost=20
. "$(dirname "$0")/common"

run 0 list --schemes
cp "$work/out" "$work/schemes"
n=0
while read -r scheme; do
    n=$((n + 1))
    if [ "${TEST_SHORT:-0}" != 0 ] && [ $((n % 3)) != 1 ]; then continue; fi
    expected=$model/expected/$scheme.npy
    [ -f "$expected" ] || fail "no expected output for $scheme"
    run 0 run --model "$model" --layer 2 --input "$model/hidden.npy" --scheme "$scheme" \
        --scales "$model/expected/scales.npy" --expected "$expected" --output "$work/$scheme.npy"
    has "$work/out" '^reference *within, .* 0 of 8192 outside'
    has "$work/out" '^expected *within, .* 0 of 8192 outside'
    has "$work/out" '^time .* us median of '
    [ -s "$work/$scheme.npy" ] || fail "$scheme: no output"
    rm -f "$work/$scheme.npy"
done <"$work/schemes"

# Without a scheme: as the checkpoint is. The output is an .npy file that can be expected again.
layer="--layer 2 --input $model/hidden.npy"
run 0 run --model "$model" $layer --output "$work/y.npy" --json
has "$work/out" '^{"model": .*"us_median": [0-9.]*,.*"reference": {"n": 8192, "outside": 0, .*}}$'
run 0 run --model "$model" $layer --expected "$work/y.npy"
has "$work/out" '^expected *within, largest 0.000 of the bound'
run 0 run --model "$model" $layer --device ref --expected "$model/expected/bf16.npy"

# A wrong expectation is found, and nothing is written.
run 1 run --model "$model" $layer --expected "$model/expected/mxfp4-w4a4.npy" --output "$work/no.npy"
has "$work/out" '^expected *OUTSIDE'
has "$work/err" '^cmoe: .*outside its bound'
[ ! -e "$work/no.npy" ] || fail "an output was written in spite of an error"
run 1 run --model "$model" --layer 1 --input "$model/hidden.npy" --expected "$model/expected/bf16.npy"

# Static scales: observed ones do, absurd ones agree with the reference but not with torch.
run 0 run --model "$model" $layer --scheme mxfp4-w4a8
has "$work/out" '^scales *x [0-9.]*, mid [0-9.]*$'
run 1 run --model "$model" $layer --scheme mxfp4-w4a8 --x-scale 3 --mid-scale 3 \
    --expected "$model/expected/mxfp4-w4a8.npy"
has "$work/out" '^reference *within'
finish
