# SPDX-License-Identifier: MIT
"""The layer as functions: moe, and its parts route, sort, quantize, dequantize.

Conventions are those of docs/numerics.md (§2 scales, §3 routing, §4 experts).
"""

import ctypes
import threading
import warnings
from collections import OrderedDict, namedtuple

from . import problem as problems, tensors
from ._lib import lib
from .errors import InvalidError, SlowPathWarning, UnsupportedError
from .layer import Layer
from .problem import Problem
from .router import routing_extras
from .runtime import Plan, device as open_device, new_tensors
from .weights import is_float, quantize_experts, scale_dtype

_layers = OrderedDict()
_plans = {}
_lock = threading.Lock()
CACHED_LAYERS = 64

ARRAYS = ("w1_scale", "w2_scale", "w1_zero", "w2_zero", "w1_global", "w2_global", "b1", "b2",
          "smooth1", "smooth2", "expert_map")  # fmt: skip


def _key_of(obj):
    if obj is None:
        return None
    v = tensors.view(obj)
    return (v.ptr, v.dtype, tuple(v.shape), tuple(v.strides), v.device)


def layer_for(w1, w2, **options):
    """A Layer that uses these weights in place, from a small cache keyed by their addresses.

    Cached layers own nothing and hold no reference: an entry is used only by a caller that passes
    the same memory again. Layers that had to convert an argument are not cached.
    """
    arrays = {name: options.get(name) for name in ARRAYS}
    views = [tensors.view(a) for a in (w1, w2, *arrays.values()) if a is not None]
    plain = all(v.dtype not in tensors.FLOATS or v.dtype == "f32" for v in views[2:])
    plain = plain and all(v.contiguous for v in views[2:]) and options.get("pack") is False
    if options.get("scheme") is not None and views[0].dtype in tensors.FLOATS:
        plain = False
    if not plain:
        return Layer(w1, w2, **options)
    rest = tuple(sorted((k, v) for k, v in options.items() if k not in ARRAYS))
    key = (_key_of(w1), _key_of(w2), *(_key_of(a) for a in arrays.values()), rest)
    with _lock:
        found = _layers.get(key)
        if found is not None:
            _layers.move_to_end(key)
            return found
    made = Layer(w1, w2, **options)
    made.forget()
    with _lock:
        _layers[key] = made
        while len(_layers) > CACHED_LAYERS:
            _layers.popitem(last=False)
    return made


def moe(x, w1, w2, *, router_logits=None, topk=None, topk_ids=None, topk_weights=None, out=None,
        route_bias=None, x_scale=None, mid_scale=None, token_ids=None, hash_table=None,
        expert_load=None, return_routing=False, pack=False, **options):  # fmt: skip
    """One Mixture-of-Experts layer: y[t] = sum over slots s of weight[t, s] * expert[ids[t, s]](x[t]).

    ``moe(x, w1, w2, router_logits=z, topk=2, router="qwen3")`` routes; ``moe(x, w1, w2,
    topk_ids=ids, topk_weights=weights)`` takes the caller's routing. x [T, H], w1 [E, 2I, H] (gate
    rows first), w2 [E, H, I]; the result is [T, H] of x's type. Weights are used in place unless
    ``pack``. All options are those of :class:`cmoe.Layer` and its call. For repeated calls make a
    Layer: it packs the weights for the planner's kernels.

    Raises cmoe.InvalidError, cmoe.UnsupportedError, cmoe.MismatchError, cmoe.NoDeviceError.
    """
    if router_logits is not None and topk is None:
        raise InvalidError("router_logits needs topk")
    layer = layer_for(w1, w2, topk=topk, pack=pack, **options)
    return layer(x, router_logits, topk_ids=topk_ids, topk_weights=topk_weights, out=out,
                 route_bias=route_bias, x_scale=x_scale, mid_scale=mid_scale, token_ids=token_ids,
                 hash_table=hash_table, expert_load=expert_load,
                 return_routing=return_routing)  # fmt: skip


