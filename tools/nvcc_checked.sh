#!/usr/bin/env bash
# nvcc_checked.sh NVCC ARG...: run nvcc and hold its output to the rules that ptxas only reports:
# no spills, no stack, no serialised wgmma (C7510..), no ignored setmaxnreg (C7508). The resource
# lines are kept beside the output as *.ptxas.
set -eu
out=
args=("$@")
for ((i = 0; i < ${#args[@]}; i++)); do
    [ "${args[i]}" = -o ] && out=${args[i + 1]}
done
mkdir -p "$(dirname "$out")"
log=$out.ptxas
if ! "$@" >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$out"
    exit 1
fi
if grep -E 'C75[0-9][0-9]|[1-9][0-9]* bytes (spill|stack frame)' "$log" >&2; then
    echo "nvcc_checked: ptxas reports spills, a stack frame or a serialised instruction in $out" >&2
    rm -f "$out"
    exit 1
fi
