#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Golden vectors: outputs of the MoE layer and of routers computed by PyTorch, ml_dtypes and numpy.

  tools/gen_golden.py            tests/golden/{manifest.txt,layers,router_*,quantised.npy}
  tools/gen_golden.py hf         tests/golden/hf.txt and hf.npy: modules of transformers (>= 5)

Needs numpy, torch and ml_dtypes (Debian: python3-torch, and ml_dtypes 0.5.1 from PyPI); the second
needs transformers as well. Nothing here imports or calls cmoe: it follows docs/numerics.md."""
import os
import sys

import ml_dtypes
import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from golden import cases, formats, inputs, layer, router  # noqa: E402
from golden.inputs import batched_ids, ids as make_ids, route_weights  # noqa: E402
from golden.problem import Problem  # noqa: E402

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "golden")
HEAD = """# Golden outputs, written by tools/gen_golden.py with {versions}.
# A line: kind name seed offset count inputs | problem. kind layer: y (f32, before its last
# rounding) at layers.npy[offset]; router: ids and weights [T, S] at router_*.npy[offset]; rows and
# matrix: quantised and decoded again as x or w (f32), at quantised.npy[offset].
"""


def run_layer(text, seed, ids):
    p = Problem(text)
    shape = (p["t"], p.slots)
    if ids == "all":
        i = np.tile(np.arange(p["e"]), (p["t"], 1))
        return layer.experts(p, seed, i, np.ones(shape, np.float32))
    if ids == "batched":
        return layer.experts(p, seed, batched_ids(seed, p["e"], p["cap"]),
                             np.ones(shape, np.float32))
    i = make_ids(seed, ids, p["t"], p["k"], p["e"], p["shared"])
    return layer.experts(p, seed, i, route_weights(seed, shape))


def run_quantiser(kind, text, seed, mode):
    p = Problem(text)
    v = inputs.wide(seed, (p["t"], p["h"]), mode == "broken")
    if kind == "matrix":
        return formats.quantize_weight(p["w"], v)
    f = p["x"]
    fixed = inputs.scales(seed, "xfix", (1,), inputs.STATIC[f.dtype])[0] if f.fixed else None
    return formats.quantize_broken(f, v, fixed)


def main():
    lines, ys, ids, weights = [], [], [], []
    offset = 0
    for name, text, seed, mode in cases.layers():
        y = run_layer(text, seed, mode).astype(np.float32).reshape(-1)
        assert np.isfinite(y).all(), name
        lines.append(f"layer {name} {seed} {offset} {y.size} {mode} | {text}")
        ys.append(y)
        offset += y.size
    offset = 0
    for name, text, seed, kind in cases.router_cases():
        p = Problem(text)
        i, w = router.route(p, seed, router.case_logits(p, seed, kind))
        lines.append(f"router {name} {seed} {offset} {i.size} {kind} | {text}")
        ids.append(i.reshape(-1))
        weights.append(w.reshape(-1))
        offset += i.size
    offset, values = 0, []
    for kind, name, text, seed, mode in cases.quantisers():
        with np.errstate(all="ignore"):
            v = run_quantiser(kind, text, seed, mode).astype(np.float32).reshape(-1)
        lines.append(f"{kind} {name} {seed} {offset} {v.size} {mode} | {text}")
        values.append(v)
        offset += v.size
    np.save(f"{OUT}/quantised.npy", np.concatenate(values))
    np.save(f"{OUT}/layers.npy", np.concatenate(ys))
    np.save(f"{OUT}/router_ids.npy", np.concatenate(ids))
    np.save(f"{OUT}/router_weights.npy", np.concatenate(weights))
    versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, np, ml_dtypes))
    with open(f"{OUT}/manifest.txt", "w") as f:
        f.write(HEAD.format(versions=versions) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["hf"]:
        from golden import hf

        hf.main(OUT)
    else:
        main()