def partial_plan(text, dev):
    """A cached plan without weights; falls back to "ref" where the device has no kernel."""
    key = (text, dev.spec)
    plan = _plans.get(key)
    if plan is None:
        problem = Problem(text)
        try:
            plan = Plan(dev, problem)
        except UnsupportedError as error:
            if dev.spec == "ref" or not dev.host:
                raise
            warnings.warn(f"{text}: runs on the slow device \"ref\" ({error})", SlowPathWarning, 3)
            plan = Plan(open_device("ref"), problem)
        _plans[key] = plan
    return plan


def _device_for(v, spec):
    return open_device(spec or (None if v.device == "cpu" else v.device))


def route(logits, topk, router="softmax", *, bias=None, ids=None, weights=None, options="",
          token_ids=None, hash_table=None, device=None):  # fmt: skip
    """Select experts: (topk_weights f32 [T, S], topk_ids int32 [T, S]), best first.

    :param logits: [T, E] f32, f16 or bf16 (plus one column per shared expert with ``shsigmoid``).
    :param router: as for Layer: "qwen3", "softmax renorm", "sigmoid rbias renorm groups=8/4 gsum2".
    :param bias: selection bias f32 [E]; needs ``rbias`` among the router's words.
    :param options: more words, such as "shared=1".
    :param ids, weights: arrays to write into. S is topk + shared.

    Ties go to the lowest id (``tiehigh``: highest); NaN ranks last; ids are distinct (docs/numerics.md
    §3, which follows vLLM's and DeepSeek's routers).
    """
    v = tensors.rows(tensors.view(logits, "logits"))
    if len(v.shape) != 2:
        raise InvalidError(f"logits have shape {list(v.shape)}; expected [tokens, experts]")
    n = v.shape[0]
    first, _, rest = router.partition(" ")
    known = first in ("softmax", "sigmoid", "sqrtsoftplus", "raw")
    words = f"{'' if '=' in first else 'route=' if known else 'router='}{first} {rest} {options}"
    probe = Problem(f"k={topk} {words}")
    extra = probe.c.shared if "shsigmoid" in words else 0
    bucket = max(8, 1 << max(n - 1, 0).bit_length())
    text = (
        f"t={bucket} e={v.shape[1] - extra} k={topk} h=1 i=1 {words} won=out "
        f"lg={tensors.float_name(v, 'logits')} stages=route..route"
    )
    slots = probe.slots
    ids = tensors.empty(v, (n, slots), "i32") if ids is None else ids
    weights = tensors.empty(v, (n, slots), "f32") if weights is None else weights
    out = (tensors.view(ids, "ids"), tensors.view(weights, "weights"))
    for o, name, dtype in zip(out, ("ids", "weights"), ("i32", "f32")):
        if tuple(o.shape) != (n, slots) or o.dtype != dtype or not o.contiguous:
            raise InvalidError(f"{name} must be contiguous {dtype} [{n}, {slots}], not {o!r}")
    plan = partial_plan(text, _device_for(v, device))
    if n:
        t = new_tensors(n)
        t.logits, t.logits_stride = v.ptr, v.strides[0] if n > 1 else 0
        t.topk_ids, t.topk_weights = out[0].ptr, out[1].ptr
        keep = routing_extras(t, v.shape[1] - extra, topk, bias, token_ids, hash_table)
        plan.run(t, v)
        keep.clear()
    return weights, ids


Sorted = namedtuple("Sorted", "ids experts num_valid weights")
Sorted.__doc__ = """Result of sort.

index: ids = rows t*k+s by expert, tight; experts = offsets [E+1]; num_valid None.
packed: ids = (slot<<24)|token, padded to block_m; experts by block; num_valid [rows, tokens].
flat: ids = t*k+s, padded with T*k; experts by block; num_valid [rows].
"""


