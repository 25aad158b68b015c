#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""bench_compare.py A B: cells that two bench results share, B's time over A's.

A and B are files of cmoe bench --json (lines) or of bench_grid.sh (one object). Cells are matched by
problem, scheme, tokens and routing. Times are divided by what the machine read beside each cell, where
both files say so, because the memory's speed changes from day to day: the ratio in brackets."""
import json
import math
import sys


def cells(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        data = json.loads(text)
        rows = data["cells"] if "cells" in data else [data]
    except json.JSONDecodeError:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    # t= in the problem is the largest count of the run, not the cell's.
    def key(row):
        words = [w for w in row["problem"].split() if not w.startswith("t=")]
        return " ".join(words), row["tokens"], row.get("routing")
    return {key(row): row for row in rows}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    a, b = cells(sys.argv[1]), cells(sys.argv[2])
    shared = [key for key in a if key in b]
    if not shared:
        sys.exit("bench_compare: the files share no cell")
    print(f"{'model':18} {'scheme':18} {'tokens':>6} {'us A':>11} {'us B':>11} {'B/A':>6}  (for equal reading)")
    logs = []
    for key in shared:
        x, y = a[key], b[key]
        ratio = y["us_median"] / x["us_median"]
        logs.append(math.log(ratio))
        speeds = [max(r.get("read_gbps_before") or 0, r.get("read_gbps_after") or 0) for r in (x, y)]
        fair = f"({ratio * speeds[1] / speeds[0]:.3f})" if all(speeds) else ""
        print(f"{x['model'] or '-':18} {x['scheme'] or '-':18} {x['tokens']:6} {x['us_median']:11.1f} "
              f"{y['us_median']:11.1f} {ratio:6.3f}  {fair}")
    print(f"{len(shared)} cells, geometric mean of B/A {math.exp(sum(logs) / len(logs)):.3f}; "
          f"{len(a) - len(shared)} only in A, {len(b) - len(shared)} only in B")


if __name__ == "__main__":
    main()
