# SPDX-License-Identifier: MIT
"""docs/numerics.md sections 1 and 2 with ml_dtypes' casts: formats, quantisers, weight decoding."""
import re
from dataclasses import dataclass

import ml_dtypes
import numpy as np

FLOAT = {
    "bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32,
    "e4m3": ml_dtypes.float8_e4m3fn, "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2": ml_dtypes.float8_e5m2, "e2m1": ml_dtypes.float4_e2m1fn,
}
MAX = {k: float(ml_dtypes.finfo(v).max) for k, v in FLOAT.items()}
MAX.update(i8=127.0, i4=7.0)
EMAX = {"e2m1": 2, "e4m3": 8, "e4m3fnuz": 7, "e5m2": 15}
MANTISSA = {"e2m1": 1, "e4m3": 3, "e4m3fnuz": 3, "e5m2": 2}
F32 = np.float32


@dataclass
class Format:
    """One of x, w, mid: "e4m3/token", "u4/g64:zp", "e2m1/mx32:even", "i8/token:trunc"."""
    dtype: str
    scaling: str = "none"
    group: int = 0
    scale_dtype: str = ""
    zero: bool = False
    fixed: bool = False
    rounding: str = "rne"
    mx: str = "up"

    @staticmethod
    def parse(text):
        head, *options = text.split(":")
        dtype, _, scaling = head.partition("/")
        f = Format(dtype, scaling or "none")
        if m := re.fullmatch(r"g(\d+)", f.scaling):
            f.scaling, f.group = "g", int(m[1])
        f.group = {"mx32": 32, "nv16": 16}.get(f.scaling, f.group)
        for o in options:
            if o == "zp":
                f.zero = True
            elif o == "static":
                f.fixed = True
            elif o in ("trunc", "away", "rne"):
                f.rounding = o
            elif o in ("up", "down", "even", "ceil"):
                f.mx = o
            elif o in ("bf16", "f16"):
                f.scale_dtype = o
            else:
                raise ValueError(text)
        return f

    @property
    def quantized(self):
        return self.scaling != "none"


def to_float(v, dtype):
    """v (f32) rounded once to an unscaled type, as f32."""
    return np.asarray(v, F32).astype(FLOAT[dtype]).astype(F32)


def decode(codes, dtype):
    """uint8 codes, one an element, to f64."""
    c = np.asarray(codes, np.uint8)
    if dtype == "i8":
        return c.view(np.int8).astype(np.float64)
    if dtype == "i4":
        return c.astype(ml_dtypes.int4).astype(np.float64)
    if dtype in ("u8", "u4"):
        return c.astype(np.float64)
    return c.view(FLOAT[dtype]).astype(np.float64)


def encode(v, dtype, rounding="rne"):
    """The value (f64) that v (f32, finite) takes in a coded type."""
    v = np.asarray(v, F32)
    if dtype in ("i8", "i4"):
        if rounding == "trunc":
            q = np.trunc(v)
        elif rounding == "away":
            q = np.copysign(np.floor(np.abs(v.astype(np.float64)) + 0.5), v)
        else:
            q = np.rint(v)
        return np.clip(q, -MAX[dtype], MAX[dtype]).astype(np.float64)
    if dtype == "e2m1" and rounding == "away":
        values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        middle = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5])
        return np.copysign(values[np.searchsorted(middle, np.abs(v), side="right")], v)
    clipped = np.clip(v, F32(-MAX[dtype]), F32(MAX[dtype]))
    return clipped.astype(FLOAT[dtype]).astype(np.float64)


def scale_f32(amax, dtype):
    s = (np.asarray(amax, F32) / F32(MAX[dtype])).astype(F32)
    return np.where(s < F32(2.0**-126), F32(1), s)


def exponent_mx(amax, dtype, rule):
    """X of numerics.md's mx32 rules, as an integer array; amax > 0."""
    a = np.asarray(amax, F32)
    if rule == "even":
        a = (a.view(np.uint32) + np.uint32(1 << (22 - MANTISSA[dtype]))).view(F32)
    m, e = np.frexp(a.astype(np.float64))
    x = e - 1 - EMAX[dtype]
    if rule == "up":
        x = x + (a.astype(np.float64) > MAX[dtype] * np.exp2(x.astype(np.float64)))
    elif rule == "ceil":
        x = x + (m != 0.5)
    return x


def _grouped(v, group):
    """[rows, K] to [rows, groups, group], zeros behind the last column."""
    rows, cols = v.shape
    pad = -cols % group
    return np.pad(v, ((0, 0), (0, pad))).reshape(rows, -1, group)


