# SPDX-License-Identifier: MIT
"""The experts (docs/numerics.md section 4) in torch, f64 between the roundings of the recipe."""
import numpy as np
import torch
import torch.nn.functional as fn

from golden import formats, inputs
from golden.formats import F32

torch.set_num_threads(1)


def f32(v):
    return np.asarray(v).astype(F32)


def matmul(a, b):
    a, b = (torch.from_numpy(np.ascontiguousarray(v)) for v in (a, b))
    return (a @ b.T).numpy()


class Weights:
    """Both matrices of every local expert, decoded to f64, from their codes and scales."""

    def __init__(self, p, seed):
        self.p, self.seed = p, seed
        h, i, n = p["h"], p["i"], p.local
        rows1 = 2 * i if p.gated else i
        split = p.gated and p["gate"] == "split" and "joint" not in p.flags
        self.w1 = self._matrix(1, n, rows1, h, halves=split)
        self.w2 = self._matrix(2, n, h, i)
        self.b1 = self._bias("b1", (n, rows1))
        self.b2 = self._bias("b2", (n, h))
        self.m2 = np.ones((n, i), F32)
        if p["mid"].scaling == "smooth":
            self.m2 = inputs.scales(seed, "m2", (n, i), 0)

    def _bias(self, name, shape):
        if name not in self.p.flags:
            return np.zeros(shape, F32)
        return inputs.grid(self.seed, name, shape, 1 / 128)

    def _matrix(self, m, n, rows, cols, halves=False):
        f, seed = self.p["w"], self.seed
        if not f.quantized:
            return inputs.grid(seed, f"w{m}", (n, rows, cols), 1 / 256).astype(np.float64)
        q = formats.decode(inputs.codes(seed, f"w{m}", (n, rows, cols), f.dtype), f.dtype)
        # Gate and up as two matrices have their own 128-row blocks.
        parts = [(0, rows)]
        if halves and f.scaling == "b128":
            parts = [(0, rows // 2), (rows // 2, rows)]
        shapes = [formats.scale_shape(f, b - a, cols) for a, b in parts]
        whole = (sum(s[0] for s in shapes),) + shapes[0][1:]
        base = inputs.BASE[f.dtype]
        top = np.ones((n, 1, 1))
        if f.scaling == "mx32":
            s = np.exp2(inputs.e8m0(seed, f"s{m}", (n, *whole), base) - 127.0)
        elif f.scaling == "nv16":
            s = formats.decode(inputs.block_e4m3(seed, f"s{m}", (n, *whole)), "e4m3")
            top = inputs.scales(seed, f"g{m}", (n, 1, 1), base).astype(np.float64)
        else:
            s = inputs.scales(seed, f"s{m}", (n, *whole), base).astype(np.float64)
        z = {"u4": 8.0, "u8": 128.0}.get(f.dtype, 0.0) + np.zeros((n, *whole))
        if f.zero:
            z = inputs.zeros(seed, f"z{m}", (n, *whole), f.dtype).astype(np.float64)
        out = np.empty((n, rows, cols))
        for e in range(n):
            first = 0
            for (a, b), shape in zip(parts, shapes):
                part = slice(first, first + shape[0])
                first += shape[0]
                scale = formats.expand_scale(f, s[e][part], (b - a, cols))
                zero = formats.expand_scale(f, z[e][part], (b - a, cols))
                out[e, a:b] = (q[e, a:b] - zero) * scale * top[e]
        return out


def activate(p, g, u):
    """f(gate, up) in f64; u is None when ungated."""
    g = torch.from_numpy(g)
    u = torch.from_numpy(u) if u is not None else torch.ones_like(g)
    act, gated = p["act"], p.gated
    limit = p["limit"] or (7.0 if act == "swiglu-oai" else 0.0)
    if limit > 0:
        limit = float(F32(limit))
        g = torch.clamp(g, max=limit)
        u = torch.clamp(u, min=-limit, max=limit) if gated else u

    def param(key, default):
        return float(F32(p[key] or default))

    if act == "silu":
        out = fn.silu(g) * u
    elif act == "gelu":
        out = fn.gelu(g) * u
    elif act == "gelu-tanh":
        out = fn.gelu(g, approximate="tanh") * u
    elif act == "relu":
        out = fn.relu(g) * u
    elif act == "relu2":
        out = fn.relu(g) ** 2 * u
    elif act == "swiglu-oai":
        out = g * torch.sigmoid(param("alpha", 1.702) * g)
        out = out * (u + param("beta", 1)) if gated else out
    elif act == "situv2":
        b, l = param("beta", 4), param("lbeta", 25)
        out = b * torch.tanh(g / b) * torch.sigmoid(g)
        out = out * (l * torch.tanh(u / l) if l > 0 else u) if gated else out
    else:
        assert act == "identity"
        out = g * u
    return out.numpy()


def local_experts(p, seed, ids):
    """Local expert of every id, -1 when there is none."""
    i = np.asarray(ids, np.int64)
    valid = (i >= 0) & (i < p.total)
    if "map" in p.flags:
        table = inputs.expert_map(seed, p.total, p.local).astype(np.int64)
        e = table[np.where(valid, i, 0)]
    else:
        e = i - p["first"]
    return np.where(valid & (e >= 0) & (e < p.local), e, -1)


def input_rows(p, seed, ids, r):
    """What GEMM1 reads for every slot: [T, S, H] f64."""
    t, h, used = p["t"], p["h"], p["h"] - p["hpad"]
    s, f = p.slots, p["x"]
    if "xq" in p.flags:
        codes = inputs.codes(seed, "x", (t, h), f.dtype)
        base = inputs.BASE[f.dtype] + 2
        blocks = -(-h // f.group) if f.group else 1
        top = np.ones(t)
        if f.scaling == "mx32":
            scale = np.exp2(inputs.e8m0(seed, "xs", (t, blocks), base) - 127.0)
        elif f.scaling == "nv16":
            scale = formats.decode(inputs.block_e4m3(seed, "xs", (t, blocks)), "e4m3")
            top = inputs.scales(seed, "xg", (1 if f.fixed else t,), base) * np.ones(t)
        elif f.scaling == "tensor":
            scale = inputs.scales(seed, "xs", (1,), base)
        else:
            scale = inputs.scales(seed, "xs", (t, blocks), base)
        v = formats.dequantize_rows(f, codes, scale, top)
        v[:, used:] = 0
        return np.repeat(v[:, None], s, 1)
    x = formats.to_float(inputs.rows(seed, "x", (t, h)), p["in"])
    x[:, used:] = 0
    fixed = inputs.scales(seed, "xfix", (1,), inputs.STATIC[f.dtype])[0] if f.fixed else None
    valid = (ids >= 0) & (ids < p.total)
    counts = valid if p["won"] == "input" else np.repeat(valid.any(1), s)
    local = local_experts(p, seed, ids)
    v = np.repeat(x[:, None], s, 1)
    if p["won"] == "input":
        # The product is exact in f32 for golden inputs: one rounding, to `in`.
        v = formats.to_float(f32(v * r[:, :, None]), p["in"])
    if f.scaling == "smooth":
        smooth = inputs.scales(seed, "m1", (p.local, h), 0)
        v = f32(v * np.where(local[:, :, None] >= 0, smooth[local], 1))
    flat = v.reshape(t * s, h)
    return formats.quantize_rows(f, flat, counts.reshape(-1), fixed).reshape(t, s, h)


def gemm1(p, w, x, e, r):
    """One expert's rows: h before requantising, f32."""
    used = p["i"] - p["ipad"]
    gu = matmul(x, w.w1[e])
    if p["won"] == "gemm1":
        gu = gu * r[:, None].astype(np.float64)
    gu = f32(gu + w.b1[e]).astype(np.float64)
    if not p.gated:
        g, u = gu, None
    elif p["gate"] == "interleaved":
        g, u = gu[:, 0::2], gu[:, 1::2]
    else:
        g, u = gu[:, : p["i"]], gu[:, p["i"] :]
    h = activate(p, np.ascontiguousarray(g), None if u is None else np.ascontiguousarray(u))
    if p["won"] == "act":
        h = h * r[:, None].astype(np.float64)
    h = f32(h)
    h[:, used:] = 0
    if "midround" in p.flags:
        h = formats.to_float(h, p["in"])
    if p["mid"].scaling == "smooth":
        h = f32(h * w.m2[e])
    return h


def experts(p, seed, ids, r, weights=None, x=None, mid_scale=None):
    """y in f64 before its last rounding, from ids and routing weights [T, S].

    weights, x (as GEMM1 reads it, [T, S, H]) and mid_scale are the generator's unless given."""
    w = weights or Weights(p, seed)
    ids, r = np.asarray(ids), np.asarray(r, F32)
    t, s, h = p["t"], p.slots, p["h"]
    local = local_experts(p, seed, ids).reshape(-1)
    xs = (x if x is not None else input_rows(p, seed, ids, r)).reshape(t * s, h)
    rows = [np.nonzero(local == e)[0] for e in range(p.local)]
    flat = r.reshape(-1)
    mid = np.zeros((t * s, p["i"]), F32)
    for e, n in enumerate(rows):
        if len(n):
            mid[n] = gemm1(p, w, xs[n], e, flat[n])
    f = p["mid"]
    if f.fixed and mid_scale is None:
        mid_scale = inputs.scales(seed, "mfix", (1,), inputs.STATIC[f.dtype] + 2)[0]
    hq = formats.quantize_rows(f, mid, local >= 0, mid_scale)
    z = np.zeros((t * s, h))
    for e, n in enumerate(rows):
        if len(n):
            z[n] = f32(matmul(hq[n], w.w2[e]) + w.b2[e])
    if p["won"] == "out":
        z = z * flat[:, None].astype(np.float64)
    z = z.reshape(t, s, h)
    y = z if "noreduce" in p.flags else z.sum(1)
    if p["acc"]:
        old = formats.to_float(inputs.grid(seed, "y0", y.shape, 1 / 16), p["y"])
        y = float(F32(p["acc"])) * old.astype(np.float64) + y
    y = np.ascontiguousarray(y)
    y[..., h - p["hpad"] :] = 0
    return y
