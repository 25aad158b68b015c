# SPDX-License-Identifier: MIT
"""What the hosts' functions share: schemes from their flags, and one grouped GEMM.

Sources of the conventions: vLLM's fused_moe.py and its quantisation config, SGLang's fused_moe_triton,
AITER's moe_op.py.
"""

import ctypes

import torch

from .. import problem as problems, tensors
from .._lib import lib
from ..errors import InvalidError, UnsupportedError
from ..functions import layer_for
from ..problem import Problem
from ..runtime import Plan, device as open_device, new_tensors
from ..weights import Side, Weights, is_float, table

ACTIVATIONS = {
    "silu": ("silu", "split"), "gelu": ("gelu", "split"), "gelu_tanh": ("gelu-tanh", "split"),
    "gelu_pytorch_tanh": ("gelu-tanh", "split"), "relu2": ("relu2", "split"),
    "swigluoai": ("swiglu-oai", "interleaved"),
    "swigluoai_uninterleave": ("swiglu-oai", "split"), "situ": ("situv2", "split"),
    "silu_no_mul": ("silu", "none"), "gelu_no_mul": ("gelu", "none"),
    "gelu_tanh_no_mul": ("gelu-tanh", "none"), "relu2_no_mul": ("relu2", "none"),
}  # fmt: skip


def activation(name):
    """(act, gate) for a host's activation name or enum."""
    name = getattr(name, "value", name)
    try:
        return ACTIVATIONS[name]
    except (KeyError, TypeError):
        raise UnsupportedError(f"cmoe has no activation {name!r}") from None


def unpack_zeros(packed):
    """u8 [E, rows/2, groups], low nibble = even row -> u8 [E, rows, groups]."""
    both = torch.stack((packed & 15, packed >> 4), 2)
    return both.reshape(packed.shape[0], -1, packed.shape[2]).contiguous()


def weight_words(w, scale, *, fp8=False, int8=False, int8_w8a16=False, int4_w4a16=False, mx=None,
                 per_channel=False, block_shape=None, zeros=False, static=False):  # fmt: skip
    """Words "x=... w=... mid=..." for vLLM's and AITER's flags; None: unquantised."""
    group = block_shape[1] if block_shape else 0
    fixed = ":static" if static else ""
    if (fp8 or int8 or int8_w8a16 or int4_w4a16 or mx) and scale is None:
        raise InvalidError("the weights' scales are missing: the flags say that they are quantised")
    if fp8 or int8:
        kind = tensors.torch_dtype_name(w.dtype) if fp8 else "i8"
        if kind not in ("e4m3", "e4m3fnuz", "e5m2", "i8"):
            kind = "e4m3"
        if block_shape:
            if list(block_shape) != [128, 128] or not fp8:
                raise UnsupportedError(f"cmoe scales blocks of [128, 128], not {block_shape}")
            x, weights = f"{kind}/g128", f"{kind}/b128"
        elif per_channel or scale.numel() > 2 * w.shape[0]:
            x, weights = f"{kind}/token", f"{kind}/channel"
        else:
            x, weights = f"{kind}/tensor{fixed}", f"{kind}/tensor"
        return f"x={x} w={weights} mid={x}"
    if int8_w8a16:
        kind = "u8" if w.dtype == torch.uint8 else "i8"
        return f"w={kind}/{f'g{group}' if group else 'channel'}{':zp' if zeros else ''}"
    if int4_w4a16:
        return f"w=u4/g{group}{':zp' if zeros else ''}"
    if mx:
        known = {"w_mxfp4": "", "w_mxfp4_a_mxfp4": "x=e2m1/mx32 mid=e2m1/mx32 ",
                 "w_mxfp4_a_fp8": f"x=e4m3/tensor{fixed} mid=e4m3/tensor{fixed} "}  # fmt: skip
        if mx not in known:
            raise UnsupportedError(f"cmoe has no scheme for ocp_mx_scheme {mx!r}")
        return known[mx] + "w=e2m1/mx32"
    return None


def float_words(dtype):
    """Words for x, mid, in and y of one float type."""
    name = tensors.torch_dtype_name(dtype)
    return f"x={name} mid={name} in={name} y={name} w={name}"


def run_experts(x, w1, w2, weights, ids, words, *, act, gate, weight_on="out", out=None,
                x_scale=None, mid_scale=None, options="", dtype=None, **arrays):  # fmt: skip
    """A layer call with words in place of a scheme; ``dtype``: the result's where x is quantised.

    GEMM2's results may be of y's type before they are added up, as the hosts' kernels have them.
    """
    options = f"{words or ''} reduced {options}"
    scheme = None if words is None else tensors.torch_dtype_name(dtype or x.dtype)
    layer = layer_for(w1, w2, scheme=scheme, act=act, gate=gate, weight_on=weight_on,
                      options=options, pack=False, **arrays)  # fmt: skip
    return layer(x, topk_ids=ids, topk_weights=weights, out=out, x_scale=x_scale,
                 mid_scale=mid_scale)  # fmt: skip


