# SPDX-License-Identifier: MIT
"""torch.ops.cmoe.*: the layer and its parts as torch operators, for inference.

Importing this module registers

- ``moe(x, w1, w2, topk_weights, topk_ids, ...)`` -> y, ``moe_routed(x, w1, w2, logits, topk, router,
  ...)`` -> y: options are those of cmoe.Layer as strings and optional tensors;
- ``layer(x, handle, topk_weights, topk_ids)`` -> y, for a cmoe.Layer kept by :func:`register_layer`;
- ``route(logits, topk, router, bias, options)`` -> (weights, ids); ``sort(topk_ids, experts, format,
  block_m)`` -> (ids, experts, num_valid).

All have fake functions, so torch.compile(fullgraph=True) keeps them in one graph. A gradient asked
through them is an error that says so. Weights are used in place; x may be strided.
"""

import threading
from collections import OrderedDict

import torch

from .errors import LibraryError
from .functions import CACHED_LAYERS, route as _route, sort as _sort
from .layer import Layer, again

if not hasattr(torch.library, "register_fake"):
    raise LibraryError(f"cmoe.torch needs torch 2.4 or later; this is {torch.__version__}")

# Tensors come before the star: torch's autograd registration asks for that.
_OPTIONS = (
    "Tensor? w1_scale=None, Tensor? w2_scale=None, Tensor? w1_zero=None, Tensor? w2_zero=None, "
    "Tensor? w1_global=None, Tensor? w2_global=None, Tensor? b1=None, Tensor? b2=None, "
    "Tensor? smooth1=None, Tensor? smooth2=None, Tensor? expert_map=None, "
    "Tensor? x_scale=None, Tensor? mid_scale=None, *, "
    'str scheme="", str act="silu", str gate="split", str weight_on="out", bool transposed=False, '
    'int experts=0, int expert_first=0, str options=""'
)
_SCHEMAS = {
    "moe": "(Tensor x, Tensor w1, Tensor w2, Tensor topk_weights, Tensor topk_ids) -> Tensor",
    "moe.options": "(Tensor x, Tensor w1, Tensor w2, Tensor topk_weights, Tensor topk_ids, "
    f"{_OPTIONS}) -> Tensor",
    "moe_routed": "(Tensor x, Tensor w1, Tensor w2, Tensor logits, int topk, str router, "
    f"Tensor? route_bias=None, {_OPTIONS}) -> Tensor",
    "layer": "(Tensor x, int handle, Tensor topk_weights, Tensor topk_ids) -> Tensor",
    "route": "(Tensor logits, int topk, str router, Tensor? bias=None, str options='') -> "
    "(Tensor, Tensor)",
    "sort": "(Tensor topk_ids, int experts, str format='packed', int block_m=32) -> "
    "(Tensor, Tensor, Tensor)",
}

_library = torch.library.Library("cmoe", "DEF")
_lock = threading.Lock()
_cache = OrderedDict()
_calls = threading.local()  # of moe without options, as Layer keeps them
_registered = {}


def _cached_layer(w1, w2, topk, router, tensors, words):
    """A Layer over weights in place, found again by the addresses and layouts of its arrays."""
    key = (
        w1.data_ptr(), w1.shape, w1.stride(), w1.dtype, w2.data_ptr(), w2.shape, w2.stride(),
        topk, router, *words.values(),
        *((k, t.data_ptr(), t.shape, t.dtype) for k, t in tensors.items() if t is not None),
    )  # fmt: skip
    found = _cache.get(key)
    if found is not None:
        return found
    options = {k: v or None if k in ("scheme", "experts") else v for k, v in words.items()}
    layer = Layer(w1, w2, topk=topk, router=router, pack=False, **options, **tensors)
    with _lock:
        _cache[key] = layer
        while len(_cache) > CACHED_LAYERS:
            _cache.popitem(last=False)
    return layer


_ARRAYS = ("w1_scale", "w2_scale", "w1_zero", "w2_zero", "w1_global", "w2_global", "b1", "b2",
           "smooth1", "smooth2", "expert_map")  # fmt: skip
_N = len(_ARRAYS)


def _moe_key(x, w1, w2, topk_ids):
    """What a kept call of moe depends on beside the values."""
    return (
        x.dtype, x.shape, topk_ids.dtype, topk_ids.shape, w1.data_ptr(), w1.dtype, w1.shape,
        w2.data_ptr(), w2.dtype, w2.shape,
    )  # fmt: skip


def _moe(x, w1, w2, topk_weights, topk_ids):
    layer = _cached_layer(w1, w2, None, None, {}, {})
    y = layer(x, topk_ids=topk_ids, topk_weights=topk_weights)
    found = layer._found(x, None, topk_ids)
    if found is not None and w1.is_contiguous() and w2.is_contiguous():
        kept = _calls.__dict__
        if len(kept) > 4 * CACHED_LAYERS:
            kept.clear()
        kept[_moe_key(x, w1, w2, topk_ids)] = found
    return y


def _moe_again(slow, wanted=torch.is_grad_enabled, modes=torch._C._len_torch_dispatch_stack):
    """The kernel of moe without options above autograd: a kept call at once, else ``slow``."""
    tensor = torch.Tensor

    def kernel(x, w1, w2, topk_weights, topk_ids):
        if type(x) is tensor and not (wanted() or modes()):
            found = _calls.__dict__.get(_moe_key(x, w1, w2, topk_ids))
            if found is not None and w1.is_contiguous() and w2.is_contiguous():
                y = again(found, x, None, topk_ids, topk_weights)
                if y is not None:
                    return y
        return slow(x, w1, w2, topk_weights, topk_ids)

    return kernel


