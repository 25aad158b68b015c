#!/usr/bin/env bash
# fuzz.sh <build folder> [seconds|runs=N] [target...]: run every fuzz target (or those named) that long,
# 20 s by default, two at a time, from the inputs in tests/fuzz/corpus/<target> and those that earlier
# runs left in the build folder. A crash is reproduced by <build folder>/tests/<target> <crash file>.
set -eu
cd "$(dirname "$0")/.."
build=$1
case ${2:-20} in
runs=*) limit=-$2 ;;
*) limit=-max_total_time=${2:-20} ;;
esac
names=("${@:3}")

one() {
    local target=$1 name work
    name=${target##*/}
    work=$build/fuzzing/$name
    mkdir -p "$work/corpus"
    local inputs=("$work/corpus")
    if [ -d "tests/fuzz/corpus/$name" ]; then inputs+=("tests/fuzz/corpus/$name"); fi
    if "$target" "$limit" -timeout=10 -rss_limit_mb=2048 -verbosity=1 -print_final_stats=1 \
        -artifact_prefix="$work/" "${inputs[@]}" >"$work/log" 2>&1; then
        echo "PASS $name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$work/log") runs"
    else
        tail -n 25 "$work/log"
        echo "FAIL $name: see $work"
        return 1
    fi
}

targets=()
if [ ${#names[@]} = 0 ]; then
    for source in tests/fuzz/fuzz_*.c; do names+=("$(basename "$source" .c)"); done
fi
for name in "${names[@]}"; do targets+=("$build/tests/$name"); done

export -f one
export build limit
# shellcheck disable=SC2016 # the inner shell expands it
printf '%s\n' "${targets[@]}" | xargs -n 1 -P 2 bash -c 'one "$0"'
