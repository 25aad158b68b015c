#!/usr/bin/env bash
# fuzz.sh <build folder> [seconds]: run every fuzz target that long (20 by default), two at a time, from
# the inputs in tests/fuzz/corpus/<target>. New inputs stay in the build folder; a crash is reproduced
# by <build folder>/tests/<target> <crash file>.
set -eu
cd "$(dirname "$0")/.."
build=$1
seconds=${2:-20}

one() {
    local target=$1 name work
    name=${target##*/}
    work=$build/fuzzing/$name
    mkdir -p "$work/corpus"
    local inputs=("$work/corpus")
    if [ -d "tests/fuzz/corpus/$name" ]; then inputs+=("tests/fuzz/corpus/$name"); fi
    if "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -verbosity=1 -print_final_stats=1 \
        -artifact_prefix="$work/" "${inputs[@]}" >"$work/log" 2>&1; then
        echo "PASS $name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$work/log") runs"
    else
        tail -n 25 "$work/log"
        echo "FAIL $name: see $work"
        return 1
    fi
}

targets=()
for source in tests/fuzz/fuzz_*.c; do
    if [ -e "$source" ]; then targets+=("$build/tests/$(basename "$source" .c)"); fi
done
if [ ${#targets[@]} = 0 ]; then echo "fuzz: no targets yet"; exit 0; fi

export -f one
export build seconds
# shellcheck disable=SC2016 # the inner shell expands it
printf '%s\n' "${targets[@]}" | xargs -n 1 -P 2 bash -c 'one "$0"'
