#!/usr/bin/env bash
# check.sh: everything that has to pass before a change goes in; `make check` and CI run it.
#
# Stages run in order and a failed one does not stop the rest. The last line is "N passed, N failed":
# single tests where a stage runs tests, and one for every other stage. The exit status is 0 only if
# nothing failed. Logs are in build/check/.
set -u
cd "$(dirname "$0")/.." || exit 1
unset MAKEFLAGS MFLAGS MAKELEVEL CMOE_CPU

logs=build/check
jobs=$(nproc)
fuzz_seconds=${FUZZ_SECONDS:-20}
passed=0
failed=0
number=0
failures=()
rm -rf $logs && mkdir -p $logs

# --- running and counting -------------------------------------------------------------------------

# begin <title>: starts a stage; its output goes to $log.
begin() {
    title=$1
    number=$((number + 1))
    log=$logs/$(printf '%02d' $number)-${title//[^A-Za-z0-9]/-}.log
    started=$SECONDS
    printf '%2d  %-44s' $number "$title"
}

# end <passed> <failed> [remark]: counts the stage and shows why it failed.
end() {
    passed=$((passed + $1))
    failed=$((failed + $2))
    printf '%-6s %4d s  %s\n' "$([ "$2" = 0 ] && echo ok || echo FAILED)" $((SECONDS - started)) "${3:-}"
    if [ "$2" != 0 ]; then
        failures+=("$number $title: $log")
        { grep -E 'error:|ERROR|FAILED|\*\*\*' "$log" | head -n 20; echo ...; tail -n 20 "$log"; } |
            cut -c 1-200 | sed 's/^/        | /'
    fi
}

# stage <title> <command>...: one stage, one count.
stage() {
    begin "$1"
    shift
    if "$@" >"$log" 2>&1; then end 1 0; else end 0 1; fi
}

# tests <title> <preset> <ctest option>...: counts the tests of a build.
tests() {
    local preset=$2 ok skipped bad remark
    begin "$1"
    shift 2
    if [ $have_tests = 0 ]; then
        echo "no tests in the tree yet" | tee "$log"
        return
    fi
    if [ ! -e "$logs/built-$preset" ]; then
        echo "the $preset build failed: nothing to run" >"$log"
        end 0 1
        return
    fi
    ctest --test-dir "build/$preset" --output-on-failure -j 2 "$@" >"$log" 2>&1
    local rc=$?
    ok=$(grep -cE '^ *[0-9]+/[0-9]+ Test +#.* Passed ' "$log")
    skipped=$(grep -cE '^ *[0-9]+/[0-9]+ Test +#.*\*\*\*Skipped' "$log")
    bad=$(grep -E '^ *[0-9]+/[0-9]+ Test +#.*(\*\*\*|Not Run)' "$log" | grep -vc '\*\*\*Skipped')
    remark="$ok passed"
    if [ "$skipped" != 0 ]; then remark="$remark, $skipped skipped"; fi
    if [ "$bad" != 0 ]; then remark="$remark, $bad failed"; fi
    if [ $((ok + skipped + bad)) = 0 ]; then
        echo "no tests yet: $title" >>"$log"
        bad=1
        remark="no tests yet"
    elif [ $rc != 0 ] && [ "$bad" = 0 ]; then
        bad=1
        remark="$remark, ctest exit status $rc"
    fi
    end "$ok" "$bad" "$remark"
}

# build <preset> [-DVARIABLE=VALUE] [target]...: all of it, or what the tests that are run need.
build() {
    local preset=$1 define=
    shift
    case ${1:-} in -D*) define=$1; shift ;; esac
    cmake --preset "$preset" ${define:+"$define"} && cmake --build "build/$preset" -j "$jobs" ${1:+--target "$@"} -- -k 0 &&
        touch "$logs/built-$preset"
}

# Warnings come before a compiler's optimisations, which take it a minute: the sanitizers' build has them.
clang_warnings() {
    cmake --preset clang -DCMOE_TESTS=OFF || return 1
    sed -n 's/^ *"command": "\(.*\)",$/\1/p' build/clang/compile_commands.json | sed 's/\\\(.\)/\1/g' >$logs/clang
    [ -s $logs/clang ] || return 1
    # shellcheck disable=SC2016 # the inner shell expands it
    xargs -d '\n' -n 1 -P "$jobs" sh -c 'eval "$0 -fsyntax-only"' <$logs/clang
}

