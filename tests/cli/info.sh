#!/bin/sh
# info and list print what they promise, as text and as JSON; the environment is obeyed.
. "$(dirname "$0")/common"

run 0 info
for key in version cpu isa features l1d l2 l3 memory threads backends; do has "$work/out" "^$key"; done
for backend in ref cpu cuda; do has "$work/out" "^  $backend "; done
run 0 info --json
has "$work/out" '^{"version": "[0-9.]*", "cpu": ".*", "backends": \[{"name": .*}\]}$'
with "CMOE_CPU=generic CMOE_THREADS=1" run 0 info
has "$work/out" '^isa *generic$'
has "$work/out" '^threads *1,'
with "CMOE_CPU=sse9" run 64 info
has "$work/err" '^cmoe: .*sse9'

run 0 list
has "$work/out" '^kernel .*backend .*target .*stages .*weights'
has "$work/out" '^gemm1__ref .*ref .*gemm1 .*canonical'
rows=$(($(wc -l <"$work/out") - 1))
run 0 list --json
[ "$(wc -l <"$work/out")" = "$rows" ] || fail "list --json does not print one line a kernel"
[ "$(grep -c '^{"name": ".*}$' "$work/out")" = "$rows" ] || fail "list --json prints other lines"
# The list does not depend on what this CPU can run.
run 0 list
cp "$work/out" "$work/all"
with "CMOE_CPU=generic" run 0 list
cmp -s "$work/all" "$work/out" || fail "list depends on the instruction set"
finish
