#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Expected outputs of models/tiny-moe's layer 2 under every scheme, from torch and ml_dtypes.

  tools/tiny_moe_schemes.py      models/tiny-moe/expected/{SCHEME.npy,scales.npy,scales.txt}

Router and experts of the layer on hidden.npy: float32 [64, 128], the f64 result before its last
rounding. Weights are quantised here by docs/numerics.md section 2; static scales are the largest
magnitude of hidden.npy, and of the intermediate of the unquantised layer, over 448. Needs numpy,
torch and ml_dtypes; nothing here imports or calls cmoe."""
import json
import os
import struct
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tools"))
from golden import formats, layer, router  # noqa: E402
from golden.formats import F32, SCHEMES  # noqa: E402
from golden.problem import Problem  # noqa: E402

MODEL = os.path.join(ROOT, "models", "tiny-moe")
LAYER = 2


def read_tensors(path, prefix):
    """The bf16 tensors of a .safetensors file whose names start with prefix, as f32."""
    with open(path, "rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
        data = f.read()
    out = {}
    for name, t in header.items():
        if name.startswith(prefix):
            assert t["dtype"] == "BF16", name
            begin, end = t["data_offsets"]
            v = np.frombuffer(data[begin:end], ml_dtypes.bfloat16).astype(F32)
            out[name[len(prefix):].removesuffix(".weight")] = v.reshape(t["shape"])
    return out


def quantized(p, tensors):
    """Every expert's matrices as the scheme stores them, decoded: gate and up have own scales."""
    def matrix(e, which):
        return formats.quantize_weight(p["w"], tensors[f"experts.{e}.{which}_proj"])

    experts = range(p["e"])
    return SimpleNamespace(
        w1=np.stack([np.vstack([matrix(e, "gate"), matrix(e, "up")]) for e in experts]),
        w2=np.stack([matrix(e, "down") for e in experts]),
        b1=np.zeros((p["e"], 2 * p["i"]), F32), b2=np.zeros((p["e"], p["h"]), F32),
        m2=np.ones((p["e"], p["i"]), F32))


def route(p, x, tensors):
    logits = (x.astype(np.float64) @ tensors["gate"].astype(np.float64).T).astype(F32)
    return router.route(p, 0, logits)


def largest_mid(p, x, tensors):
    """Largest |h| of the layer as the checkpoint has it."""
    ids, _ = route(p, x, tensors)
    w = quantized(p, tensors)
    rows = [layer.gemm1(p, w, x[t : t + 1].astype(np.float64), e, np.ones(1, F32))
            for t in range(p["t"]) for e in ids[t]]
    return np.abs(np.vstack(rows)).max()


def main():
    with open(os.path.join(MODEL, "config.json")) as f:
        c = json.load(f)
    hidden = np.load(os.path.join(MODEL, "hidden.npy"))
    tensors = read_tensors(os.path.join(MODEL, "model.safetensors"), f"model.layers.{LAYER}.mlp.")
    size = (f"t={len(hidden)} e={c['num_experts']} k={c['num_experts_per_tok']} "
            f"h={c['hidden_size']} i={c['moe_intermediate_size']} router=qwen3")
    plain = Problem(f"{size} scheme=bf16")
    top = F32(formats.MAX["e4m3"])
    scales = np.array([np.abs(hidden).max() / top, largest_mid(plain, hidden, tensors) / top], F32)
    out = os.path.join(MODEL, "expected")
    os.makedirs(out, exist_ok=True)
    np.save(os.path.join(out, "scales.npy"), scales)
    with open(os.path.join(out, "scales.txt"), "w") as f:
        f.write("# Static scales of e4m3 tensors, as in scales.npy: of x, of the intermediate.\n")
        f.write(f"x {scales[0]:.9g}\nmid {scales[1]:.9g}\n")
    truth = np.load(os.path.join(MODEL, f"hidden_layer{LAYER}_mlp_out.npy"))
    for scheme in SCHEMES:
        p = Problem(f"{size} scheme={scheme}")
        x = formats.to_float(hidden, p["in"])
        ids, weights = route(p, x, tensors)
        xq = formats.quantize_rows(p["x"], x, np.ones(len(x), bool), scales[0])
        y = layer.experts(p, 0, ids, weights, quantized(p, tensors),
                          np.repeat(xq[:, None], p.slots, 1), scales[1])
        np.save(os.path.join(out, f"{scheme}.npy"), y.astype(F32))
        error = np.linalg.norm(y - truth) / np.linalg.norm(truth)
        print(f"{scheme:12} relative distance from transformers' unquantised output {error:.2e}")


if __name__ == "__main__":
    main()
