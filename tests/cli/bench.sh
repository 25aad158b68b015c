#!/bin/sh
# bench: one JSON object a point with the promised fields, and a file only when complete.
. "$(dirname "$0")/common"

small="e=4 k=2 h=64 i=32"
run 0 bench --problem "$small" --tokens 1,3 --scheme bf16+int4-w4a16:g32,zp --min-time 0.01 \
    --json "$work/points"
[ ! -s "$work/out" ] || fail "bench --json FILE prints a table"
[ "$(wc -l <"$work/points")" = 4 ] || fail "not four points"
for field in model problem tokens scheme device us_median us_min us_p90 tflops gbps error plan rest_s \
    routing routings weight_sets slots experts_hit flop bytes runs error_of_bound \
    read_gbps_before read_gbps_after dot_tflops us_floor roof_percent; do
    [ "$(grep -c "\"$field\": " "$work/points")" = 4 ] || fail "no field $field"
done
has "$work/points" '"tokens": 3, "scheme": "int4-w4a16:g32,zp"'
has "$work/points" '"error": [0-9.e-]*[0-9], "error_of_bound": [0-9.e-]*[0-9],'
has "$work/points" '"plan": "[a-z0-9_]*__'
[ ! -e "$work/points.partial" ] || fail "points.partial is left"
run 0 bench --model olmoe --problem "h=32 i=32" --tokens 2 --scheme all --min-time 0.001
has "$work/out" '^nvfp4-w4a4  *2 '
[ "$(wc -l <"$work/out")" = 20 ] || fail "not a heading and 19 schemes"
run 64 bench --problem "$small" --tokens 1 --min-time 0.001 --scheme bf16+nope --json "$work/none"
[ ! -e "$work/none" ] && [ ! -e "$work/none.partial" ] || fail "a failed bench left a file"

# Routings: where a given order goes is counted.
given="$small stages=quant..combine"
run 0 bench --problem "$given" --tokens 8 --routing hot --min-time 0.001 --json -
has "$work/out" '"routing": "hot".*"slots": 16, "experts_hit": [34]'
run 0 bench --problem "e=64 k=1 h=32 i=32" --tokens 32 --routing zipf:6 --min-time 0.001 --json -
has "$work/out" '"slots": 32, "experts_hit": [1-9]\.*[0-9]*,'
python3 - "$work/ids.npy" <<'END'
import struct, sys
head = "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 2), }"
head += " " * (117 - len(head)) + "\n"
with open(sys.argv[1], "wb") as f:
    f.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode())
    f.write(struct.pack("<4i", 1, 3, 1, 3))
END
run 0 bench --problem "$given" --tokens 5 --routing "$work/ids.npy" --min-time 0.001 --json -
has "$work/out" '"slots": 10, "experts_hit": 2,'
run 64 bench --problem "$given" --tokens 5 --routing zipf:x
run 66 bench --problem "$given" --tokens 5 --routing "$work/absent.npy"
run 65 bench --problem "$given" --tokens 5 --routing "$model/hidden.npy"

# Ceilings: reading and products are measured, and the floor is what they give.
has "$work/points" '"read_gbps_after": [0-9.]*[1-9], "dot_tflops": [0-9.e-]*[1-9]'
python3 "$root/tools/bench_compare.py" "$work/points" "$work/points" >"$work/out" ||
    fail "bench_compare.py ends with $?"
has "$work/out" '^4 cells, geometric mean of B/A 1.000; 0 only in A'

# Runs into one file: of each cell the shorter median, if the plan is the last run's.
python3 - "$work/points" "$work/one" "$work/two" <<'END'
import json, sys
cells = [json.loads(line) for line in open(sys.argv[1])]
for path, times, plan in ((sys.argv[2], (1, 2, 1, 2), "another"), (sys.argv[3], (2, 1, 2, 1), cells[2]["plan"])):
    for cell, time in zip(cells, times):
        cell["us_median"] = time
    cells[2]["plan"] = plan
    json.dump({"date": path, "driver": "none", "version": "v", "command": "c", "cells": cells}, open(path, "w"))
END
python3 "$root/tools/bench_merge.py" "$work/merged" "$work/one" "$work/two" || fail "bench_merge.py ends with $?"
[ "$(sed -n 's/.*"us_median": \([0-9]*\),.*/\1/p' "$work/merged" | paste -sd ' ')" = "1 1 2 1" ] || fail "not the shorter medians"
has "$work/merged" '"note": "2 whole runs: .*(1 of 4 are of an earlier one)'
python3 "$root/tools/bench_merge.py" "$work/merged" "$work/one" 2>/dev/null && fail "bench_merge.py takes one run"

# Five samples and a call to warm up, each after a rest.
start=$(date +%s%N)
run 0 bench --problem "$small" --tokens 2 --min-time 0.001 --rest 0.05 --json -
[ $(($(date +%s%N) - start)) -gt 300000000 ] || fail "did not rest"
has "$work/out" '"rest_s": 0.05,'
run 64 bench --problem "$small" --tokens 2 --rest 61
run 64 bench --problem "$small" --tokens 2 --rest nan

# Steps, under the stages they end with.
run 0 bench --problem "$small stages=sort..combine" --tokens 2 --min-time 0.001 --pin '*__ref' --stages --json -
has "$work/out" '"stage_us": {"sort": [0-9.e-]*, "gemm1": [0-9.e-]*, "act": .*, "gemm2": .*, "combine": [0-9.e-]*}'
run 0 bench --problem "$small" --tokens 2 --min-time 0.001 --stages
has "$work/out" '^  us up to  .* combine [0-9]'

# Two plans in turn, and CSV.
run 0 bench --problem "$small" --tokens 2 --min-time 0.001 --vs '*__ref' --json -
has "$work/out" '"against": {"us_median": [0-9.e-]*, .*"plan": "[^"]*__ref'
run 0 bench --problem "$small" --model olmoe --tokens 2,3 --min-time 0.001 --csv "$work/csv"
head -1 "$work/csv" | grep -qxF 'model,M,N,K,E,top_k,Time_(ms),TFLOPS,Bandwidth_(GB/s)' ||
    fail "the heading of the CSV file"
has "$work/csv" '^olmoe,3,32,64,4,2,[0-9.e-]*,[0-9.e-]*,[0-9.e-]*$'
[ "$(wc -l <"$work/csv")" = 3 ] || fail "not a heading and two points"
run 64 bench --problem "$small" --csv - --json -
run 69 bench --problem "$small" --device cuda:999
finish
