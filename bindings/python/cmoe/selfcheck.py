# SPDX-License-Identifier: MIT
"""cmoe.info and cmoe.check: what this installation is, and whether it computes right."""

import ctypes
import random
import sys

from . import _abi
from ._lib import enumerate_names, lib, path as library_path
from .errors import Error, UnsupportedError
from .problem import Problem
from .runtime import Plan, context, device as open_device, new_tensors
from .weights import Weights


def info():
    """A dict: version, library file, threads, executor, CPU, backends and their state, hosts."""
    dev = open_device("cpu")
    backends = {}
    name, state, i = ctypes.c_char_p(), ctypes.create_string_buffer(512), 0
    while lib.backend_describe(i, ctypes.byref(name), state, len(state)):
        backends[name.value.decode()] = state.value.decode()
        i += 1
    return {
        "version": lib.version().decode(),
        "library": library_path,
        "threads": lib.context_threads(context()),
        "executor": lib.context_executor(context()).decode(),
        "cpu": dev.info.name.decode(),
        "isa": dev.info.isa.decode(),
        "features": dev.info.features.decode(),
        "backends": backends,
        "schemes": enumerate_names(lib.scheme_name),
        "python": sys.version.split()[0],
        "numpy": _version("numpy"),
        "torch": _version("torch"),
    }


def _version(module):
    loaded = sys.modules.get(module)
    return getattr(loaded, "__version__", "not imported")


def check(device=None, schemes=None, seed=1, verbose=False):
    """Compute one small layer in every scheme on a device and compare it with the specification.

    Needs no other package. Every element must lie within the bound that docs/numerics.md §5 derives.
    Schemes that the device has no kernel for are listed, not failed.
    :return: {"ok": [...], "unsupported": [...]}. Raises cmoe.Error naming what was outside.
    """
    dev = open_device(device)
    if not dev.host:
        raise UnsupportedError(f"cmoe.check is for the CPU; for {dev.spec} there is the cmoe command")
    done = {"ok": [], "unsupported": []}
    for scheme in schemes or enumerate_names(lib.scheme_name):
        try:
            stats = _check_scheme(dev, scheme, seed)
        except NotImplementedError:
            done["unsupported"].append(scheme)
            continue
        if stats.outside or stats.zeros > 0.5:
            raise Error(
                f"{scheme} on {dev.spec}: {stats.outside} of {stats.n} elements are outside the "
                f"bound, the first at {stats.first}; {stats.zeros:.0%} of the expected are zero"
            )
        done["ok"].append(scheme)
        if verbose:
            print(f"{scheme:14} ok  error/bound {stats.max_ratio:.3f}, relative {stats.rel_l2:.1e}")
    if not done["ok"]:
        raise Error(f"no scheme could be computed on {dev.spec}")
    return done


def _floats(values):
    return (ctypes.c_float * len(values))(*values)


def _check_scheme(dev, scheme, seed):
    """One layer of 5 tokens, 4 experts, H=128, I=128 from floats quantised by the library."""
    t, e, k, h, i = 5, 4, 2, 128, 128
    p = Problem(f"t={t} e={e} k={k} h={h} i={i} router=qwen3 scheme={scheme} in=f32 y=f32")
    f32 = lib.dtype_parse(b"f32")
    for fmt in (p.c.x, p.c.mid):
        if not fmt.scaling:
            fmt.dtype = f32
    rng = random.Random(seed)
    keep = []

    def gauss(n, scale=1.0):
        keep.append(_floats([rng.gauss(0, scale) for _ in range(n)]))
        return keep[-1]

    tables = []
    for rows, cols in ((2 * i, h), (h, i)):
        entries = (_abi.Matrix * e)()
        for m in entries:
            _fill(p.c.w, m, gauss(rows * cols, cols**-0.5), rows, cols, keep)
            m.smooth = ctypes.addressof(_one(keep, cols))
        tables.append((entries, e, None))
    weights = Weights(dev, p, *tables)
    plan = Plan(dev, p, weights)
    y, want, bound = _floats([0] * (t * h)), *((ctypes.c_double * (t * h))() for _ in range(2))
    call = new_tensors(t)
    call.x, call.logits = ctypes.addressof(gauss(t * h)), ctypes.addressof(gauss(t * e))
    call.y = ctypes.addressof(y)
    static = _floats([0.02])
    call.x_scale = call.mid_scale = ctypes.addressof(static)
    plan.run(call)
    lib.reference(
        context(), ctypes.byref(p.c), weights.handle, ctypes.byref(call), want, bound
    )
    stats = _abi.ErrorStats()
    lib.compare(f32, y, want, bound, t * h, ctypes.byref(stats))
    return stats


def _one(keep, n):
    keep.append(_floats([1.0 + (j % 3) / 4 for j in range(n)]))
    return keep[-1]


def _fill(fmt, m, values, rows, cols, keep):
    """Quantise one matrix into an _abi.Matrix."""
    sizes = [_abi.SIZE() for _ in range(3)]
    lib.format_bytes(fmt, rows, cols, *(ctypes.byref(s) for s in sizes))
    codes, scale, zero = ((ctypes.c_char * max(s.value, 8))() for s in sizes)
    global_ = ctypes.c_float()
    keep += [codes, scale, zero, global_]
    m.data, m.scale = ctypes.addressof(codes), ctypes.addressof(scale)
    m.zero, m.global_ = ctypes.addressof(zero), ctypes.addressof(global_)
    if fmt.scaling:
        lib.quantize_weight(fmt, values, rows, cols, codes, scale, zero, ctypes.byref(global_))
    else:
        lib.convert(fmt.dtype, codes, lib.dtype_parse(b"f32"), values, rows * cols)
