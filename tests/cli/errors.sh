#!/bin/sh
# Bad input: the exit code, one sentence on standard error, and nothing written.
. "$(dirname "$0")/common"
mkdir "$work/here"
cd "$work/here"
listing=$work/listing
mkdir in
cp "$model/config.json" "$model/model.safetensors" in/
cp "$model/hidden.npy" .

# bad <exit code> <regular expression> <arguments>...
bad() {
    expected=$1 sentence=$2
    shift 2
    ls -R . >"$listing"
    code=0
    "$CMOE" "$@" >"$work/out" 2>"$work/err" </dev/null || code=$?
    [ "$code" = "$expected" ] || fail "cmoe $*: exit code $code, not $expected: $(cat "$work/err")"
    grep -qE "^cmoe: .*$sentence" "$work/err" || fail "cmoe $*: '$sentence' is not in: $(cat "$work/err")"
    [ "$(wc -l <"$work/err")" = 1 ] || fail "cmoe $*: not one line: $(cat "$work/err")"
    [ ! -s "$work/out" ] || fail "cmoe $*: printed to standard output"
    ls -R . | cmp -s - "$listing" || fail "cmoe $*: left files behind"
}
layer="--layer 2 --input hidden.npy --output out.npy"

# the command line
bad 64 'a command is missing'
bad 64 "unknown command 'frob'" frob
bad 64 "unknown option '--frob'" info --frob
bad 64 "unknown option '-x'" info -x
bad 64 "unexpected argument 'extra'" list extra
bad 64 "no value after '--seed'" check --seed
bad 64 '--seed=-1 is not a whole number' check --seed -1
bad 64 '--count=1e3 is not a whole number' check --count 1e3
bad 64 '--count=0 is not' check --count 0
bad 64 "given twice" check --seed 1 --seed 2
bad 64 '--tokens=-5 is not' explain --model olmoe --tokens -5
bad 64 '--x-scale=0 is not' run --model in $layer --scheme mxfp4-w4a8 --x-scale 0
bad 64 '--layer=-1 is not' run --model in --layer -1 --input hidden.npy
bad 64 'run needs --model' run --layer 0 --input hidden.npy
bad 64 'run needs --input' run --model in --layer 0
bad 64 'explain needs --problem or --model' explain
bad 64 'replay needs DIR' replay
bad 64 "'x', which is no token count" bench --model olmoe --tokens 1,x
bad 64 'exclude each other' check --count 3 --problem 'e=1 k=1 h=4 i=4'
bad 64 'list: takes one option' list --json --markdown

# problems, schemes, models, devices, kernels
bad 64 'topk \(k\) is 9.* experts, which is 4' explain --problem 'e=4 k=9 h=8 i=8'
bad 64 'topk \(k\) is 9.* experts, which is 4' check --problem 'e=4 k=9 h=8 i=8'
bad 64 'hidden \(h\) is 0' explain --problem 'e=4 k=2'
bad 64 'hidden \(h\) is -8' explain --problem 'e=4 k=2 h=-8 i=8'
bad 64 'bogus' explain --problem 'e=4 k=2 h=8 i=8 bogus=1'
bad 64 'nope' explain --model nope
bad 64 'fp8-nope' explain --model olmoe --scheme fp8-nope
bad 64 'fp8-nope' run --model in $layer --scheme fp8-nope
bad 64 'fp8-nope' bench --model olmoe --scheme fp8-nope
bad 64 'abacus' explain --model olmoe --device abacus
bad 69 'cuda' explain --model olmoe --device cuda:0
bad 69 "no kernel matches --kernels 'no_such_\*'; see cmoe list" check --kernels 'no_such_*'
bad 69 'no kernel matches and can run' check --kernels 'sort_m_indices*' --problem 'e=2 k=1 h=8 i=8'
bad 64 'no scheme "fp9"; "cmoe list --schemes"' explain --model olmoe --scheme fp9
bad 64 'no model preset "nope"; "cmoe list --models"' explain --model nope
bad 64 'matches no kernel of cpu; "cmoe list"' explain --model olmoe --pin 'no_such_*'
bad 65 'no safetensors file' inspect "$root/README.md"
bad 71 'GiB' bench --problem 'e=4096 k=8 h=16384 i=16384'

# files
bad 66 'missing' run --model missing $layer
bad 66 'missing.npy' run --model in --layer 2 --input missing.npy --output out.npy
bad 66 'missing' replay missing
bad 64 'layer' run --model in --layer 9 --input hidden.npy --output out.npy
bad 65 'has 1024 elements, but the output has 8192' run --model in $layer \
    --expected "$model/hidden_layer2_router_logits.npy"
bad 73 'no/such/folder' run --model in --layer 2 --input hidden.npy --output no/such/folder/out.npy
bad 73 'no/such/folder' bench --problem 'e=2 k=1 h=8 i=8' --tokens 1 --json no/such/folder/x
printf 'not an array' >text.npy
bad 65 'text.npy' run --model in --layer 2 --input text.npy --output out.npy
head -c 4000 hidden.npy >short.npy
bad 65 'short.npy' run --model in --layer 2 --input short.npy --output out.npy
bad 65 'columns' run --model in --layer 2 --input "$model/logits-0.npy" --output out.npy

mkdir truncated bad-config bad-topk half
head -c 1000000 in/model.safetensors >truncated/model.safetensors
cp in/config.json truncated/
bad 65 'safetensors' run --model truncated $layer
head -c 100 in/model.safetensors >half/model.safetensors
cp in/config.json half/
bad 65 'safetensors' run --model half $layer
cp in/model.safetensors bad-config/
echo '{"model_type": ' >bad-config/config.json
bad 65 'config.json' run --model bad-config $layer
cp in/model.safetensors bad-topk/
sed 's/"num_experts_per_tok": *[0-9]*/"num_experts_per_tok": 99/' in/config.json >bad-topk/config.json
bad 65 'topk .* is 99' run --model bad-topk $layer
sed 's/"model_type": *"[^"]*"/"model_type": "perceptron"/' in/config.json >bad-config/config.json
bad 69 'perceptron' run --model bad-config $layer
finish
