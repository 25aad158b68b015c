# SPDX-License-Identifier: MIT
"""One view of everybody's arrays: NumPy, PyTorch, and whatever else speaks DLPack.

A :class:`View` is a pointer, a cmoe type name, a shape, strides in elements and a device. Types that
NumPy lacks travel as ``uint16`` (bf16) and ``uint8`` (fp8, e8m0, two 4-bit codes a byte), or as
ml_dtypes types where that package is installed. Neither NumPy nor torch is imported here before one
of their arrays has been seen.
"""

import ctypes
import sys

from .errors import InvalidError

ITEM = {
    "f32": 4, "f16": 2, "bf16": 2, "e4m3": 1, "e4m3fnuz": 1, "e5m2": 1, "e8m0": 1, "i8": 1,
    "u8": 1, "u16": 2, "i16": 2, "i32": 4, "u32": 4, "i64": 8, "f64": 8, "bool": 1, "e2m1x2": 1,
}  # fmt: skip
FLOATS = ("f32", "f16", "bf16")

NUMPY_NAMES = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "i8",
    "uint8": "u8", "uint16": "u16", "int16": "i16", "int32": "i32", "uint32": "u32",
    "int64": "i64", "bool": "bool", "float8_e4m3fn": "e4m3", "float8_e4m3fnuz": "e4m3fnuz",
    "float8_e5m2": "e5m2", "float8_e8m0fnu": "e8m0",
}  # fmt: skip
TORCH_NAMES = {**NUMPY_NAMES, "float4_e2m1fn_x2": "e2m1x2"}

_torch_dtypes = {}  # torch dtype -> name; filled when torch is first seen
torch_type = torch_float32 = torch_empty_like = None  # torch's, once one of its tensors was seen


class View:
    """``ptr, dtype, shape, strides`` (elements), ``device`` ("cpu", "cuda:0"), and the owner."""

    __slots__ = ("ptr", "dtype", "shape", "strides", "device", "owner", "kind")

    def __init__(self, ptr, dtype, shape, strides, device, owner, kind):
        self.ptr, self.dtype, self.shape, self.strides = ptr, dtype, shape, strides
        self.device, self.owner, self.kind = device, owner, kind

    @property
    def item(self):
        """Bytes of an element."""
        return ITEM[self.dtype]

    @property
    def contiguous(self):
        """C order without gaps?"""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides)):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    def __repr__(self):
        return f"{self.kind} {self.dtype}{list(self.shape)} on {self.device}"


def torch_dtype_name(dtype):
    """The cmoe name of a torch dtype."""
    name = _torch_dtypes.get(dtype)
    if name is None:
        global torch_type, torch_float32, torch_empty_like
        torch = sys.modules["torch"]
        torch_type, torch_float32 = torch.Tensor, torch.float32
        torch_empty_like = torch.empty_like
        name = TORCH_NAMES.get(str(dtype).removeprefix("torch."))
        if name is None:
            raise InvalidError(f"cmoe has no element type for {dtype}")
        _torch_dtypes[dtype] = name
    return name


def view(obj, name="tensor"):
    """A View of a NumPy array, a torch tensor, a View, or an object with ``__dlpack__``."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(obj, torch.Tensor):
        dtype = _torch_dtypes.get(obj.dtype) or torch_dtype_name(obj.dtype)
        device = "cpu" if obj.is_cpu else str(obj.device)
        return View(obj.data_ptr(), dtype, tuple(obj.shape), obj.stride(), device, obj, "torch")
    if isinstance(obj, View):
        return obj
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(obj, numpy.ndarray):
        dtype = NUMPY_NAMES.get(obj.dtype.name)
        if dtype is None or not obj.dtype.isnative:
            raise InvalidError(f"{name}: cmoe has no element type for NumPy's {obj.dtype}")
        size = obj.dtype.itemsize
        strides = tuple(s // size for s in obj.strides)
        return View(obj.ctypes.data, dtype, obj.shape, strides, "cpu", obj, "numpy")
    if hasattr(obj, "__dlpack__"):
        return _from_dlpack(obj, name)
    raise InvalidError(
        f"{name} is a {type(obj).__name__}; expected a NumPy array, a torch tensor, or an object "
        "with __dlpack__"
    )


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


# DLPack type codes and bits -> name (dlpack.h, DLDataTypeCode).
_DLPACK = {
    (0, 8): "i8", (0, 16): "i16", (0, 32): "i32", (0, 64): "i64", (1, 8): "u8", (1, 16): "u16",
    (1, 32): "u32", (2, 16): "f16", (2, 32): "f32", (2, 64): "f64", (4, 16): "bf16",
    (6, 8): "bool", (10, 8): "e4m3", (11, 8): "e4m3fnuz", (12, 8): "e5m2", (14, 8): "e8m0",
}  # fmt: skip


def _from_dlpack(obj, name):
    api = ctypes.pythonapi.PyCapsule_GetPointer
    api.restype, api.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = obj.__dlpack__()
    tensor = _DLTensor.from_address(api(capsule, b"dltensor"))
    dtype = _DLPACK.get((tensor.code, tensor.bits))
    if dtype is None or tensor.lanes != 1:
        raise InvalidError(
            f"{name}: cmoe has no element type for DLPack's code {tensor.code} with {tensor.bits} "
            f"bits and {tensor.lanes} lanes"
        )
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.strides:
        strides = tuple(tensor.strides[i] for i in range(tensor.ndim))
    else:
        strides = _tight(shape)
    if tensor.device_type in (1, 3):  # CPU, pinned host memory
        device = "cpu"
    elif tensor.device_type in (2, 13):  # CUDA, managed memory
        device = f"cuda:{tensor.device_id}"
    else:
        raise InvalidError(f"{name}: DLPack device type {tensor.device_type} is neither CPU nor CUDA")
    pointer = (tensor.data or 0) + tensor.byte_offset
    # The capsule keeps the memory: its deleter runs when the view goes.
    return View(pointer, dtype, shape, strides, device, (obj, capsule), "dlpack")


def _tight(shape):
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def numpy_dtype(name):
    """The NumPy type for a cmoe name: ml_dtypes' where NumPy has none, else an unsigned view."""
    import numpy

    plain = {"f64": "float64", "f32": "float32", "f16": "float16", "i8": "int8", "u8": "uint8",
             "u16": "uint16", "i32": "int32", "i64": "int64", "u32": "uint32"}  # fmt: skip
    if name in plain:
        return numpy.dtype(plain[name])
    try:
        import ml_dtypes

        special = {"bf16": "bfloat16", "e4m3": "float8_e4m3fn", "e4m3fnuz": "float8_e4m3fnuz",
                   "e5m2": "float8_e5m2", "e8m0": "float8_e8m0fnu"}  # fmt: skip
        return numpy.dtype(getattr(ml_dtypes, special[name]))
    except (ImportError, KeyError, AttributeError):
        return numpy.dtype("uint16" if ITEM[name] == 2 else "uint8")