def _moe_options(x, w1, w2, topk_weights, topk_ids, *rest, **options):
    tensors, (x_scale, mid_scale) = _arguments(rest, options)
    layer = _cached_layer(w1, w2, None, None, tensors, options)
    return layer(x, topk_ids=topk_ids, topk_weights=topk_weights, x_scale=x_scale,
                 mid_scale=mid_scale)  # fmt: skip


def _moe_routed(x, w1, w2, logits, topk, router, route_bias=None, *rest, **options):
    tensors, (x_scale, mid_scale) = _arguments(rest, options)
    layer = _cached_layer(w1, w2, topk, router, tensors, options)
    return layer(x, logits, route_bias=route_bias, x_scale=x_scale, mid_scale=mid_scale)


def _arguments(rest, options):
    """The optional tensors by name, whichever way they were passed, and the two static scales."""
    tensors = dict(zip(_ARRAYS, rest))
    scales = list(rest[_N:]) + [None] * (2 - len(rest[_N:]))
    for name in _ARRAYS:
        if name in options:
            tensors[name] = options.pop(name)
    scales = [options.pop(name, s) for name, s in zip(("x_scale", "mid_scale"), scales)]
    return tensors, scales


def _layer(x, handle, topk_weights, topk_ids):
    return _registered[handle](x, topk_ids=topk_ids, topk_weights=topk_weights)


def _route_op(logits, topk, router, bias=None, options=""):
    return _route(logits, topk, router, bias=bias, options=options)


def _sort_op(topk_ids, experts, format="packed", block_m=32):
    s = _sort(topk_ids, experts, format, block_m=block_m)
    valid = s.num_valid if s.num_valid is not None else topk_ids.new_zeros(0, dtype=torch.int32)
    return s.ids, s.experts, valid


def _fake_like_x(x, *args, **options):
    return x.new_empty(x.shape)


def _fake_route(logits, topk, router, bias=None, options=""):
    from .problem import Problem

    slots = topk + Problem(options).c.shared
    shape = (logits.shape[0], slots)
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)


def _fake_sort(topk_ids, experts, format="packed", block_m=32):
    n, k = topk_ids.shape

    def ints(size):
        return topk_ids.new_empty((size,), dtype=torch.int32)

    if format == "index":
        return ints(n * k), ints(experts + 1), ints(0)
    ctx = torch.library.get_ctx()
    capacity, blocks = ctx.new_dynamic_size(), ctx.new_dynamic_size()
    return ints(capacity), ints(blocks), ints(2 if format == "packed" else 1)


class _NoGradient(torch.autograd.Function):
    """An operator's call that can be computed but not differentiated."""

    @staticmethod
    def forward(ctx, call, *args):
        return call(*args)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "cmoe operators are for inference and have no gradient: call them under "
            "torch.no_grad(), or train with another experts implementation"
        )


def _autograd(name, function):
    """The operator's kernel above autograd.

    Plain tensors of a call that needs no gradient go straight to the function: a second pass through
    the dispatcher would cost as much as the rest of a small call. Fake tensors, modes and gradients
    take the dispatcher's way.
    """
    below, modes = torch._C._AutoDispatchBelowAutograd, torch._C._len_torch_dispatch_stack
    wanted, tensor, parameter = torch.is_grad_enabled, torch.Tensor, torch.nn.Parameter
    packet, _, overload = name.partition(".")

    def kernel(x, *args, **options):
        needed = wanted() and any(
            isinstance(a, tensor) and a.requires_grad for a in (x, *args, *options.values())
        )
        if not (needed or modes()) and (type(x) is tensor or type(x) is parameter):
            return function(x, *args, **options)

        def call(*values):
            with below():
                operator = getattr(getattr(torch.ops.cmoe, packet), overload or "default")
                return operator(*values, **options)

        return _NoGradient.apply(call, x, *args) if needed else call(x, *args)

    return kernel


_IMPLEMENTATIONS = {
    "moe": (_moe, _fake_like_x),
    "moe.options": (_moe_options, _fake_like_x),
    "moe_routed": (_moe_routed, _fake_like_x),
    "layer": (_layer, _fake_like_x),
    "route": (_route_op, _fake_route),
    "sort": (_sort_op, _fake_sort),
}
for _name, (_function, _fake) in _IMPLEMENTATIONS.items():
    _library.define(_name + _SCHEMAS[_name], tags=(torch.Tag.needs_fixed_stride_order,))
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _function, _key)
    torch.library.register_fake(f"cmoe::{_name}", _fake, lib=_library)
    if _name != "sort":
        _above = _autograd(_name, _function)
        _library.impl(_name, _above, "AutogradCUDA")
        _library.impl(_name, _moe_again(_above) if _name == "moe" else _above, "AutogradCPU")


def register_layer(layer):
    """Keep a cmoe.Layer for torch.ops.cmoe.layer; returns its handle, an int."""
    handle = id(layer)
    _registered[handle] = layer
    return handle


class Experts(torch.nn.Module):
    """A cmoe.Layer as a module for compiled models: ``forward(x, topk_ids, topk_weights)``.

    Takes the arguments of cmoe.Layer. Its weights are not parameters: they are packed copies.
    """

    def __init__(self, w1, w2, **options):
        super().__init__()
        with torch.no_grad():
            self.layer = Layer(w1.detach(), w2.detach(), **options)
        self.handle = register_layer(self.layer)

    def __deepcopy__(self, memo):
        return self

    def __del__(self):
        _registered.pop(getattr(self, "handle", None), None)

    def forward(self, x, topk_ids, topk_weights):
        """x [..., H], topk_ids and topk_weights [T, k] with T rows of x in all -> x's shape."""
        rows = x.reshape(-1, x.shape[-1])
        return torch.ops.cmoe.layer(rows, self.handle, topk_weights, topk_ids).view(x.shape)
