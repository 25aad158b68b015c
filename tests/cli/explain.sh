#!/bin/sh
# explain prints a path for every model and scheme, on both devices.
. "$(dirname "$0")/common"

has_path() {
    for stage in route sort gemm1 act gemm2 combine; do
        grep -qE "^ +($stage|[a-z0-9]+\.\.[a-z0-9]+) " "$work/out" ||
            fail "explain $*: no step for $stage"
    done
}

run 0 list --models
cp "$work/out" "$work/models"
run 0 list --schemes
cp "$work/out" "$work/schemes"
while read -r name; do
    run 0 explain --model "$name" --tokens 64
    has "$work/out" "^problem: t=64 e="
    has_path --model "$name"
done <"$work/models"
while read -r scheme; do
    for device in ref cpu; do
        run 0 explain --problem "e=16 k=4 h=256 i=128 scheme=$scheme" --tokens 64 --device $device
        has_path --problem "scheme=$scheme"
    done
    run 0 explain --model olmoe --scheme "$scheme" --json
    has "$work/out" '"path": "[a-z0-9_]*__.*", "weights1": '
done <"$work/schemes"
# --problem stands on top of --model, --pin is obeyed.
run 0 explain --model mixtral-8x7b --problem 'i=1792 scheme=fp8-block'
has "$work/out" '^problem: .* i=1792 .*w=e4m3/b128'
run 0 explain --model mixtral-8x7b --tokens 8 --pin 'gemm1__ref' --json
has "$work/out" '"path": "[^"]*gemm1__ref'
# A line of a tuned table (docs/tuning.md), from what explain prints: the row of a handful of tokens becomes dear.
few='e=8 k=2 h=64 i=32'
run 0 explain --problem "$few" --tokens 1
device=$(sed -n 's/^device: \([^ ]*\) .*/\1/p' "$work/out")
hash=$(sed -n 's/^hash: //p' "$work/out")
row=$(awk '$2 ~ /^moe_/ { print $2; exit }' "$work/out")
[ -n "$row" ] || fail "explain: one token takes no row of the whole layer"
echo "$device,$hash,1,$row,1000000" >"$work/tuned"
export CMOE_TUNED="$work/tuned"
run 0 explain --problem "$few" --tokens 1 --json
unset CMOE_TUNED
! grep -qE "\"path\": \"[^\"]*$row" "$work/out" || fail "explain: the table of measured times is not read"
run 64 explain --model mixtral-8x7b --pin 'no_such_row'
has "$work/err" '^cmoe: .*no_such_row'
finish
