#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""bench_merge.py OUT A B...: one file of several runs of bench_grid.sh on one machine.

Each cell of the last run is replaced by that of the run with the shortest median, among those that planned the
same kernels; with it come the ceilings that were measured beside it. Head and plans are the last run's; a note
in the file says how many cells are another's."""
import json
import sys


def load(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def key(cell):
    return cell["problem"], cell["scheme"], cell["tokens"], cell["routing"], cell["plan"]


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    runs = [load(path) for path in sys.argv[2:]]
    last = runs[-1]
    if any(cell["device"] != last["cells"][0]["device"] for run in runs for cell in run["cells"]):
        sys.exit("bench_merge: the runs are of different devices")
    best = {}
    for cell in [cell for run in runs for cell in run["cells"]]:
        if key(cell) not in best or cell["us_median"] < best[key(cell)]["us_median"]:
            best[key(cell)] = cell
    cells = [best[key(cell)] for cell in last["cells"]]
    older = sum(cell is not own for cell, own in zip(cells, last["cells"]))
    note = (f"{len(runs)} whole runs: each cell is of the run in which it had the shorter median with the kernels that the last "
            f"run planned ({older} of {len(cells)} are of an earlier one), with the ceilings measured beside it there.")
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        out.write(f'{{"date": "{last["date"]}", "driver": {json.dumps(last["driver"])}, "version": {json.dumps(last["version"])},\n')
        out.write(f'"command": {json.dumps(last["command"])},\n"note": {json.dumps(note)},\n"cells": [\n')
        out.write(",\n".join(json.dumps(cell) for cell in cells) + "\n]}\n")


if __name__ == "__main__":
    main()
