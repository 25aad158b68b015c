#!/usr/bin/env bash
# run.sh <build folder>: install into a fresh prefix, then build and run a consumer in every way that
# the documentation promises: find_package, pkg-config, and pkg-config --static.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "$1" && pwd)
work=$build/install-test
prefix=$work/prefix
rm -rf "$work" && mkdir -p "$work"

cmake --install "$build" --prefix "$prefix" >"$work/install.log"
libdir=$(dirname "$(find "$prefix" -name cmoe.pc)")
export PKG_CONFIG_PATH=$libdir
libdir=$(dirname "$libdir")

run() { echo "install: $*"; "$@"; }

echo "install: find_package"
cmake -S "$here" -B "$work/cmake" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_BUILD_TYPE=Release >"$work/cmake.log"
cmake --build "$work/cmake" >>"$work/cmake.log" || { cat "$work/cmake.log"; exit 1; }
for program in "$work"/cmake/consumer*; do
    if [ -x "$program" ] && [ -f "$program" ]; then run "$program"; fi
done

# consumer <output> <source> <package> <pkg-config and link flags>...
consumer() {
    local output=$1 source=$2 package=$3
    shift 3
    # shellcheck disable=SC2046 # pkg-config prints a list of words
    gcc -std=c11 -Wall -Werror "$here/$source" -o "$work/$output" $(pkg-config --cflags "$package") "$@"
}
packages=cmoe:consumer.c
if [ -e "$PKG_CONFIG_PATH/cmoe-io.pc" ]; then packages="$packages cmoe-io:consumer_io.c"; fi
for pair in $packages; do
    package=${pair%%:*} source=${pair#*:}
    # shellcheck disable=SC2046
    consumer "$package-shared" "$source" "$package" $(pkg-config --libs "$package") -Wl,-rpath,"$libdir"
    run "$work/$package-shared"
    # -Bstatic for our archives only: a full -static would want a static libc.
    # shellcheck disable=SC2046
    consumer "$package-static" "$source" "$package" \
        $(pkg-config --static --libs "$package" | sed -E 's/-lcmoe(-io)?\b/-l:libcmoe\1.a/g')
    run "$work/$package-static"
    if readelf -d "$work/$package-static" | grep -q 'NEEDED.*libcmoe'; then
        echo "install: $package-static still needs the shared library"
        exit 1
    fi
done

if [ -x "$prefix/bin/cmoe" ]; then run "$prefix/bin/cmoe" info >/dev/null; fi
echo "install: all consumers ran"
