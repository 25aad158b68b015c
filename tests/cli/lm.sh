#!/usr/bin/env bash
# The language model of examples/lm: logits against those that transformers computed, whole prompts
# and byte by byte through the KV cache; sampling; the table's measures; errors.
# ctest: cost=30
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
bin=$(dirname "$CMOE")
model=$root/models/tiny-moe
if [ ! -x "$bin/cmoe-lm-demo" ] || [ ! -x "$bin/cmoe-lm-schemes" ]; then
    echo "the example programs are not built"
    exit 77
fi
failed=0
fail() { echo "FAILED: $*"; failed=1; }

demo() { "$bin/cmoe-lm-demo" --model "$model" "$@"; }
schemes() { "$bin/cmoe-lm-schemes" --model "$model" "$@"; }

# Logits are as large as 21. In f32 only the order of sums differs from transformers; in bf16 the
# roundings inside the experts do, and transformers' own bf16 run is 0.36 away from its f32 run.
runs="cpu/512 cpu/1 ref/512"
if [ "${TEST_SHORT:-0}" != 0 ]; then runs="cpu/512 cpu/1"; fi
for run in $runs; do
    schemes --device ${run%/*} --windows 0 --step ${run#*/} --max-error 2e-4 f32 ||
        fail "f32 on device/bytes at a time $run"
    schemes --device ${run%/*} --windows 0 --step ${run#*/} --max-error 0.5 bf16 ||
        fail "bf16 on device/bytes at a time $run"
done
schemes --windows 0 --max-error 1e-9 f32 >/dev/null 2>&1 && fail "--max-error allows everything"

# Every scheme: within what 4 bits cost a model this small, and an error of its own.
some=() least=19
if [ "${TEST_SHORT:-0}" != 0 ]; then some=(fp8-block int8-smooth int4-w4a8 nvfp4-w4a4) least=4; fi
table=$(schemes --windows 0 --max-error 8 "${some[@]}") || fail "a scheme is far from the reference logits"
echo "$table"
echo "$table" | awk -v least=$least 'NR > 1 && !/^experts on / { n++; if ($4 !~ /^[0-9.e+-]+$/ || $4 + 0 <= 0) bad = 1 }
    END { exit n < least || bad }' || fail "the table has missing or zero errors"

# Perplexity: transformers has 1.161 bits a byte on the whole text with more context, that is 2.24.
value=$(schemes --windows 1 f32 | awk 'NR == 2 { print $3 }')
awk -v p="$value" 'BEGIN { exit !(p > 1.7 && p < 3) }' || fail "perplexity $value"

text() { demo --tokens 60 "$@" | sed -n '1,/^[0-9]* tokens, /p' | sed '$d'; }
a=$(text --seed 1)
[ "$a" = "$(text --seed 1)" ] || fail "the same seed gives another text"
[ "$a" != "$(text --seed 2)" ] || fail "another seed gives the same text"
[ "$(text --temp 0 --seed 1)" = "$(text --temp 0 --seed 2)" ] || fail "temperature 0 depends on the seed"
case $a in "And the children of Israel"*) ;; *) fail "the text does not start with the prompt: $a" ;; esac
[ "${#a}" -ge 80 ] || fail "the text is too short: $a"
[ "$(demo --tokens 5 | grep -c '^layer [0-3] |')" = 4 ] || fail "the loads of 4 layers are not there"

# error <part of the message> <command>...: exit status 1 and one line about it.
error() {
    local part=$1 message
    shift
    message=$("$@" 2>&1 >/dev/null)
    [ $? = 1 ] || fail "exit status of: $*"
    case $message in *"$part"*) ;; *) fail "message of: $*: $message" ;; esac
    [ "$(wc -l <<<"$message")" = 1 ] || fail "more than one line: $message"
}
error 'no scheme "int3"' demo --scheme int3
error 'no scheme "int3"' schemes int3
error "$root/tests" "$bin/cmoe-lm-demo" --model "$root/tests"
error '1 to 512 bytes' demo --prompt ''
error 'may have 512 bytes' demo --tokens 600
error 'not a number' demo --temp hot
error 'nowhere' demo --device nowhere
exit $failed