def quantize_broken(f, v, fixed=None):
    """quantize_rows for rows that may hold NaN or infinities: they are NaN as far as their scale
    reaches, and change nothing else. A static scale does not look: infinities saturate, and NaN
    stays itself where the type has one."""
    if f.scaling == "tensor" and f.fixed:
        out = quantize_rows(f, np.where(np.isnan(v), 0, v), None, fixed)
        return np.where(np.isnan(v) & (f.dtype != "i8"), np.nan, out)
    bad = ~np.isfinite(v)
    width = {"g": f.group, "mx32": 32, "nv16": 16}.get(f.scaling, v.shape[1])
    reach = np.add.reduceat(bad, np.arange(0, v.shape[1], width), axis=1) > 0
    reach = np.repeat(reach, width, 1)[:, : v.shape[1]]
    if f.scaling == "nv16" and not f.fixed:
        reach |= bad.any(1, keepdims=True)
    out = quantize_rows(f, np.where(bad, 0, v), np.ones(len(v), bool), fixed)
    return np.where(reach, np.nan, out)


def quantize_rows(f, v, counts=None, fixed=None):
    """Quantise v [rows, K] (f32) as format f does and return what it stands for, in f64.

    counts: rows that a dynamic tensor scale looks at; fixed: the static scale."""
    v = np.asarray(v, F32)
    cols = v.shape[1]
    if f.scaling == "none":
        return to_float(v, f.dtype).astype(np.float64)
    if f.scaling in ("tensor", "token", "smooth"):
        if f.fixed:
            s = np.full((v.shape[0], 1), fixed, F32)
        elif f.scaling == "tensor":
            a = np.abs(v[counts]).max(initial=0)
            s = np.full((v.shape[0], 1), scale_f32(a, f.dtype), F32)
        else:
            s = scale_f32(np.abs(v).max(1, keepdims=True), f.dtype)
        return encode((v / s).astype(F32), f.dtype, f.rounding) * s.astype(np.float64)
    g = _grouped(v, f.group)
    a = np.abs(g).max(2, keepdims=True)
    if f.scaling == "g":
        s = scale_f32(a, f.dtype).astype(F32)
        out = encode((g / s).astype(F32), f.dtype, f.rounding) * s.astype(np.float64)
    elif f.scaling == "mx32":
        x = np.where(a > 0, exponent_mx(np.where(a > 0, a, 1), f.dtype, f.mx), -127)
        c = np.clip(x + 127, 0, 254)
        s = np.exp2(c - 127.0)
        out = encode((g / s).astype(F32), f.dtype, f.rounding) * s
    else:
        out = _quantize_nv(f, g, a, fixed)
    return out.reshape(v.shape[0], -1)[:, :cols]


def _quantize_nv(f, g, a, fixed):
    if f.fixed:
        top = np.full((g.shape[0], 1, 1), fixed, F32)
    else:
        top = (a.max(1, keepdims=True) / F32(2688)).astype(F32)
        top = np.where(top < F32(2.0**-126), F32(1), top)
    quotient = (a / (F32(6) * top).astype(F32)).astype(F32)
    b = encode(quotient, "e4m3").astype(F32)
    s = (b * top).astype(F32)
    v = (g / np.where(s > 0, s, 1)).astype(F32)
    q = np.where(s > 0, encode(v, f.dtype, f.rounding), 0)
    return q * (b.astype(np.float64) * top.astype(np.float64))


def dequantize_rows(f, codes, scale, top):
    """Pre-quantised activations [rows, K] to f64; scale as cmoe_tensors.x_scale, decoded."""
    q = decode(codes, f.dtype)
    s = np.asarray(scale, np.float64)
    if f.scaling in ("g", "mx32", "nv16"):
        s = np.repeat(s, f.group, axis=1)[:, : q.shape[1]]
    elif f.scaling == "token":
        s = s.reshape(-1, 1)
    if f.scaling == "nv16":
        s = s * np.asarray(top, np.float64).reshape(-1, 1)
    return q * s


def expand_scale(f, s, shape):
    """A weight matrix's scale (or zero point) array to one number an element."""
    rows, cols = shape
    s = np.asarray(s)
    if f.scaling == "tensor":
        return np.broadcast_to(s.reshape(1, 1), shape)
    if f.scaling == "channel":
        return np.broadcast_to(s.reshape(rows, 1), shape)
    if f.scaling == "b128":
        return np.repeat(np.repeat(s, 128, 0), 128, 1)[:rows, :cols]
    return np.repeat(s, f.group, 1)[:, :cols]