def sort(topk_ids, experts, format="packed", *, block_m=32, topk_weights=None, expert_map=None,
         device=None):  # fmt: skip
    """Order slots by expert; stable, with padding where the format has it.

    :param topk_ids: [T, k] int32 or int64. Ids outside 0 .. experts-1 are left out.
    :param format: "index"; "packed" (AITER's moe_sorting); "flat" (vLLM's moe_align_block_size).
    :param expert_map: int32 [experts], local index or -1.
    :return: a :class:`Sorted` of int32 arrays (weights f32). Rows past num_valid[0] are unset.
    """
    v = tensors.contiguous(tensors.view(topk_ids, "topk_ids"))
    if len(v.shape) != 2:
        raise InvalidError(f"topk_ids have shape {list(v.shape)}; expected [tokens, topk]")
    if v.dtype not in ("i32", "i64"):
        v = tensors.integers(topk_ids, "topk_ids")
    n, k = v.shape
    bucket = max(1, n)
    local = experts
    text = f"t={bucket} e={max(experts, k)} k={k} h=1 i=1 sort={format}"
    if format != "index":
        text += f" bm={block_m}"
    mapping = None
    if expert_map is None and k > experts:  # a problem has no fewer experts than slots
        text += f" local={experts}"
    if expert_map is not None:
        mapping = tensors.integers(expert_map, "expert_map")
        if mapping.shape[0] < max(experts, k):
            raise InvalidError(
                f"expert_map has {mapping.shape[0]} entries; expected {max(experts, k)}"
            )
        local = max(1, _count_local(mapping))
        text += f" map local={local}"
    plan = partial_plan(text + " stages=sort..sort", _device_for(v, device))
    t = new_tensors(n)
    if v.dtype == "i64":
        t.topk_ids64 = v.ptr
    else:
        t.topk_ids = v.ptr
    given = None
    if topk_weights is not None:
        given = tensors.cast(tensors.view(topk_weights, "topk_weights"), "f32")
    elif format == "packed":
        given = tensors.cast(tensors.view(tensors.empty(v, (n, k), "f32")), "f32")
        given.owner[...] = 0
    if given is not None:
        t.topk_weights = given.ptr
    if mapping is not None:
        t.expert_map = mapping.ptr
    if format == "index":
        capacity, blocks, valid = n * k, local + 1, 0
    else:
        capacity = lib.sort_capacity(ctypes.byref(plan.problem.c), n)
        blocks, valid = -(-capacity // block_m), 2 if format == "packed" else 1
    ids = tensors.empty(v, (capacity,), "i32")
    by = tensors.empty(v, (blocks,), "i32")
    t.sorted_ids = tensors.view(ids).ptr
    num_valid = sorted_weights = None
    if format == "index":
        t.expert_offsets = tensors.view(by).ptr
    else:
        t.block_experts = tensors.view(by).ptr
        num_valid = tensors.empty(v, (valid,), "i32")
        num_valid[...] = 0
        t.num_valid = tensors.view(num_valid).ptr
    if format == "packed":
        sorted_weights = tensors.empty(v, (capacity,), "f32")
        t.sorted_weights = tensors.view(sorted_weights).ptr
    if n == 0:
        by[...] = 0
    else:
        plan.run(t, v)
    return Sorted(ids, by, num_valid, sorted_weights)


def _count_local(mapping):
    owner = mapping.owner if mapping.kind != "dlpack" else None
    if owner is None:
        raise InvalidError("expert_map must be a NumPy array or a torch tensor")
    return int(owner.max()) + 1 if owner.shape[0] else 0


Quantized = namedtuple("Quantized", "data scale zero global_")
Quantized.__doc__ = "Codes, scales, zero points (or None) and global multipliers (or None)."


def _format(format, activations):
    """The cmoe_format of "i4/g64:zp" or of a scheme's name."""
    key = "x" if activations else "w"
    text = f"{key}={format}" if "/" in format or format in problems.DTYPES else f"scheme={format}"
    problem = Problem(text)
    return problem.c.x if activations else problem.c.w


def quantize(a, format, *, activations=False):
    """Quantise weights [rows, cols] or [E, rows, cols], or activations [rows, cols].

    :param format: a format ("e4m3/b128", "i4/g64", "u4/g64:zp", "e2m1/mx32") or a scheme's name.
    :param activations: quantise rows as the layer quantises x (scales token, gN, mx32, nv16).
    :return: Quantized(data, scale, zero, global_) in the layouts of include/cmoe/weights.h, new
        arrays of a's kind. Rounding: docs/numerics.md §2.
    """
    fmt = _format(format, activations)
    if is_float(fmt):
        raise InvalidError(f"format {format!r} is not quantised")
    v = tensors.cast(tensors.view(a, "a"), "f32")
    if v.device != "cpu":
        raise UnsupportedError(f"quantize runs on the CPU; the array is on {v.device}")
    if activations:
        return _quantize_rows(fmt, v)
    shape = tuple(v.shape)
    flat = tensors.View(v.ptr, "f32", (1, *shape) if len(shape) == 2 else shape, (), "cpu",
                        v.owner if len(shape) == 3 else v.owner[None], v.kind)  # fmt: skip
    if len(flat.shape) != 3:
        raise InvalidError(f"a has shape {list(shape)}; expected two or three dimensions")
    side = quantize_experts(fmt, tensors.view(flat.owner))
    rows = flat.shape[1]
    scaling = problems.scaling_of(fmt)
    grid = {"tensor": (), "channel": (rows,), "b128": (-(-rows // 128), -1)}
    out = []
    for part, tail in ((side.data, (rows, -1)), (side.scale, grid.get(scaling, (rows, -1))),
                       (side.zero, (rows, -1) if scaling != "channel" else (rows,)),
                       (side.global_, ())):  # fmt: skip
        if part is None:
            out.append(None)
        else:
            array = part.owner.reshape((flat.shape[0], *tail))
            out.append(array if len(shape) == 3 else array[0])
    return Quantized(*out)


def _quantize_rows(fmt, v):
    if len(v.shape) != 2:
        raise InvalidError(f"activations have shape {list(v.shape)}; expected [rows, columns]")
    rows, cols = v.shape
    codes, scales, _ = problems.format_bytes(fmt, rows, cols)
    stype, scaling = scale_dtype(fmt), problems.scaling_of(fmt)
    dtype = problems.dtype_of(fmt) if problems.bits_of(fmt) == 8 else "u8"
    data = tensors.empty(v, (rows, codes // max(rows, 1)), dtype)
    count = scales // tensors.ITEM[stype]
    shape = {"tensor": (1,), "token": (rows, 1), "smooth": (rows, 1)}.get(
        scaling, (rows, count // max(rows, 1))
    )
    scale = tensors.empty(v, shape, stype)
    global_ = tensors.empty(v, (rows,), "f32") if scaling == "nv16" else None
    lib.quantize_rows(
        fmt, v.ptr, rows, cols, None, tensors.view(data).ptr, tensors.view(scale).ptr,
        tensors.view(global_).ptr if global_ is not None else None,
    )  # fmt: skip
    return Quantized(data, scale, None, global_)


def dequantize(q, format, *, activations=False, cols=None):
    """The inverse of quantize: f32 of q's shape (``cols``: columns, where they cannot be seen)."""
    from . import _abi

    fmt = _format(format, activations)
    data = tensors.contiguous(tensors.view(q.data, "data"))
    parts = [None if a is None else tensors.contiguous(tensors.view(a)) for a in q[1:]]
    if cols is None:
        cols = data.shape[-1] * (2 if problems.bits_of(fmt) == 4 else 1)
    rows = data.shape[-2]
    experts = data.shape[0] if len(data.shape) == 3 else 1
    result = tensors.empty(data, (experts, rows, cols), "f32")
    out = tensors.view(result)
    sizes = problems.format_bytes(fmt, rows, cols)
    for e in range(experts):
        ptr = [None if p is None else p.ptr + e * s for p, s in zip(parts, (*sizes[1:], 4))]
        target = out.ptr + e * rows * cols * 4
        if activations:
            lib.dequantize_rows(fmt, data.ptr, ptr[0], ptr[2], rows, cols, target)
        else:
            m = _abi.Matrix(data=data.ptr + e * sizes[0], scale=ptr[0], zero=ptr[1], global_=ptr[2])
            lib.dequantize_weight(fmt, ctypes.byref(m), rows, cols, target)
    return result if len(data.shape) == 3 else result[0]
