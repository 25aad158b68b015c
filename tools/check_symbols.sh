#!/usr/bin/env bash
# check_symbols.sh [--update] [build folder]: compare what the libraries export with tests/abi.
#
# Every exported symbol starts with cmoe_, is in the list and is declared in a public header, and the other
# way round; every global symbol of the static libraries starts with cmoe_ as well. --update rewrites the lists.
set -eu
cd "$(dirname "$0")/.."

update=
if [ "${1:-}" = --update ]; then update=1; shift; fi
build=${1:-build/release}
status=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The functions that the headers declare: those of cmoe/cmoe.h are libcmoe's, the rest libcmoe-io's.
declared() {
    echo "#include <cmoe/$1>" | gcc -x c -Iinclude -fsyntax-only -aux-info "$work/prototypes" -
    grep -o '\<cmoe_[a-z0-9_]* (' "$work/prototypes" | tr -d ' (' | LC_ALL=C sort -u
}
declared cmoe.h >"$work/cmoe"
declared io.h | LC_ALL=C comm -23 - "$work/cmoe" >"$work/cmoe-io"

exported() { nm -D --defined-only --format=posix "$1" | awk '$2 != "A" { print $1 }' | LC_ALL=C sort -u; }

# check <library> <list>
check() {
    local shared=$build/lib$1.so static=$build/lib$1.a list=tests/abi/$2 foreign
    if [ ! -e "$shared" ]; then echo "symbols: no $shared"; status=1; return; fi
    foreign=$({
        exported "$shared"
        nm --defined-only --extern-only --format=posix "$static" | awk 'NF > 1 { print $1 }'
    } | grep -v '^cmoe_' || true)
    if [ -n "$foreign" ]; then echo "symbols: lib$1 has foreign names: $foreign"; status=1; fi
    if [ -n "$update" ]; then
        mkdir -p tests/abi
        exported "$shared" >"$list"
    elif ! exported "$shared" | diff -u "$list" - >/dev/null; then
        echo "symbols: lib$1.so and $list differ (tools/check_symbols.sh --update $build):"
        exported "$shared" | diff -u "$list" - | grep '^[-+][a-z]' || true
        status=1
    fi
    if ! diff "$work/$1" "$list" >"$work/diff"; then
        echo "symbols: $list differs from what the headers declare (<):"
        grep '^[<>]' "$work/diff"
        status=1
    fi
}

check cmoe symbols.txt
if [ -e "$build/libcmoe-io.so" ] || [ -s tests/abi/symbols-io.txt ]; then check cmoe-io symbols-io.txt; fi

# libcmoe is free of dependencies: libc, libm, the loader, nothing else.
needed=$(readelf -d "$build/libcmoe.so" 2>/dev/null | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' |
    grep -Ev '^(libc|libm|libpthread|libdl)\.so\.|^ld-linux' || true)
if [ -n "$needed" ]; then echo "symbols: libcmoe.so needs $needed"; status=1; fi

exit $status
