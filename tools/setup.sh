#!/bin/sh
# setup.sh [build|check|arm64]: make sure that what a make target needs is installed.
#
# build  what `make` and `make demo` need
# check  build, and everything `make check` runs, arm64 included (the default)
# arm64  build, and the cross compiler and emulator alone
#
# Does nothing (in well under a second) when all is there. Otherwise it installs with apt-get, as root
# or through sudo; where it cannot, it says what is missing and exits with 1.
set -eu
cd "$(dirname "$0")/.."
group=${1:-check}

rt=libclang-rt-14-dev
if [ -r /etc/os-release ] && ! grep -q '^VERSION_CODENAME=bookworm' /etc/os-release; then
    rt=libclang-rt-dev
fi
build="gcc libc6-dev make cmake ninja-build pkgconf libjansson-dev"
cross="qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
check="g++ libcmocka-dev clang $rt clang-format cppcheck $cross"

# The same needs for systems without dpkg: programs, then headers.
build_have="gcc cmake ninja pkg-config jansson.h"
cross_have="qemu-aarch64 aarch64-linux-gnu-gcc"
check_have="g++ cmocka.h clang clang-format cppcheck $cross_have"

case $group in
build) packages=$build; have=$build_have ;;
arm64) packages="$build $cross"; have="$build_have $cross_have" ;;
check) packages="$build $check"; have="$build_have $check_have" ;;
*) echo "usage: tools/setup.sh [build|check|arm64]" >&2; exit 2 ;;
esac

missing_packages() {
    # shellcheck disable=SC2086 # a list of words
    dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' $packages 2>/dev/null |
        awk -v want="$packages" '
            /^.i / { sub(/^...[ ]*/, ""); have[$0] = 1 }
            END { n = split(want, w, " "); for (i = 1; i <= n; i++) if (!(w[i] in have)) printf " %s", w[i] }'
}

missing_programs() {
    for item in $have; do
        case $item in
        *.h) echo "#include <$item>" | gcc -E -include stdarg.h -include setjmp.h -include stdint.h \
            - >/dev/null 2>&1 || printf ' %s' "$item" ;;
        *) command -v "$item" >/dev/null 2>&1 || printf ' %s' "$item" ;;
        esac
    done
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        sudo "$@"
    else
        return 127
    fi
}

# cmocka and jansson for the cross build, unpacked under build/ so that no foreign architecture has
# to be added to the system.
arm64_sysroot() {
    root=$PWD/build/sysroot-arm64
    [ ! -e "$root/complete" ] || return 0
    echo "setup: unpacking arm64 libraries into build/sysroot-arm64"
    rm -rf "$root" && mkdir -p "$root/lists/partial" "$root/cache"
    options="-qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root
        -o Dir::State::lists=$root/lists -o Dir::State::status=/dev/null -o Dir::Cache=$root/cache"
    # shellcheck disable=SC2086 # a list of words
    (
        cd "$root"
        apt-get $options update >/dev/null 2>&1 || true
        apt-get $options download libcmocka-dev libcmocka0 libjansson-dev libjansson4 || exit 1
        for deb in *.deb; do dpkg-deb -x "$deb" . || exit 1; done
        rm -rf lists cache ./*.deb
        touch complete
    ) || echo "setup: no arm64 libraries: the cross build will have no tests" >&2
}

if command -v dpkg-query >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1; then
    missing=$(missing_packages)
    if [ -n "$missing" ]; then
        echo "setup: installing$missing"
        export DEBIAN_FRONTEND=noninteractive
        as_root apt-get update -qq || true
        # shellcheck disable=SC2086 # a list of words
        as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null || {
            echo "setup: these packages are needed and could not be installed:$missing" >&2
            echo "setup: run: sudo apt-get update && sudo apt-get install -y$missing" >&2
            exit 1
        }
    fi
    if [ "$group" != build ]; then arm64_sysroot; fi
else
    missing=$(missing_programs)
    if [ -n "$missing" ]; then
        echo "setup: needed and not found:$missing" >&2
        echo "setup: install them with this system's package manager" >&2
        exit 1
    fi
fi
