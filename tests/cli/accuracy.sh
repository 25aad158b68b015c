#!/bin/sh
# accuracy on every committed checkpoint; its numbers order schemes by bits, and its page is whole.
# ctest: cost=25
. "$(dirname "$0")/common"

n=0
for folder in "$root"/tests/vectors/checkpoints/*; do
    n=$((n + 1))
    if [ "${TEST_SHORT:-0}" != 0 ] && [ $((n % 4)) != 1 ]; then continue; fi
    path=$folder
    if [ -e "$folder/model.gguf" ]; then path=$folder/model.gguf; fi
    layer=$("$CMOE" inspect "$path" | sed -n 's/^layers .*from layer \([0-9]*\) on$/\1/p')
    run 0 accuracy "$path" --scheme f32+int4-w4a16 --input "$folder/x.npy"
    has "$work/out" "^int4-w4a16  *$layer  *[12][0-9]\."
    run 0 run --model "$path" --layer "$layer" --input "$folder/x.npy"
done
run 0 accuracy "$model" --scheme bf16+fp8-token+int4-w4a16 --input "$model/hidden.npy" --json
[ "$(wc -l <"$work/out")" = 12 ] || fail "not one object a scheme and layer"
sqnr() { sed -n "s/^{\"scheme\": \"$1\", \"layer\": 2, .*\"output_sqnr\": \([0-9]*\).*/\1/p" "$work/out"; }
[ "$(sqnr bf16)" -gt "$(sqnr fp8-token)" ] || fail "bf16 is not better than fp8"
[ "$(sqnr fp8-token)" -gt "$(sqnr int4-w4a16)" ] || fail "fp8 is not better than int4"
has "$work/out" '^{"scheme": "bf16", "layer": 0, "weights_sqnr": null, "weights_max": 0,'

run 0 accuracy "$model" --layer 1 --html "$work/report.html"
has "$work/out" '^worst experts$'
[ "$(grep -c '^  .* layer 1 expert [0-9]*: ' "$work/out")" = 10 ] || fail "not ten worst experts"
has "$work/report.html" '</html>$'
[ "$(grep -c '<svg' "$work/report.html")" -ge 8 ] || fail "plots are missing"
if grep -q 'http\|<script' "$work/report.html"; then fail "the page is not self-contained"; fi
# Static scales are calibrated on the input itself.
run 0 accuracy "$model" --layer 2 --input "$model/hidden.npy" --scheme mxfp4-w4a16+fp8-tensor:static+fp8-tensor --json
[ "$(sqnr fp8-tensor:static)" -gt "$(sqnr mxfp4-w4a16)" ] || fail "static fp8 is not better than 4 bits"
[ "$(sqnr fp8-tensor:static)" -le "$(sqnr fp8-tensor)" ] || fail "one scale for all beats one a call"
run 64 accuracy "$model" --layer 99
run 65 accuracy "$model" --input "$root/tests/vectors/checkpoints/olmoe/x.npy"
run 73 accuracy "$model" --layer 0 --html "$work/no/report.html"
finish
