#!/bin/sh
# --help of every command, --version, and names that other texts rely on.
. "$(dirname "$0")/common"

run 0 --help
golden help "$work/out"
cp "$work/out" "$work/overview"
for command in info list explain run check bench tune replay inspect quantize accuracy; do
    run 0 $command --help
    golden "help-$command" "$work/out"
    has "$work/overview" "^  $command "
    has "$root/docs/cli.md" "^## $command\$"
done
run 0 --version
has "$work/out" '^cmoe [0-9]*\.[0-9]*\.[0-9]*$'
run 0 list --schemes
golden schemes "$work/out"
run 0 list --models
golden models "$work/out"
# Every exit code of the overview is in the documentation.
for code in 0 1 64 65 66 69 70 71 73 74; do
    has "$root/docs/cli.md" "^| $code |"
done
finish