def grouped_gemm(a, b, words, sorted_ids, expert_ids, num_valid, top_k, *, block_m, b_scale=None,
                 b_zero=None, bias=None, a_scale=None, weights=None):  # fmt: skip
    """f32 [M*top_k, N]: for every sorted flat id s, a[s // top_k] @ b[expert of its block].T.

    Rows of no sorted id are undefined. ``words`` describe x (quantised here, or given with
    ``a_scale``) and w; the routing weights multiply the product before the bias is added.
    """
    b_view = tensors.view(b, "B")
    experts, n = b_view.shape[:2]
    tokens, h = a.shape
    if tensors.torch_dtype_name(a.dtype) in ("u8", "e2m1x2") and "x=e2m1" in words:
        h *= 2
    p = Problem(
        f"t={max(tokens, 1)} e={max(experts, top_k)} local={experts} k={top_k} h={h} i={n} gate=none "
        f"{words} won={'out' if weights is None else 'gemm1'} {'' if bias is None else 'b1'} "
        f"sort=flat bm={block_m} {'xq' if a_scale is not None else ''}"
    )
    fmt = p.c.w
    side = Side(b_view, *(None if t is None else tensors.view(t) for t in (b_scale, b_zero)), None,
                None if bias is None else tensors.view(bias))  # fmt: skip
    given = side.scale
    if given is not None and problems.scaling_of(fmt) == "g" and given.dtype in ("bf16", "f16"):
        fmt.scale_dtype = problems.DTYPES[given.dtype]
    entries, count, keep = table(p, 1, side, False)
    # The plan ends at GEMM1: the second matrix is never read, and the first stands in for it.
    unread = type(entries)(*entries)
    for m in unread:
        m.row_stride = m.col_stride = 0
    dev = open_device(None if b_view.device == "cpu" else b_view.device)
    p.apply(f"stages={'quant' if not is_float(p.c.x) and a_scale is None else 'gemm1'}..gemm1")
    result = torch.empty(tokens * top_k, n, dtype=torch.float32, device=a.device)
    try:
        plan = Plan(dev, p, Weights(dev, p, (entries, count), (unread, count)))
    except UnsupportedError:
        if not dev.host:
            raise
        dev = open_device("ref")
        plan = Plan(dev, p, Weights(dev, p, (entries, count), (unread, count)))
    t = new_tensors(tokens)
    x = tensors.rows(tensors.view(a, "A"))
    t.x, t.x_stride = x.ptr, x.strides[0] * x.item if tokens > 1 else 0
    held = [x, keep]
    for name, value in (("x_scale", a_scale), ("topk_weights", weights)):
        if value is not None:
            v = tensors.view(value, name)
            mx = name == "x_scale" and v.dtype in ("u8", "e8m0")
            v = tensors.contiguous(v) if mx else tensors.cast(v, "f32")
            setattr(t, name, v.ptr)
            held.append(v)
    capacity = lib.sort_capacity(ctypes.byref(p.c), tokens)
    ids = torch.full((capacity,), tokens * top_k, dtype=torch.int32, device=a.device)
    used = min(int(num_valid.reshape(-1)[0]), sorted_ids.numel())
    if used > capacity:
        raise InvalidError(f"{used} sorted ids are more than the {capacity} that {p} can have")
    ids[:used] = sorted_ids[:used]
    blocks = torch.full((-(-capacity // block_m),), -1, dtype=torch.int32, device=a.device)
    blocks[: -(-used // block_m)] = expert_ids[: -(-used // block_m)]
    valid = torch.tensor([used], dtype=torch.int32, device=a.device)
    t.sorted_ids, t.block_experts, t.num_valid = ids.data_ptr(), blocks.data_ptr(), valid.data_ptr()
    t.gate_up = result.data_ptr()
    if tokens:
        plan.run(t, x)
    return result


def store_rows(c, result, sorted_ids, expert_ids, num_valid, block_m):
    """Copy the rows of valid sorted ids to c; blocks of expert -1 are written as zeros."""
    used = int(num_valid.reshape(-1)[0])
    ids = sorted_ids[:used].long()
    owner = expert_ids[torch.arange(used, device=ids.device) // block_m]
    real = ids < result.shape[0]
    local, nobody = ids[real & (owner >= 0)], ids[real & (owner < 0)]
    c[local] = result[local].to(c.dtype)
    c[nobody] = 0