def scale_shape(f, rows, cols):
    blocks = -(-cols // (f.group or 128))
    return {"none": (0,), "tensor": (1,), "channel": (rows,), "b128": (-(-rows // 128), blocks),
            "g": (rows, blocks), "mx32": (rows, blocks), "nv16": (rows, blocks)}[f.scaling]


def quantize_weight(f, v):
    """Quantise a weight matrix v [rows, K] (f32) as format f does; what it stands for, in f64."""
    v = np.asarray(v, F32)
    rows, cols = v.shape
    if f.scaling == "none":
        return to_float(v, f.dtype).astype(np.float64)
    if f.scaling in ("mx32", "nv16"):
        if f.scaling == "mx32":
            return quantize_rows(f, v)
        g = _grouped(v, 16)
        a = np.abs(g).max(2, keepdims=True)
        top = np.asarray(a.max() / F32(2688), F32)
        top = F32(1) if top < F32(2.0**-126) else top
        one = Format(f.dtype, f.scaling, 16, fixed=True)
        return _quantize_nv(one, g, a, top).reshape(rows, -1)[:, :cols]
    # One index of its scale for every element.
    r, c = np.indices(v.shape)
    scope = {"tensor": 0 * r, "channel": r, "b128": r // 128 * cols + c // 128,
             "g": r * cols + c // max(f.group, 1)}[f.scaling]
    _, scope = np.unique(scope, return_inverse=True)
    scope = scope.reshape(v.shape)
    count = scope.max() + 1
    low, high = np.zeros(count, F32), np.zeros(count, F32)
    np.minimum.at(low, scope, v)
    np.maximum.at(high, scope, v)
    top = {"u4": 7.0, "u8": 127.0}.get(f.dtype) or MAX[f.dtype]
    levels = {"u4": 15.0, "u8": 255.0}.get(f.dtype)
    s = (((high - low) / F32(levels)) if f.zero else np.maximum(high, -low) / F32(top)).astype(F32)
    s = np.where(s < F32(2.0**-126), F32(1), s)
    if f.scale_dtype:
        s = np.clip(to_float(s, f.scale_dtype), 0, F32(MAX[f.scale_dtype]))
        s = np.where(s == 0, F32(1), s)
    each = s[scope]
    if f.zero:
        z = np.clip(np.rint((-low / s).astype(F32)), 0, levels)
        q = np.clip(np.rint((v / each).astype(F32)) + z[scope], 0, levels) - z[scope]
    elif f.dtype in ("u4", "u8"):
        q = np.clip(np.rint((v / each).astype(F32)), -top, top)
    else:
        q = encode((v / each).astype(F32), f.dtype)
    return q.astype(np.float64) * each.astype(np.float64)


# docs/numerics.md section 6: x, w, mid; `in` and y are bf16 except for f32 and f16.
SCHEMES = {
    "f32": ("f32", "f32", "f32"),
    "f16": ("f16", "f16", "f16"),
    "bf16": ("bf16", "bf16", "bf16"),
    "fp8-tensor": ("e4m3/tensor", "e4m3/tensor", "e4m3/tensor"),
    "fp8-token": ("e4m3/token", "e4m3/channel", "e4m3/token"),
    "fp8-block": ("e4m3/g128", "e4m3/b128", "e4m3/g128"),
    "fp8-w8a16": ("bf16", "e4m3/channel", "bf16"),
    "int8-w8a8": ("i8/token", "i8/channel", "i8/token"),
    "int8-smooth": ("i8/smooth", "i8/channel", "i8/smooth"),
    "int8-w8a16": ("bf16", "i8/channel", "bf16"),
    "int4-w4a16": ("bf16", "i4/g32", "bf16"),
    "int4-w4a8": ("i8/token", "i4/g32", "i8/token"),
    "mxfp4-w4a16": ("bf16", "e2m1/mx32", "bf16"),
    "mxfp4-w4a8": ("e4m3/tensor:static", "e2m1/mx32", "e4m3/tensor:static"),
    "mxfp4-mxfp8": ("e4m3/mx32", "e2m1/mx32", "e4m3/mx32"),
    "mxfp4-w4a4": ("e2m1/mx32", "e2m1/mx32", "e2m1/mx32"),
    "mxfp8": ("e4m3/mx32", "e4m3/mx32", "e4m3/mx32"),
    "nvfp4-w4a16": ("bf16", "e2m1/nv16", "bf16"),
    "nvfp4-w4a4": ("e2m1/nv16", "e2m1/nv16", "e2m1/nv16"),
}
