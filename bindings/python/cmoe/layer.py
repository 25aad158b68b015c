# SPDX-License-Identifier: MIT
"""One Mixture-of-Experts layer: weights made once, plans made per call shape, any number of threads."""

import ctypes
import threading
import warnings

from . import _abi, problem as problems, tensors
from ._lib import fail, lib
from .errors import InvalidError, SlowPathWarning, UnsupportedError
from .problem import Problem
from .router import routing_extras
from .runtime import Plan, device as open_device, host_workspace, new_tensors, recording
from .weights import (
    Side,
    Weights,
    choose_formats,
    is_float,
    quantize_experts,
    quantize_halves,
    scale_dtype,
    size_of,
    table,
)


# Fields of cmoe_tensors, counted in words of eight bytes.
_X, _Y, _WEIGHTS = (getattr(_abi.Tensors, n).offset // 8 for n in ("x", "y", "topk_weights"))


def _view(obj, name):
    return None if obj is None else tensors.view(obj, name)


def again(found, x, logits, ids, weights):
    """Run a kept call on other tensors of its types and shapes; None: they need a full call."""
    routed = ids if logits is None else logits
    if not (x.is_contiguous() and routed.is_contiguous() and x.is_cpu and routed.is_cpu):
        return None
    plan, size, workspace, address, words, slot, _, _ = found
    if logits is None:
        if type(weights) is not tensors.torch_type or weights.shape != ids.shape:
            return None
        if weights.dtype is not tensors.torch_float32 or not (
            weights.is_contiguous() and weights.is_cpu
        ):
            return None
        words[_WEIGHTS] = weights.data_ptr()
    y = tensors.torch_empty_like(x)
    words[slot] = routed.data_ptr()
    words[_X] = x.data_ptr()
    words[_Y] = y.data_ptr()
    status = lib.execute(plan, address, workspace, size, None)
    if status:
        fail(status)
    return y


class Layer:
    """A layer's experts, and its router if logits are given to it.

    ::

        y = layer(x, router_logits)                                   # routes, then computes
        y = layer(x, topk_ids=ids, topk_weights=weights)              # routed by the caller

    Letters: T tokens, H hidden, I intermediate, E local experts, k experts a token.

    :param w1: gate and up, [E, 2I, H] ([E, I, H] with ``gate="none"``); ``transposed``: [E, H, 2I].
        Floats, or codes of the scheme's weights; 4-bit types two a byte along the input, low nibble
        first. Floats given with a quantised scheme are quantised here (docs/numerics.md §2).
    :param w2: down, [E, H, I]; ``transposed``: [E, I, H].
    :param topk: k of the router; not needed when the caller routes.
    :param scheme: "bf16", "fp8-block", "int4-w4a16:g64,zp", ...: docs/schemes.md. None: unquantised.
    :param router: a preset ("qwen3", "deepseek-v3") or words ("softmax renorm groups=8/4 scale=2.5",
        where a first word without "=" names the score): docs/problem.md.
    :param act: silu, gelu, gelu-tanh, relu, relu2, swiglu-oai, situv2, identity.
    :param gate: "split" (I gate rows, then I up rows: Mixtral, Qwen, DeepSeek), "interleaved" (even
        rows gate: gpt-oss), "none".
    :param weight_on: where routing weights multiply: out, input (Llama-4), gemm1, act.
    :param w1_scale, w2_scale: scales [E, ...] in the layout of the weights' scaling
        (include/cmoe/weights.h); w1_zero, w2_zero: u8 zero points, one a byte; w1_global, w2_global:
        f32 [E] (NVFP4); b1, b2: biases [E, rows]; smooth1, smooth2: f32 [E, H], [E, I].
    :param experts: routed experts over all ranks, when these are a slice that begins at
        ``expert_first`` or is described by ``expert_map`` (int32 [experts], local index or -1).
    :param options: more words of a problem ("hpad=64 limit=7 binv"); "reduced" lets GEMM2's results be of y's type
        before they are added up, as other libraries have them: faster on GPUs (docs/problem.md).
    :param pack: repack weights into the layout the planner prefers (a copy); False: use them in
        place, without a copy. None: repack when it costs at most 1 GiB.
    :param device: "cpu", "cuda:0", "ref"; None: where the weights are, else CMOE_DEVICE, else the
        CPU; a problem that no fast kernel covers then runs on "ref", with a SlowPathWarning.

    Any number of threads may call one layer at once. Raises subclasses of cmoe.Error.
    """

    def __init__(self, w1, w2, *, topk=None, scheme=None, router=None, act="silu", gate="split",
                 weight_on="out", transposed=False, w1_scale=None, w2_scale=None, w1_zero=None,
                 w2_zero=None, w1_global=None, w2_global=None, b1=None, b2=None, smooth1=None,
                 smooth2=None, experts=None, expert_first=0, expert_map=None, options="",
                 pack=None, device=None):  # fmt: skip
        self._sides = [
            Side(*(_view(v, n) for v, n in zip(arrays, names)))
            for arrays, names in (
                ((w1, w1_scale, w1_zero, w1_global, b1, smooth1),
                 ("w1", "w1_scale", "w1_zero", "w1_global", "b1", "smooth1")),
                ((w2, w2_scale, w2_zero, w2_global, b2, smooth2),
                 ("w2", "w2_scale", "w2_zero", "w2_global", "b2", "smooth2")),
            )
        ]  # fmt: skip
        self._lock = threading.Lock()
        self._plans = {}
        self._calls = threading.local()
        self.transposed = transposed
        self.topk = topk
        self.expert_map = None
        if expert_map is not None:
            self.expert_map = tensors.integers(expert_map, "expert_map")
            if self.expert_map.device != self._sides[0].data.device:
                raise InvalidError(
                    f"expert_map is on {self.expert_map.device}, but w1 on {self._sides[0].data.device}"
                )
        self._base = self._problem(
            scheme, router, act, gate, weight_on, experts, expert_first, options
        )
        self._quantize(scheme)
        self._open(device, pack)

    # --- construction ---

    def _problem(self, scheme, router, act, gate, weight_on, experts, expert_first, options):
        w1, w2 = self._sides[0].data, self._sides[1].data
        for v, name in ((w1, "w1"), (w2, "w2")):
            if len(v.shape) != 3:
                raise InvalidError(f"{name} has shape {list(v.shape)}; expected three dimensions")
        if w1.device != w2.device:
            raise InvalidError(f"w1 is on {w1.device}, but w2 on {w2.device}")
        if w1.shape[0] != w2.shape[0]:
            raise InvalidError(f"w1 holds {w1.shape[0]} experts and w2 {w2.shape[0]}")
        rows1, hidden = w1.shape[2 if self.transposed else 1], w2.shape[2 if self.transposed else 1]
        if gate != "none" and rows1 % 2:
            raise InvalidError(f"w1 has {rows1} rows an expert, which gate and up cannot share")
        inter = rows1 if gate == "none" else rows1 // 2
        local = w1.shape[0]
        total = experts or (self.expert_map.shape[0] if self.expert_map is not None else local)
        words = [f"e={total} k={self.topk or 1} h={hidden} i={inter}"]
        if self.expert_map is not None:
            words.append(f"map local={local}")
        elif total != local or expert_first:
            words.append(f"first={expert_first} local={local}")
        if scheme is not None:
            words.append(f"scheme={scheme}")
        else:
            dtype = tensors.float_name(w1, "w1 (without a scheme)")
            words.append(f"x={dtype} w={dtype} mid={dtype} in={dtype} y={dtype}")
        if router:
            first, _, rest = router.partition(" ")
            known = first in ("softmax", "sigmoid", "sqrtsoftplus", "raw", "all")
            key = "" if "=" in first else "route=" if known else "router="
            words.append(f"{key}{first} {rest}")
        words.append(f"act={act} gate={gate} won={weight_on}")
        for side, flag in zip(self._sides, ("b1", "b2")):
            if side.bias is not None:
                words.append(flag)
        return Problem(" ".join(words) + " " + options)

    def _quantize(self, scheme):
        """Floats given with a quantised scheme become codes; scale types follow what was given."""
        fmt = self._base.c.w
        for n, side in enumerate(self._sides):
            name = side.data.dtype
            if is_float(fmt):
                if scheme is not None and tensors.float_name(side.data, f"w{n + 1}") != (
                    problems.dtype_of(fmt)
                ):
                    fmt.dtype = problems.DTYPES[tensors.float_name(side.data, f"w{n + 1}")]
                continue
            if name in tensors.FLOATS and side.scale is None:
                data = side.data
                if self.transposed:
                    raise UnsupportedError("transposed weights cannot be quantised here")
                if n == 0 and problems.scaling_of(fmt) == "b128" and self._base.c.gate == 0:
                    made = quantize_halves(fmt, data)
                else:
                    made = quantize_experts(fmt, data)
                made.bias, made.smooth = side.bias, side.smooth
                self._sides[n] = made
            elif problems.scaling_of(fmt) == "g" and side.scale is not None:
                given = side.scale.dtype
                fmt.scale_dtype = 0 if given not in ("bf16", "f16") else problems.DTYPES[given]
        if problems.scaling_of(self._base.c.x) == "smooth":
            for n, side in enumerate(self._sides):
                if side.smooth is None:
                    raise InvalidError(f"smooth{n + 1} is missing: the scheme smooths activations")

    def _open(self, spec, pack):
        fixed = spec is not None
        where = self._sides[0].data.device
        if spec is None and where != "cpu":
            spec, fixed = where, True
        self.device = open_device(spec)
        try:
            self._make_weights(pack)
        except UnsupportedError as error:
            if fixed or not self.device.host or self.device.spec == "ref":
                raise
            warnings.warn(
                f"no fast kernel for {self._base}: it runs on the slow device \"ref\" ({error})",
                SlowPathWarning,
                stacklevel=3,
            )
            self.device = open_device("ref")
            self._make_weights(False)

    def _make_weights(self, pack):
        typical = self._base.copy(f"t=64 stages=quant..combine k={min(self._base.c.experts, 8)}")
        formats = choose_formats(self.device, typical)
        if recording():  # packed weights cannot be written
            pack = False
        if pack is None:
            size = sum(size_of(side.data) for side in self._sides)
            pack = size <= 1 << 30
        if not pack:
            formats = (None, None)
        tables = [table(self._base, n + 1, s, self.transposed) for n, s in enumerate(self._sides)]
        self.weights = Weights(self.device, self._base, tables[0], tables[1], formats)
        self._keep = [tables[0][2], tables[1][2]]
        for n in (0, 1):
            if formats[n] is not None:  # packed: the codes were copied
                self._keep[n] = self._keep[n][1:]
                self._sides[n].data = None
        if not pack:
            Plan(self.device, typical, self.weights)  # raise here what a call would raise

    # --- calls ---

    def __call__(self, x, router_logits=None, *, topk_ids=None, topk_weights=None, out=None,
                 route_bias=None, x_scale=None, mid_scale=None, token_ids=None, hash_table=None,
                 expert_load=None, return_routing=False, x_global=None,
                 workspace=None):  # fmt: skip
        """Compute the layer for the rows of x.

        :param x: [T, H] f32, f16 or bf16 (uint16: bf16); rows may be strided. Or codes of the scheme's
            activations (4-bit types two a byte), with their scales in ``x_scale``: f32 [1], [T] or
            [T, ceil(H/128)], e8m0 [T, ceil(H/32)], e4m3 [T, ceil(H/16)] with ``x_global`` f32 [T].
        :param router_logits: [T, E of all ranks] f32, f16 or bf16; or else
        :param topk_ids: [T, k] int32 or int64. Ids that are negative, past the last expert or not
            local contribute exactly zero. ``topk_weights``: [T, k], any float type, used as f32.
        :param out: where to write, [T, H]; None: a new array of x's kind, and of x's type or, where x
            is quantised, of the scheme's ``in``.
        :param route_bias: f32 [E], for routers with a selection bias (DeepSeek-V3).
        :param x_scale, mid_scale: f32 [1], static activation scales.
        :param workspace: torch bytes to work in, on x's device; used if they are
            ``workspace_size()`` or more, otherwise the layer has its own.
        :param expert_load: int64 [local experts], counts are added.
        :param return_routing: also return (topk_ids, topk_weights).
        """
        if router_logits is not None and topk_ids is not None:
            raise InvalidError("give either router_logits or topk_ids, not both")
        if type(x) is tensors.torch_type and out is None and not return_routing:
            if route_bias is x_scale is mid_scale is token_ids is expert_load is workspace is None:
                found = self._found(x, router_logits, topk_ids)
                if found is not None:
                    y = again(found, x, router_logits, topk_ids, topk_weights)
                    if y is not None:
                        return y
        v = tensors.rows(tensors.view(x, "x"))
        codes = v.dtype not in tensors.FLOATS and v.dtype != "u16"
        columns = self._columns(v) if codes else self._base.c.hidden
        if len(v.shape) != 2 or v.shape[1] != columns:
            raise InvalidError(f"x has shape {list(v.shape)}; expected [tokens, {columns}]")
        n = v.shape[0]
        dtype = problems.DTYPES[self._base.c.in_] if codes else tensors.float_name(v, "x")
        logits = ids = weights = None
        if router_logits is not None:
            if self.topk is None:
                raise InvalidError("router_logits needs a layer made with topk=")
            logits = self._logits(router_logits, n)
            k, key = self.topk, (dtype, tensors.float_name(logits, "router_logits"))
        elif topk_ids is None or topk_weights is None:
            raise InvalidError("give either router_logits or both topk_ids and topk_weights")
        else:
            ids = tensors.contiguous(tensors.view(topk_ids, "topk_ids"))
            if ids.dtype not in ("i32", "i64"):
                ids = tensors.integers(topk_ids, "topk_ids")
            weights = tensors.cast(tensors.view(topk_weights, "topk_weights"), "f32")
            if len(ids.shape) != 2 or ids.shape[0] != n or weights.shape != ids.shape:
                raise InvalidError(
                    f"topk_ids {list(ids.shape)} and topk_weights {list(weights.shape)} do not "
                    f"belong to {n} tokens"
                )
            k, key = ids.shape[1], (dtype, None)
        self._same_device(v, logits, ids, weights)
        y, y_view = self._output(v, out, n, dtype if codes else v.dtype)
        routing = (ids, weights)
        if return_routing and logits is not None:
            made = (tensors.empty(v, (n, k), "i32"), tensors.empty(v, (n, k), "f32"))
            routing = tuple(tensors.view(m) for m in made)
        if n == 0 or (k == 0 and logits is None):
            if n:
                y[...] = 0
        else:
            t = self._tensors(n, v, logits, routing, y_view, key[1])
            extras = self._codes_scales(t, v, x_scale, x_global) if codes else []
            extras += self._extras(t, route_bias, None if codes else x_scale, mid_scale, token_ids,
                                   hash_table, expert_load)  # fmt: skip
            y_type = tensors.float_name(y_view, "out")
            plan = self._plan(n, k, (*key, y_type), codes)
            plan.run(t, v, workspace)
            if not extras and out is None and v.kind == "torch" and self.device.host:
                self._remember(x, router_logits, topk_ids, plan, t)
        return (y, routing[0].owner, routing[1].owner) if return_routing else y

    # Calls on torch tensors of shapes seen before on this thread: the arguments' struct is kept, and
    # only its addresses change. Everything that the first call checked is part of the key.

    def _remember(self, x, logits, ids, plan, t):
        routed = ids if logits is None else logits
        if type(routed) is not tensors.torch_type or not (
            x.is_contiguous() and routed.is_contiguous()
        ):
            return
        kept = self._calls.__dict__
        if len(kept) > 256:
            kept.clear()
        t.x_stride = t.y_stride = t.logits_stride = 0
        if logits is not None and routed.shape[1] != self._base.c.experts:
            return
        slot = "logits" if logits is not None else "topk_ids64" if t.topk_ids64 else "topk_ids"
        words = (ctypes.c_uint64 * (ctypes.sizeof(t) // 8)).from_buffer(t)
        pointer, buffer = host_workspace(plan.workspace_size)
        kept[(logits is None, x.dtype, x.shape, routed.dtype, routed.shape)] = (
            plan.handle, plan.workspace_size, pointer, ctypes.addressof(t),
            memoryview(words).cast("B").cast("Q"), getattr(_abi.Tensors, slot).offset // 8,
            plan, buffer,
        )  # fmt: skip

    def _found(self, x, logits, ids):
        """The kept call of these tensors' types and shapes, or None."""
        routed = ids if logits is None else logits
        if type(routed) is not tensors.torch_type:
            return None
        key = (logits is None, x.dtype, x.shape, routed.dtype, routed.shape)
        return self._calls.__dict__.get(key)

    def _logits(self, router_logits, n):
        v = tensors.rows(tensors.view(router_logits, "router_logits"))
        if len(v.shape) != 2 or v.shape[0] != n or v.shape[1] < self._base.c.experts:
            raise InvalidError(
                f"router_logits has shape {list(v.shape)}; expected [{n}, {self._base.c.experts}]"
            )
        return v

    def _same_device(self, *views):
        where = "cpu" if self.device.host else self.device.spec
        for v in views:
            if v is not None and v.device != where:
                raise InvalidError(f"{v!r}, but this layer is on {where}")

    def _columns(self, v):
        """Columns of x's codes; raises where the scheme takes none of v's type."""
        fmt = self._base.c.x
        name, bits = problems.dtype_of(fmt), problems.bits_of(fmt)
        if is_float(fmt) or v.item != 1 or v.dtype not in (name, "u8", "e2m1x2"):
            codes = "" if is_float(fmt) else f" or codes of {name}"
            raise InvalidError(f"x has type {v.dtype}; expected one of f32, f16, bf16{codes}")
        return (self._base.c.hidden * bits + 7) // 8

    def _codes_scales(self, t, v, x_scale, x_global):
        fmt = self._base.c.x
        if x_scale is None:
            raise InvalidError("x is quantised, so x_scale is needed")
        sizes = problems.format_bytes(fmt, v.shape[0], self._base.c.hidden)
        keep = []
        for name, obj, kind, size in (("x_scale", x_scale, scale_dtype(fmt), sizes[1]),
                                      ("x_global", x_global, "f32", 4 * v.shape[0])):  # fmt: skip
            if obj is None:
                continue
            o = tensors.view(obj, name)
            raw = o.dtype == "u8" and tensors.ITEM[kind] == 1
            o = tensors.contiguous(o) if raw else tensors.cast(o, kind)
            self._same_device(o)
            if size_of(o) != size:
                raise InvalidError(
                    f"{name} has shape {list(o.shape)}; expected {size // o.item} elements of {kind}"
                )
            setattr(t, name, o.ptr)
            keep.append(o)
        return keep

    def _output(self, v, out, n, dtype):
        hidden = self._base.c.hidden
        if out is None:
            out = tensors.empty(v, (n, hidden), dtype)
        y = tensors.view(out, "out")
        tight = n == 0 or len(y.shape) == 2 and (y.strides[1] == 1 or hidden == 1)
        if y.shape != (n, hidden) or not tight:
            raise InvalidError(
                f"out has shape {list(y.shape)} and strides {list(y.strides)}; expected "
                f"[{n}, {hidden}] with contiguous rows"
            )
        return out, y

    def _tensors(self, n, v, logits, routing, y, routed):
        t = new_tensors(n)
        t.x, t.y = v.ptr, y.ptr
        if n > 1:
            t.x_stride = v.strides[0] * v.item
            t.y_stride = y.strides[0] * y.item
        ids, weights = routing
        if routed:
            t.logits = logits.ptr
            t.logits_stride = logits.strides[0] if n > 1 else 0
        if ids is not None:
            if ids.dtype == "i64":
                t.topk_ids64 = ids.ptr
            else:
                t.topk_ids = ids.ptr
            t.topk_weights = weights.ptr
        if self.expert_map is not None:
            t.expert_map = self.expert_map.ptr
        return t

    def _extras(self, t, route_bias, x_scale, mid_scale, token_ids, hash_table, expert_load):
        """Set the rarely used fields; returns what must stay alive."""
        keep = routing_extras(t, self._base.c.experts, self.topk, route_bias, token_ids, hash_table)
        for name, obj in (("x_scale", x_scale), ("mid_scale", mid_scale)):
            if obj is not None:
                v = tensors.cast(tensors.view(obj, name), "f32")
                if size_of(v) == 0:
                    raise InvalidError(f"{name} has shape {list(v.shape)}; expected [1]")
                setattr(t, name, v.ptr)
                keep.append(v)
        if expert_load is not None:
            v = tensors.view(expert_load, "expert_load")
            local = self._base.local_experts
            if v.dtype != "i64" or not v.contiguous or v.shape != (local,):
                raise InvalidError(f"expert_load must be contiguous int64 [{local}], not {v!r}")
            t.expert_load = v.ptr
            keep.append(v)
        self._same_device(*keep)
        return keep

    def _plan(self, n, k, key, codes=False):
        """The plan for up to the next power of two of tokens (at least 8)."""
        bucket = max(8, 1 << (n - 1).bit_length())
        where = (bucket, k, key, codes)
        plan = self._plans.get(where)
        if plan is None:
            dtype, logits, y = key
            first = "route" if logits else "quant"
            p = self._base.copy(f"t={bucket} k={k} stages={first}..combine in={dtype} y={y}")
            for fmt in (p.c.x, p.c.mid):
                if is_float(fmt):
                    fmt.dtype = problems.DTYPES[dtype]
            if logits:
                p.apply(f"lg={logits}")
            if codes:
                p.apply("xq")
            with self._lock:
                plan = self._plans.get(where)
                if plan is None:
                    plan = Plan(self.device, p, self.weights)
                    self._plans[where] = plan
        return plan

    def workspace_size(self, tokens, topk=None, dtype=None, quantized=False):
        """Bytes that a call's ``workspace`` must hold for up to ``tokens`` routed by the caller."""
        dtype = dtype or problems.DTYPES[self._base.c.in_]
        key = (dtype, None, dtype)
        plan = self._plan(max(tokens, 1), topk or self._base.c.topk, key, quantized)
        return plan.workspace_size + 256

    def forget(self):
        """Drop the references to the caller's arrays, which must then be passed again to be used."""
        if self.weights.owned_bytes == 0:
            self._keep = []
        self._sides = None
        if self.expert_map is not None:
            v = self.expert_map
            self.expert_map = tensors.View(v.ptr, v.dtype, v.shape, v.strides, v.device, None, v.kind)

    def path(self, tokens=1, topk=None, dtype=None):
        """Names of the kernels that run for ``tokens`` routed by the caller."""
        dtype = dtype or problems.DTYPES[self._base.c.in_]
        return self._plan(tokens, topk or self._base.c.topk, (dtype, None, dtype)).path(tokens)

    @property
    def problem(self):
        """The problem without the parts that depend on a call."""
        return self._base

    def __deepcopy__(self, memo):
        return self  # nothing in it changes after it was made

    def __reduce__(self):
        raise TypeError("a cmoe.Layer cannot be pickled: keep its arrays and make it again")

    def __repr__(self):
        return f"Layer({str(self._base)!r}, device={self.device.spec!r})"
