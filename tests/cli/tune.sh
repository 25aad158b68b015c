#!/bin/sh
# tune: from a table that makes a plan slow to one that does not.
. "$(dirname "$0")/common"

layer='e=8 k=2 h=256 i=128'
run 0 explain --problem "$layer" --tokens 8
key=$(sed -n 's/^device: \([^ ]*\) .*/\1/p' "$work/out"),$(sed -n 's/^hash: //p' "$work/out")
for row in gemm1__ref gemm2__ref; do echo "$key,8,$row,0.001"; done >"$work/table"
with "CMOE_TUNED=$work/table" run 0 explain --problem "$layer" --tokens 8 --json
has "$work/out" '"path": "[^"]*gemm1__ref'
run 0 tune --problem "$layer" --tokens 8 --min-time 0.01 --table "$work/table"
has "$work/out" '^- *8  *[0-9.]*  *[0-9.]*  *0\.[0-9]*  [a-z0-9_]*__'
has "$work/out" '; 1 of 1 points faster by more than 2 %, geometric mean of ratios 0\.'
lines=$(sed -n 's/^\([0-9]*\) lines added to .*/\1/p' "$work/out")
[ "$(grep -cE "^$key,8,[a-z0-9_]+,[0-9]+\.[0-9]{3},[0-9]{4}-[0-9]{2}-[0-9]{2},[0-9.]+$" "$work/table")" = "$lines" ] ||
    fail "not $lines lines of a table"
with "CMOE_TUNED=$work/table" run 0 explain --problem "$layer" --tokens 8 --json
grep -q '"path": "[^"]*gemm[12]__ref' "$work/out" && fail "the table still makes the plan slow"

# Nothing is right on a driver that computes nothing: no plan has a time.
driver=$(dirname "$CMOE")/tests/driver
if [ -e "$driver/libcuda.so.1" ] && "$CMOE" list | grep -q ' cuda '; then
    with "LD_LIBRARY_PATH=$driver" run 1 tune --problem "$layer stages=quant..combine" --tokens 8 --device cuda:0 --table "$work/none"
    has "$work/err" '^cmoe: tune: left out, as its results are outside the bound: [a-z0-9_]*__'
    has "$work/out" '^0 plans timed'
    [ ! -e "$work/none" ] || fail "wrong plans made lines"
fi

# Without --table nothing is written; what cannot be tuned is said.
cp "$work/table" "$work/before"
with "CMOE_TUNED=$work/table" run 0 tune --problem "$layer" --tokens 8 --scheme bf16+int8-w8a8 --min-time 0.001 --within 1.01
has "$work/out" '^int8-w8a8  *8 '
cmp "$work/table" "$work/before" || fail "the table changed"
run 0 tune --problem "$layer" --tokens 8 --min-time 0.001 --within 1.001 --budget 0.001 --table "$work/new"
has "$work/out" '^0 lines added to '
[ ! -e "$work/new" ] || fail "an empty table is left"
run 64 tune --problem "$layer" --tokens 0
run 64 tune --problem "$layer stages=gemm1" --tokens 8
run 73 tune --problem "$layer" --tokens 8 --table "$work/nowhere/table"
run 69 tune --problem "$layer" --device cuda:999
finish
