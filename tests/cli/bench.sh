#!/bin/sh
# bench: one JSON object a point with the promised fields, and a file only when complete.
. "$(dirname "$0")/common"

small="e=4 k=2 h=64 i=32"
run 0 bench --problem "$small" --tokens 1,3 --scheme bf16+int4-w4a16:g32,zp --min-time 0.01 \
    --json "$work/points"
[ ! -s "$work/out" ] || fail "bench --json FILE prints a table"
[ "$(wc -l <"$work/points")" = 4 ] || fail "not four points"
for field in model problem tokens scheme device us_median us_min us_p90 tflops gbps error plan; do
    [ "$(grep -c "\"$field\": " "$work/points")" = 4 ] || fail "no field $field"
done
has "$work/points" '"tokens": 3, "scheme": "int4-w4a16:g32,zp"'
has "$work/points" '"error": [0-9.e-]*[0-9], "plan": "[a-z0-9_]*__'
[ ! -e "$work/points.partial" ] || fail "points.partial is left"
run 0 bench --model olmoe --problem "h=32 i=32" --tokens 2 --scheme all --min-time 0.001
has "$work/out" '^nvfp4-w4a4  *2 '
[ "$(wc -l <"$work/out")" = 20 ] || fail "not a heading and 19 schemes"
run 64 bench --problem "$small" --tokens 1 --min-time 0.001 --scheme bf16+nope --json "$work/none"
[ ! -e "$work/none" ] && [ ! -e "$work/none.partial" ] || fail "a failed bench left a file"
finish
