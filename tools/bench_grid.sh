#!/usr/bin/env bash
# bench_grid.sh <device> <result.json> [build folder]: cmoe bench over models, schemes and token counts, as
# one JSON object with the date, the machine and the command. MODELS, SCHEMES, TOKENS, MIN_TIME, PROBLEM
# and REST say what; without PROBLEM layers begin behind routing, and an empty one leaves them whole. A model's own
# changes follow its name (deepseek-v3-ep8:e=32,local=32). LIMIT ends it after so many seconds with the models that are
# done.
set -eu
device=${1:?usage: bench_grid.sh DEVICE RESULT [BUILD]} result=${2:?no result file}
build=$(cd "${3:-build/release}" && pwd)
export LD_LIBRARY_PATH=$build${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
problem=${PROBLEM-stages=quant..combine}
timing=(--min-time "${MIN_TIME:-0.1}")
[ -z "${REST:-}" ] || timing+=(--rest "$REST")
end=$((SECONDS + ${LIMIT:-540}))
: >"$work/cells"
for entry in $MODELS; do
    model=${entry%%:*} own=
    [ "$model" = "$entry" ] || own=" ${entry#*:}"
    changes=$problem${own//,/ }
    left=$((end - SECONDS))
    if [ "$left" -le 0 ]; then echo "bench_grid: no time for $model" >&2; continue; fi
    timeout "$left" "$build/cmoe" bench --device "$device" --model "$model" ${changes:+--problem "$changes"} \
        --scheme "$SCHEMES" --tokens "$TOKENS" "${timing[@]}" --json - >>"$work/cells" ||
        echo "bench_grid: $model ended with $?" >&2
done
# A command that was stopped may leave half a line.
grep '}$' "$work/cells" | paste -sd, | sed 's/}, *{/},\n{/g' >"$work/list"
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -1 || true)
{
    printf '{"date": "%s", "driver": "%s", "version": "%s",\n' "$(date -u +%F)" \
        "${driver:-none}" "$("$build/cmoe" --version 2>/dev/null | head -1)"
    printf '"command": "cmoe bench --device %s --model MODEL%s --scheme %s --tokens %s %s",\n' \
        "$device" "${problem:+ --problem $problem}" "$SCHEMES" "$TOKENS" "${timing[*]}"
    printf '"cells": [\n'
    cat "$work/list"
    printf ']}\n'
} >"$result"
echo "bench_grid: $(grep -c us_median "$result") cells in $result"
