#!/bin/sh
# docs/support-matrix.md is what list --markdown prints.
. "$(dirname "$0")/common"

[ "$(uname -m)" = x86_64 ] || exit 77
run 0 list --markdown
if [ "${UPDATE:-0}" = 1 ]; then cp "$work/out" "$root/docs/support-matrix.md"; fi
# Builds without CUDA lack those rows.
committed=$root/docs/support-matrix.md
"$CMOE" info | grep -q 'cuda .*left out' && grep -v '| cuda ' "$committed" >"$work/committed" &&
    committed=$work/committed
diff -u "$committed" "$work/out" >&2 ||
    fail "docs/support-matrix.md is not what cmoe list --markdown prints"
cp "$work/out" "$work/first"
with "CMOE_CPU=generic CMOE_THREADS=1" run 0 list --markdown
cmp -s "$work/first" "$work/out" || fail "the matrix depends on the machine"
finish
