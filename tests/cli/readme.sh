#!/usr/bin/env bash
# The README's program is examples/minimal.c to the letter (example_minimal.sh compiles and runs it),
# and its two make targets exist.
set -eu
cd "$SRCDIR"
diff <(sed -n '/^#include/,$p' examples/minimal.c) <(sed -n '/^```c$/,/^```$/p' README.md | sed '1d;$d')
grep -q '^demo\b' Makefile
grep -Eq '^check\b|\bcheck\b.*:' Makefile