# fuzz: counts the fuzz targets.
fuzz() {
    local ok bad
    begin "fuzz targets, $fuzz_seconds s each"
    if [ $have_tests = 0 ]; then
        echo "no tests in the tree yet" | tee "$log"
        return
    fi
    if [ ! -e "$logs/built-asan" ]; then
        echo "the asan build failed: nothing to run" >"$log"
        end 0 1
        return
    fi
    tools/fuzz.sh build/asan "$fuzz_seconds" >"$log" 2>&1
    ok=$(grep -c '^PASS ' "$log")
    bad=$(grep -c '^FAIL ' "$log")
    if [ $((ok + bad)) = 0 ]; then bad=1; fi
    end "$ok" "$bad" "$ok passed"
}

# Scratch memory is cut into arrays of several types; jansson's loop macro is not on cppcheck's path.
lint() {
    mkdir -p build/check/cppcheck
    cppcheck --quiet --std=c11 --enable=warning,portability,performance --inline-suppr -j "$jobs" \
        --error-exitcode=1 --cppcheck-build-dir=build/check/cppcheck --suppress=missingIncludeSystem \
        --suppress=invalidPointerCast '-Djson_object_foreach(o,k,v)=while ((k = "", v = o))' \
        -D_GNU_SOURCE -DCMOE_ISA=generic -DCMOE_ISA_GENERIC=1 -DCMOE_HAVE_CUDA=0 -Iinclude -Isrc -isrc/backends/cuda src
}

# Addresses that ThreadSanitizer of clang 14 cannot place appear with newer kernels' randomisation.
fixed_addresses=()
if setarch -R true 2>/dev/null; then fixed_addresses=(setarch -R); fi

have_tests=0
if compgen -G 'tests/test_*.c' >/dev/null; then have_tests=1; fi
export ASAN_OPTIONS=${ASAN_OPTIONS:-strict_string_checks=1:detect_stack_use_after_return=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=1}

# --- the stages -----------------------------------------------------------------------------------

# gcc builds as users do, with warnings as errors, and what it builds is tested and installed; clang reads the
# same and builds it with sanitizers. The gcc build's test_kernels runs the rows of every instruction set; with
# a lower one it is the choice of rows that is tested.
stage "style" tools/check_style.sh
stage "build: gcc, CUDA where nvcc is" build gcc
stage "clang's warnings" clang_warnings
tests "tests" gcc
if [ "$(uname -m)" = x86_64 ]; then
    CMOE_CPU=generic tests "kernel tests, CMOE_CPU=generic" gcc -L kernels
    CMOE_CPU=avx2 tests "kernel tests, CMOE_CPU=avx2" gcc -L kernels
fi
stage "install: find_package, pkg-config, static" tests/install/run.sh build/gcc
stage "headers: alone, C11 and C++17" tests/headers/run.sh
stage "exported symbols" tools/check_symbols.sh build/gcc
stage "build: address and undefined sanitizers" build asan -DCMOE_WERROR=ON all fuzz_targets
tests "tests: address and undefined sanitizers" asan -LE slow
fuzz
stage "build: undefined sanitizer of vectors" build ubsan tests_kernels
tests "kernel tests: undefined sanitizer of vectors" ubsan -L kernels
stage "build: thread sanitizer" build tsan tests_threads
if [ ${#fixed_addresses[@]} != 0 ]; then
    ctest() { "${fixed_addresses[@]}" "$(type -P ctest)" "$@"; }
fi
tests "thread tests: thread sanitizer" tsan -L threads
unset -f ctest
if [ "$(uname -m)" = x86_64 ]; then
    stage "build: arm64" build arm64 tests_portable cmoe_cli
    tests "portable tests: arm64" arm64 -L portable
fi
stage "cppcheck" lint

echo
for failure in ${failures[@]+"${failures[@]}"}; do echo "failed: $failure"; done
echo "took $((SECONDS / 60)) min $((SECONDS % 60)) s"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
