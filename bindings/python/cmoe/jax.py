# SPDX-License-Identifier: MIT
"""cmoe layers inside JAX programs, on CPUs and NVIDIA GPUs, by XLA's foreign function interface.

::

    layer = cmoe.jax.Layer(w1, w2, topk=2, router="qwen3")   # arguments of cmoe.Layer
    y = jax.jit(layer)(x, router_logits)

The handlers are C functions in libcmoe-xla: no Python runs in a call. A program that was traced with a
layer holds the address of its plan; layers therefore stay in memory once they were traced, and such
programs must stay out of JAX's persistent compilation cache (a stale one is an error, never a wrong
access). Gradients are errors of JAX's own; jax.vmap runs one call after the other.
"""

import ctypes
import os
import secrets

import jax
import numpy as np

from . import tensors
from ._lib import path
from .errors import InvalidError, LibraryError
from .layer import Layer as _Layer

_EXTRAS = ("expert_map", "route_bias", "x_scale", "mid_scale")  # bindings/xla/layer.c: enum extra
_session = secrets.randbits(62) + 1
_traced = set()


def _load():
    name = os.path.join(os.path.dirname(path), "libcmoe-xla.so.0")
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise LibraryError(f"cmoe.jax needs libcmoe-xla next to libcmoe: {error}") from None
    library.cmoe_xla_begin.argtypes = [ctypes.c_uint64]
    library.cmoe_xla_begin.restype = None
    library.cmoe_xla_begin(_session)
    for platform, symbol in (("cpu", "cmoe_xla_cpu"), ("CUDA", "cmoe_xla_cuda")):
        jax.ffi.register_ffi_target(
            "cmoe_layer", jax.ffi.pycapsule(getattr(library, symbol)), platform=platform,
            api_version=1,
        )  # fmt: skip
    return library


_library = _load()


def _array(a):
    """A JAX array as cmoe.Layer takes it: NumPy's view of it on a CPU, DLPack on a GPU."""
    if not isinstance(a, jax.Array):
        return a
    return np.asarray(a) if a.device.platform == "cpu" else a


class Layer:
    """A cmoe.Layer to call inside and outside of jax.jit; all its arguments are cmoe.Layer's.

    ``layer(x, router_logits)`` or ``layer(x, topk_ids=ids, topk_weights=weights)`` gives [T, H] of x's
    type. x, logits f32, f16 or bf16; ids int32 (others are converted). Weights lie where the layer was
    made, and calls must be on the same kind of device; NumPy arrays are put there.
    """

    def __init__(self, w1, w2, **options):
        options = {k: _array(v) for k, v in options.items()}
        arrays = [_array(w) for w in (w1, w2)]
        self.expert_map = options.get("expert_map")
        self.layer = _Layer(*arrays, **options)
        on_cpu = not isinstance(w1, jax.Array) or self.layer.device.host
        self.device = jax.devices("cpu")[0] if on_cpu else w1.device

    def __call__(self, x, router_logits=None, *, topk_ids=None, topk_weights=None, route_bias=None,
                 x_scale=None, mid_scale=None):  # fmt: skip
        base = self.layer.problem.c
        x, router_logits, topk_ids, topk_weights = (
            jax.device_put(a, self.device) if isinstance(a, np.ndarray) else a
            for a in (x, router_logits, topk_ids, topk_weights)
        )
        if x.ndim != 2 or x.shape[1] != base.hidden:
            raise InvalidError(f"x has shape {list(x.shape)}; expected [tokens, {base.hidden}]")
        names = [tensors.NUMPY_NAMES.get(str(x.dtype))]
        if router_logits is not None:
            if self.layer.topk is None:
                raise InvalidError("router_logits needs a layer made with topk=")
            if router_logits.shape != (x.shape[0], base.experts):
                raise InvalidError(f"router_logits has shape {list(router_logits.shape)}; expected "
                                   f"[{x.shape[0]}, {base.experts}]")  # fmt: skip
            names.append(tensors.NUMPY_NAMES.get(str(router_logits.dtype)))
            k, routing = self.layer.topk, [router_logits]
        elif topk_ids is None or topk_weights is None:
            raise InvalidError("give either router_logits or both topk_ids and topk_weights")
        else:
            if topk_ids.ndim != 2 or topk_ids.shape[0] != x.shape[0] or (
                topk_ids.shape != topk_weights.shape
            ):
                raise InvalidError(
                    f"topk_ids {list(topk_ids.shape)} and topk_weights {list(topk_weights.shape)} do "
                    f"not belong to {x.shape[0]} tokens"
                )
            names.append(None)
            k = topk_ids.shape[1]
            routing = [topk_weights.astype(np.float32), topk_ids.astype(np.int32)]
        for name in names:
            if name is not None and name not in tensors.FLOATS or names[0] is None:
                raise InvalidError(f"x or router_logits is {name}; expected one of f32, f16, bf16")
        if 0 in x.shape or k == 0:
            return jax.numpy.zeros_like(x)
        plan = self.layer._plan(x.shape[0], k, (*names, names[0]))
        given = {"expert_map": self.expert_map, "route_bias": route_bias, "x_scale": x_scale,
                 "mid_scale": mid_scale}  # fmt: skip
        bits, extras = 0, []
        for n, name in enumerate(_EXTRAS):
            if given[name] is not None:
                bits |= 1 << n
                dtype = np.int32 if name == "expert_map" else np.float32
                extras.append(jax.numpy.asarray(given[name], dtype))
        words = np.array([_session, plan.handle, plan.workspace_size, self.layer.device.host,
                          router_logits is not None, bits], np.int64)  # fmt: skip
        _traced.add(self.layer)
        results = (jax.ShapeDtypeStruct(x.shape, x.dtype),
                   jax.ShapeDtypeStruct((plan.workspace_size + 256,), np.uint8))  # fmt: skip
        call = jax.ffi.ffi_call("cmoe_layer", results, vmap_method="sequential")
        return call(x, *routing, *extras, call=words)[0]

    def __repr__(self):
        return f"cmoe.jax.{self.layer!r}"
