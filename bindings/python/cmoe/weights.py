# SPDX-License-Identifier: MIT
"""Expert weights: checks arrays against a problem, quantises floats, and makes the C object.

Layouts are those of include/cmoe/weights.h with the expert first: codes [E, rows, K] (4-bit types
[E, rows, K/2] bytes, low nibble = even column), scales [E, ...], zero points u8 [E, rows, groups],
global multipliers f32 [E], biases f32 [E, rows], smoothing vectors f32 [E, K].
"""

import ctypes
import math

from . import _abi, problem as problems, tensors
from ._lib import lib
from .errors import InvalidError, UnsupportedError
from .runtime import Plan

ROWS = {1: "w1", 2: "w2"}


class Side:
    """The arrays of one of the two matrices, as Views; None where there is none."""

    def __init__(self, data, scale=None, zero=None, global_=None, bias=None, smooth=None):
        self.data, self.scale, self.zero = data, scale, zero
        self.global_, self.bias, self.smooth = global_, bias, smooth


class Weights:
    """A cmoe_weights object and the arrays it refers to."""

    def __init__(self, dev, problem, first, second, formats=(None, None)):
        self.handle = None
        experts = first[1]
        desc = _abi.WeightsDesc(
            struct_size=ctypes.sizeof(_abi.WeightsDesc),
            gate_up=ctypes.addressof(first[0]),
            down=ctypes.addressof(second[0]),
            format1=formats[0],
            format2=formats[1],
        )
        if problem.local_experts != experts:
            raise InvalidError(
                f"the weights hold {experts} experts and the problem {problem.local_experts} local ones"
            )
        handle = ctypes.c_void_p()
        lib.weights_create(
            dev.handle, ctypes.byref(problem.c), ctypes.byref(desc), ctypes.byref(handle)
        )
        self.handle = handle.value

    def __del__(self):
        if self.handle:
            lib.weights_destroy(self.handle)
            self.handle = None

    def format(self, matrix):
        """Format of matrix 1 or 2: "canonical" or a packed one."""
        return lib.weights_format(self.handle, matrix).decode()

    @property
    def owned_bytes(self):
        """Bytes of packed copies; 0 when everything is used in place."""
        return lib.weights_owned_bytes(self.handle)


