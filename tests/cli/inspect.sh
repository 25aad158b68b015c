#!/bin/sh
# inspect of every committed checkpoint; broken ones give one sentence and 65, quickly.
. "$(dirname "$0")/common"

for folder in "$root"/tests/vectors/checkpoints/*; do
    path=$folder
    if [ -e "$folder/model.gguf" ]; then path=$folder/model.gguf; fi
    run 0 inspect "$path" --deep
    has "$work/out" '^complete *1 of 1 checked$'
    has "$work/out" '^ *[01]  weights  '
    if grep -q '^unknown' "$work/out"; then fail "$folder has unknown tensors"; fi
done
run 0 inspect "$model"
has "$work/out" '^complete *4 of 4 checked$'
has "$work/out" '^an expert *49152 bytes, read in place$'
run 0 inspect "$root/tests/vectors/checkpoints/gguf-q8_0/model.gguf" --json
has "$work/out" '^{"family": "qwen3_moe", "quantization": "gguf", .*"expert_bytes": 13056, "mapped": false'
run 0 inspect "$root/tests/vectors/safetensors/types.safetensors"
has "$work/out" 'family and geometry are not known'
run 66 inspect "$work/nothing"
run 64 inspect

# Hostile files: one sentence, 65, under 1 s and 64 MB.
checkpoint=$root/tests/vectors/checkpoints
copy() {
    rm -rf "$work/bad"
    cp -r "$checkpoint/$1" "$work/bad"
    chmod -R u+w "$work/bad"
}
# A sanitized program reserves terabytes of addresses before it starts: no limit there.
limit='ulimit -v 65536'
(eval "$limit" && "$CMOE" --version) >/dev/null 2>&1 || limit=:
# bad <what> <file in the copy>: inspect fails with one sentence, in little time and memory.
bad() {
    code=0
    (eval "$limit" && timeout 1 "$CMOE" inspect "$work/bad/$2") >"$work/out" 2>"$work/err" || code=$?
    [ "$code" = 65 ] || fail "$1: exit code $code: $(cat "$work/err")"
    [ "$(wc -l <"$work/err")" = 1 ] || fail "$1: not one sentence: $(cat "$work/err")"
    has "$work/err" '^cmoe: ..*'
}
st=model.safetensors
copy qwen3_moe-int4
head -c 1000 "$checkpoint/qwen3_moe-int4/$st" >"$work/bad/$st"
bad "truncated header" .
copy qwen3_moe-int4
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n' >"$work/bad/$st"
bad "LFS pointer" .
copy qwen3_moe-int4
printf '\377\377\377\377\377\377\377\177{}' >"$work/bad/$st"
bad "header length past the file" .
copy qwen3_moe-int4
echo x >>"$work/bad/$st"
bad "trailing bytes" .
copy qwen3_moe-int4
sed -i 's/"num_local_experts": 4/"num_local_experts": 5/' "$work/bad/config.json"
bad "a missing expert" .
copy qwen3_moe-int4
sed -i 's/"hidden_size": 64/"hidden_size": 96/' "$work/bad/config.json"
bad "another geometry" .
copy qwen3_moe-int4
sed -i 's/"num_local_experts": 4/"num_local_experts": 400000000/' "$work/bad/config.json"
bad "a huge geometry" .
copy qwen3_moe-int4
head -c 300 "$checkpoint/qwen3_moe-int4/config.json" >"$work/bad/config.json"
bad "half a configuration" .
copy qwen3_moe-int4
printf '{"weight_map": {"a": "../../etc/passwd"}}' >"$work/bad/$st.index.json"
bad "a shard outside" .
copy gguf-q8_0
head -c 700 "$checkpoint/gguf-q8_0/model.gguf" >"$work/bad/model.gguf"
bad "truncated metadata" model.gguf
copy gguf-q8_0
head -c 30000 "$checkpoint/gguf-q8_0/model.gguf" >"$work/bad/model.gguf"
bad "truncated data" model.gguf
printf 'GGUF\003\0\0\0\377\377\377\377\377\377\377\177\0\0\0\0\0\0\0\0' >"$work/bad/model.gguf"
bad "2^63 tensors" model.gguf
printf 'GGUF\003\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0a\011\0\0\0\010\0\0\0\377\377\377\377\377\377\377\177' >"$work/bad/model.gguf"
bad "an array of 2^63 strings" model.gguf
finish
