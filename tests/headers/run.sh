#!/usr/bin/env bash
# Each public header compiles alone, twice, as C11 and as C++17, with gcc and (where there is one) clang.
# Each public function has a comment, which one that returns a status closes with "@return".
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

# A comment holds for the functions right below it, up to a blank line.
undocumented() {
    awk '/^ *\/\*\*/ { text = ""; open = 1 }
         open { text = text $0; if (/\*\//) open = 0; next }
         /^$/ { text = "" }
         /^CMOE_API/ {
             declaration = $0
             while (declaration !~ /;/ && (getline line) > 0) declaration = declaration line
             match(declaration, /cmoe_[a-z0-9_]+\(/)
             name = substr(declaration, RSTART, RLENGTH - 1)
             if (text == "") print name " has no comment"
             else if (declaration ~ /^CMOE_API cmoe_status / && text !~ /@return/) print name " has no @return"
         }' "$1"
}

for header in include/cmoe/*.h; do
    while IFS= read -r finding; do
        echo "headers: $header: $finding"
        status=1
    done < <(undocumented "$header")
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
