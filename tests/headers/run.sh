#!/usr/bin/env bash
# Each public header compiles alone, twice, as C11 and as C++17, with gcc and (where there is one) clang.
set -eu
cd "$(dirname "$0")/../.."
flags="-Wall -Wextra -Wundef -Werror -pedantic -fsyntax-only -Iinclude"
status=0
n=0

# compile <compiler and language> <header>: included twice, to test the guard.
compile() {
    # shellcheck disable=SC2086 # lists of words
    if ! printf '#include <cmoe/%s>\n#include <cmoe/%s>\nextern int used;\n' "$2" "$2" | $1 $flags -; then
        echo "headers: $2 does not compile with $1"
        status=1
    fi
}

for header in include/cmoe/*.h; do
    name=${header##*/}
    for suite in "gcc g++" "clang clang++"; do
        if ! command -v "${suite% *}" >/dev/null; then continue; fi
        compile "${suite% *} -std=c11 -x c" "$name"
        compile "${suite#* } -std=c++17 -x c++" "$name"
    done
    n=$((n + 1))
done
echo "headers: $n headers tried"
exit $status
