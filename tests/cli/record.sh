#!/bin/sh
# CMOE_RECORD and replay: what was recorded gives the same result again.
. "$(dirname "$0")/common"

for scheme in bf16 int4-w4a16:g64,zp mxfp4-w4a8 nvfp4-w4a4; do
    with "CMOE_RECORD=$work/call" run 0 run --model "$model" --layer 1 --input "$model/hidden.npy" \
        --scheme "$scheme"
    has "$work/err" '^cmoe: recorded the call in '
    [ -s "$work/call/problem.txt" ] || fail "no problem.txt"
    grep '^problem' "$work/out" >"$work/problem"
    grep '^reference' "$work/out" >"$work/reference"
    run 0 replay "$work/call"
    grep '^problem' "$work/out" | cmp -s - "$work/problem" || fail "$scheme: another problem"
    grep '^reference' "$work/out" | cmp -s - "$work/reference" || fail "$scheme: another result"
    run 0 replay "$work/call" --device ref --json
    has "$work/out" '"outside": 0'
    rm -rf "$work/call"
done
with "CMOE_RECORD=$work/call" run 0 check --problem 'e=3 k=2 h=20 i=24 stages=quant..combine acc=0.5' --seed 2
run 0 replay "$work/call"
has "$work/out" '^reference *within'

# A record that was damaged is refused.
echo 'e=3 k=2 h=20 i=-1' >"$work/call/problem.txt"
run 65 replay "$work/call"
with "CMOE_RECORD=/dev/null/x" run 73 run --model "$model" --layer 1 --input "$model/hidden.npy"
finish
