#!/bin/sh
# check: random problems and single ones, and its report.
# ctest: cost=15
. "$(dirname "$0")/common"

run 0 check --count 25 --seed 5
has "$work/out" '^kernel *exact *real *failures *mostly zero *worst ratio$'
has "$work/out" '^25 problems .* 0 failed, seed 5$'
has "$work/out" '^gemm1__ref  *[0-9]'
cp "$work/out" "$work/first"
run 0 check --count 25 --seed 5
cmp -s "$work/first" "$work/out" || fail "two runs with one seed differ"
run 0 check --kernels 'act__*,combine__ref' --problem 'e=3 k=2 h=20 i=24' --seed 3
has "$work/out" '^act__ref '
has "$work/out" '^combine__ref '
[ "$(grep -c __ "$work/out")" = "$(grep -c '^act__\|^combine__ref' "$work/out")" ] ||
    fail "--kernels lets other rows through"
run 0 check --kernels 'gemm1__ref' --problem 'e=3 k=2 h=20 i=24 scheme=int8-w8a8' --json
has "$work/out" '^{"kernel": "gemm1__ref", "exact": 1, "real": 1, "failures": 0, .*}$'
# Rows of ref stand in on cpu where it has none.
run 0 check --kernels 'gemm1__ref' --problem 'e=3 k=2 h=20 i=24 scheme=mxfp8' --device cpu
has "$work/out" '^gemm1__ref  *1  *1  *0'
finish
