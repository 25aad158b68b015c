#!/usr/bin/env bash
# check_style.sh: what no compiler checks. Prints each finding as file:line, and exits with 1 if there
# was one.
#
# Text:     tabs, trailing blanks, last newline, CRLF, invisible Unicode, clang-format, file length
# Tree:     entries in the root folder, leftover notes
# Calls:    allocation, environment, output and exit only where they belong
# Includes: core <- stages <- plan; backends above; cli, io, examples on the public headers only
set -eu
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8

max_lines=500
max_root_entries=24
status=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() { echo "style: $*"; status=1; }

# report <message>: lines on stdin are findings.
report() {
    local line
    while IFS= read -r line; do fail "$1: $line"; done
}

list_files() {
    git ls-files -co --exclude-standard 2>/dev/null ||
        find . -type f -not -path './build/*' -not -path './.git/*' | sed 's|^\./||'
}

list_files | sort -u | while IFS= read -r f; do if [ -f "$f" ]; then echo "$f"; fi; done >"$work/all"
# Data is not text: recorded vectors, fuzzing inputs and the texts of models are kept as they came.
grep -Ev '^tests/(golden|vectors|fuzz/corpus)/|^models/.*\.txt$' "$work/all" |
    xargs -d '\n' grep -Il '' >"$work/text" || true
grep -E '\.[ch]$' "$work/text" >"$work/c" || true
grep -E '\.([ch]|def|cu|cuh|py|sh|cmake)$|CMakeLists\.txt$' "$work/text" >"$work/code" || true

grep_text() { xargs -d '\n' grep -IHn "$@" <"$work/text" || true; }

# --- text -----------------------------------------------------------------------------------------

grep -vxF Makefile "$work/text" | xargs -d '\n' grep -IHnP '\t' | report "tab" || true
report "trailing blank" < <(grep_text -P '[ \t]+$')
report "carriage return" < <(grep_text -P '\r$')
report "invisible character" < <(grep_text -P \
    '[\x{00A0}\x{00AD}\x{200B}-\x{200F}\x{202A}-\x{202E}\x{2060}-\x{2064}\x{FEFF}]')
while IFS= read -r f; do
    if [ -s "$f" ] && [ -n "$(tail -c 1 "$f")" ]; then fail "no newline at the end: $f"; fi
done <"$work/text"
report "leftover note" < <(grep -v '^tools/check_style\.sh$' "$work/text" |
    xargs -d '\n' grep -IHnE '\b(TODO|FIXME|XXX)\b' || true)
while IFS= read -r f; do
    n=$(wc -l <"$f")
    if [ "$n" -gt $max_lines ]; then fail "$n lines, at most $max_lines: $f"; fi
done <"$work/code"

n=$(cut -d / -f 1 "$work/all" | sort -u | wc -l)
if [ "$n" -gt $max_root_entries ]; then fail "$n entries in the root, at most $max_root_entries"; fi

formatter=$(command -v clang-format-14 || command -v clang-format || true)
if [ -z "$formatter" ] || ! "$formatter" --version | grep -q 'version 14\.'; then
    echo "style: clang-format 14 not found: formatting not checked"
elif [ -s "$work/c" ]; then
    export formatter
    # shellcheck disable=SC2317 # xargs calls it
    formatted() { "$formatter" --dry-run -Werror "$@" 2>&1 >/dev/null | grep -o '^[^:]*:[0-9]*' || true; }
    export -f formatted
    # shellcheck disable=SC2016 # the inner shell expands it
    xargs -d '\n' -n 32 -P 2 bash -c 'formatted "$0" "$@"' <"$work/c" | sort -u >"$work/unformatted"
    report "not as clang-format has it (make fmt)" <"$work/unformatted"
fi

# --- calls and includes, on sources without comments ----------------------------------------------

mkdir "$work/bare"
grep -E '^(src|examples|bench|tests/install)/' "$work/c" >"$work/sources" || true
sed 's|/[^/]*$||' "$work/sources" | sort -u | (cd "$work/bare" && xargs -d '\n' -r mkdir -p)
export work
# -fpreprocessed: take out comments, expand nothing; keep line numbers, drop line markers.
# shellcheck disable=SC2317 # xargs calls it
bare() {
    for f; do
        gcc -fpreprocessed -dD -E -w -x c "$f" 2>/dev/null |
            awk '/^# [0-9]+ "/ { for (; n < $2 - 1; n++) print ""; next } { print; n++ }' >"$work/bare/$f"
    done
}
export -f bare
# shellcheck disable=SC2016 # the inner shell expands it
xargs -d '\n' -r -n 32 -P 2 bash -c 'bare "$0" "$@"' <"$work/sources"

# calls <what> <names> <allowed files, a regular expression> <folder>...
calls() {
    local what=$1 names=$2 allowed=$3
    shift 3
    report "$what" < <(cd "$work/bare" && for folder in "$@"; do
        if [ -d "$folder" ]; then
            grep -rHnE "(^|[^A-Za-z0-9_>.])($names)[[:space:]]*\(" "$folder" | grep -Ev "^($allowed):" || true
        fi
    done)
}

allocation='malloc|calloc|realloc|free|aligned_alloc|posix_memalign|strdup|strndup'
calls "allocation outside src/core/memory.c" "$allocation" 'src/core/memory\.c' \
    src/core src/stages src/plan src/backends
calls "environment outside src/core/context.c" 'getenv|secure_getenv|setenv|putenv' 'src/core/context\.c' \
    src/core src/stages src/plan src/backends src/io src/dist
calls "output or exit in the library" 'printf|fprintf|vprintf|vfprintf|puts|fputs|putchar|perror|abort|exit|_exit' \
    'src/core/log\.c' src/core src/stages src/plan src/backends src/io src/dist

# includes <folder> <allowed, a regular expression>: what "quoted" includes may name; a name without a
# folder must be a neighbour.
includes() {
    local folder=$1 allowed=$2 file line name
    if [ ! -d "$work/bare/$folder" ]; then return; fi
    while IFS=: read -r file line name; do
        name=${name#*\"}
        name=${name%%\"*}
        if [ -f "${file%/*}/$name" ]; then continue; fi
        if ! [[ $name =~ ^($allowed) ]]; then fail "include of $name: $file:$line"; fi
    done < <(cd "$work/bare"; grep -rHnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' "$folder" || true)
}

includes src/core 'core/'
includes src/stages '(core|stages)/'
includes src/plan '(core|stages|plan)/|backends/backends?\.(h|def)$|backends/[a-z]+/kernels\.def$'
for backend in src/backends/*/; do
    name=$(basename "$backend")
    includes "src/backends/$name" "(core|stages)/|plan/kernel\.h$|backends/backend\.h$|backends/$name/"
done
includes src/io 'io/'
includes src/dist 'dist/'
includes src/cli 'cli/'
includes examples 'lm/'
for folder in bench tests/install; do includes "$folder" '\b\B'; done

# A neighbour is not a way around the rule: no path may climb out of its folder.
report "include by a path with .." < <(
    cd "$work/bare"; grep -rHnE '#[[:space:]]*include[[:space:]]*"\.\.' . || true)

exit $status