def quantize_experts(fmt, data):
    """Quantise a float View [E, rows, K] to a format: a Side of new arrays of the same kind."""
    if data.device != "cpu":
        return _through_the_cpu(fmt, data)
    data = tensors.cast(data, "f32")
    experts, rows, cols = data.shape
    codes, scales, zeros = problems.format_bytes(fmt, rows, cols)
    scale_type = scale_dtype(fmt)
    scale_item = tensors.ITEM[scale_type]
    code_type = {8: problems.dtype_of(fmt), 4: "u8"}.get(
        problems.bits_of(fmt), problems.dtype_of(fmt)
    )
    code_cols = codes // rows // tensors.ITEM[code_type]
    owners = [tensors.empty(data, (experts, rows, code_cols), code_type)]
    owners.append(tensors.empty(data, (experts, scales // scale_item), scale_type))
    owners.append(tensors.empty(data, (experts, zeros), "u8") if zeros else None)
    has_global = problems.scaling_of(fmt) == "nv16"
    owners.append(tensors.empty(data, (experts,), "f32") if has_global else None)
    views = [tensors.view(o) if o is not None else None for o in owners]
    for e in range(experts):
        lib.quantize_weight(
            fmt, data.ptr + e * rows * cols * 4, rows, cols,
            views[0].ptr + e * codes,
            views[1].ptr + e * scales,
            views[2].ptr + e * zeros if zeros else None,
            views[3].ptr + e * 4 if has_global else None,
        )  # fmt: skip
    return Side(*views)


def _through_the_cpu(fmt, data):
    """quantize_experts for a torch tensor on a GPU."""
    if data.kind != "torch":
        raise UnsupportedError(f"weights are quantised on the CPU; these are on {data.device}")
    made = quantize_experts(fmt, tensors.view(data.owner.float().cpu()))
    parts = (made.data, made.scale, made.zero, made.global_)
    return Side(*(p and tensors.view(p.owner.to(data.owner.device)) for p in parts))


def scale_dtype(fmt):
    """Element type of a format's scales."""
    if fmt.scale_dtype:
        return problems.DTYPES[fmt.scale_dtype]
    return {"mx32": "e8m0", "nv16": "e4m3"}.get(problems.scaling_of(fmt), "f32")


def is_float(fmt):
    """Unquantised?"""
    return problems.dtype_of(fmt) in tensors.FLOATS


def _scales_expected(problem, matrix, rows, cols):
    """Elements in one expert's scales."""
    fmt = problem.c.w
    if problems.scaling_of(fmt) == "b128":
        blocks = math.ceil(rows / 128)
        joint = " joint" in f" {problem}"
        if matrix == 1 and problem.c.gate == 0 and not joint:
            blocks = 2 * math.ceil(rows // 2 / 128)
        return blocks * math.ceil(cols / 128)
    return problems.format_bytes(fmt, rows, cols)[1] // tensors.ITEM[scale_dtype(fmt)]


def _per_expert(v, name, count, dtypes, experts):
    """Check that a View has ``count`` elements of one of ``dtypes`` for every expert; its stride."""
    if v.dtype not in dtypes and not (v.dtype == "u8" and dtypes[0] in ("e8m0", "e4m3")):
        v = tensors.cast(v, dtypes[0])
    v = tensors.contiguous(v)
    total = math.prod(v.shape)
    if total != count * experts:
        raise InvalidError(
            f"{name} has shape {list(v.shape)}; expected {experts} x {count} elements"
        )
    return v, count * v.item


def _argument(part, matrix):
    """What Layer calls a part of matrix 1 or 2."""
    if part in ("bias", "smooth"):
        return f"{part[0] if part == 'bias' else part}{matrix}"
    return f"w{matrix}_{part.rstrip('_')}"


def table(problem, matrix, side, transposed):
    """The cmoe_matrix table of one side and the Views that it points into."""
    fmt, data, name = problem.c.w, side.data, ROWS[matrix]
    h, i = problem.c.hidden, problem.c.inter
    rows, cols = (lib.problem_rows1(ctypes.byref(problem.c)), h) if matrix == 1 else (h, i)
    bits = problems.bits_of(fmt)
    stored = (cols * bits + 7) // 8 if bits < 8 else cols
    shape = (stored, rows) if transposed else (rows, stored)
    if transposed and bits < 8:
        raise UnsupportedError(f"{name}: 4-bit weights cannot be transposed")
    if len(data.shape) != 3 or tuple(data.shape[1:]) != shape:
        raise InvalidError(
            f"{name} has shape {list(data.shape)}; expected [experts, {shape[0]}, {shape[1]}]"
        )
    if data.item * 8 != max(bits, 8):
        raise InvalidError(
            f"{name} has type {data.dtype}; the problem's weights are {problems.dtype_of(fmt)}"
        )
    experts = data.shape[0]
    row, col = (data.strides[2], data.strides[1]) if transposed else data.strides[1:]
    if col != 1 and (bits < 8 or row < 0 or col < 0):
        data = tensors.contiguous(data)
        row, col = (data.strides[2], data.strides[1]) if transposed else data.strides[1:]
    keep, step = [data], {}
    parts = {}
    if not is_float(fmt) and side.scale is None:
        raise InvalidError(f"{name}_scale is missing: the weights are {problems.dtype_of(fmt)}")
    if side.scale is not None and not is_float(fmt):
        count = _scales_expected(problem, matrix, rows, cols)
        parts["scale"] = (side.scale, count, (scale_dtype(fmt),))
    if side.zero is not None:
        count = problems.format_bytes(fmt, rows, cols)[2]
        parts["zero"] = (side.zero, count, ("u8",))
    if side.global_ is not None:
        parts["global_"] = (side.global_, 1, ("f32",))
    if side.bias is not None:
        parts["bias"] = (side.bias, rows, ("f32",))
    if side.smooth is not None:
        parts["smooth"] = (side.smooth, cols, ("f32",))
    for part, (v, count, dtypes) in parts.items():
        if v.device != data.device:
            raise InvalidError(
                f"{name} is on {data.device}, but {_argument(part, matrix)} on {v.device}"
            )
        v, bytes_each = _per_expert(v, _argument(part, matrix), count, dtypes, experts)
        keep.append(v)
        step[part] = (v.ptr, bytes_each)
    entries = (_abi.Matrix * experts)()
    item = data.item
    for e in range(experts):
        m = entries[e]
        m.data = data.ptr + e * data.strides[0] * item
        m.row_stride = 0 if rows == 1 else row * item
        m.col_stride = 0 if col == 1 else col * item
        for part, (pointer, bytes_each) in step.items():
            setattr(m, part, pointer + e * bytes_each)
    return entries, experts, keep


def size_of(v):
    """Bytes of a View's elements."""
    size = v.item
    for n in v.shape:
        size *= n
    return size


def quantize_halves(fmt, data):
    """Gate and up rows each begin a row of 128x128 blocks: quantise them apart."""
    owner = tensors.cast(data, "f32").owner
    half = owner.shape[1] // 2
    gate = quantize_experts(fmt, tensors.view(owner[:, :half]))
    up = quantize_experts(fmt, tensors.view(owner[:, half:]))
    if data.kind == "torch":
        import torch

        join = torch.cat
    else:
        import numpy

        join = numpy.concatenate
    codes = [s.data.owner for s in (gate, up)]
    if data.kind == "torch":
        codes = [c.view(torch.uint8) for c in codes]
    scales = join([gate.scale.owner, up.scale.owner], 1)
    return Side(tensors.view(join(codes, 1)), tensors.view(scales))


def choose_formats(dev, problem):
    """The weight formats that the planner wants for a problem: (format1, format2) as bytes."""
    draft = Plan(dev, problem)
    chosen = [draft.weight_format(m) for m in (1, 2)]
    return tuple(None if f in ("none", "canonical") else f.encode() for f in chosen)