def torch_dtype(name):
    """The torch type for a cmoe name; ``uint8`` where this torch has none."""
    import torch

    for text, mine in TORCH_NAMES.items():
        if mine == name:
            return getattr(torch, text, torch.uint8)
    raise InvalidError(f"torch has no type for {name}")


def empty(like, shape, dtype):
    """A new, unset array of the kind (NumPy or torch) and on the device of the View ``like``.

    Kinds known only through DLPack get a NumPy array, on the CPU.
    """
    if like.kind == "torch":
        import torch

        return torch.empty(shape, dtype=torch_dtype(dtype), device=like.owner.device)
    if like.device != "cpu":
        raise InvalidError(f"cmoe cannot allocate on {like.device} for {like!r}: pass torch tensors")
    import numpy

    return numpy.empty(shape, numpy_dtype(dtype))


def contiguous(v):
    """The view itself, or a view of a contiguous copy."""
    if v.contiguous:
        return v
    if v.kind == "torch":
        return view(v.owner.contiguous())
    if v.kind == "numpy":
        import numpy

        return view(numpy.ascontiguousarray(v.owner))
    raise InvalidError(f"{v!r} is not contiguous, and cmoe cannot copy an array of this kind")


def rows(v):
    """A view whose last dimension is contiguous and whose rows do not overlap; copied if need be."""
    if len(v.shape) == 2 and v.shape[0] > 0:
        tight = v.strides[1] == 1 or v.shape[1] == 1
        if tight and (v.shape[0] == 1 or v.strides[0] >= v.shape[1]):
            return v
    return contiguous(v)


def cast(v, dtype):
    """The view itself, or a contiguous copy with values of another type ("f32", "i32", "u8")."""
    if v.dtype == dtype:
        return contiguous(v)
    if v.kind == "torch":
        return view(v.owner.to(torch_dtype(dtype)).contiguous())
    import numpy

    source = v.owner if v.kind == "numpy" else numpy.from_dlpack(v.owner[0])
    if v.dtype == "u16" and dtype == "f32":  # bf16 in NumPy's clothes
        wide = source.astype(numpy.uint32) << numpy.uint32(16)
        return view(numpy.ascontiguousarray(wide).view(numpy.float32))
    return view(numpy.ascontiguousarray(source.astype(numpy_dtype(dtype))))


def integers(obj, name, dtype="i32"):
    """A contiguous View of an array of integers, as ``dtype``; floats are no ids or counts."""
    v = view(obj, name)
    if v.dtype not in ("i8", "u8", "i16", "u16", "i32", "u32", "i64"):
        raise InvalidError(f"{name} has type {v.dtype}; expected integers")
    return cast(v, dtype)


def expect(v, name, *shape):
    """Check a View's shape; None stands for any size."""
    if len(v.shape) != len(shape) or any(w not in (None, s) for s, w in zip(v.shape, shape)):
        wanted = ", ".join("any" if w is None else str(w) for w in shape)
        raise InvalidError(f"{name} has shape {list(v.shape)}; expected [{wanted}]")
    return v


def float_name(v, name):
    """The float type of x, logits or an output: uint16 counts as bf16."""
    dtype = "bf16" if v.dtype == "u16" else v.dtype
    if dtype not in FLOATS:
        raise InvalidError(f"{name} has type {v.dtype}; expected one of f32, f16, bf16")
    return dtype
