#!/usr/bin/env bash
# examples/minimal.c, the README's example, prints what the formula gives: y = sum over the best two
# experts of softmax weight * down * silu(gate x) * (up x), computed apart in double precision.
set -u
program=$(dirname "$CMOE")/example_minimal
if [ ! -x "$program" ]; then
    echo "the example is not built"
    exit 77
fi
want='2.0892 -3.7046
1.3836 1.2878'
got=$("$program")
status=$?
if [ $status != 0 ] || [ "$got" != "$want" ]; then
    printf 'exit status %s, printed\n%s\nwhere this was expected\n%s\n' "$status" "$got" "$want"
    exit 1
fi
