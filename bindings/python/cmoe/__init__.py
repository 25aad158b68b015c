# SPDX-License-Identifier: MIT
"""Mixture-of-Experts operators over libcmoe, for NumPy, PyTorch and anything that speaks DLPack.

``cmoe.moe(x, w1, w2, router_logits=..., topk=2)`` computes a layer; :class:`cmoe.Layer` keeps its
weights and plans. ``cmoe.route``, ``cmoe.sort``, ``cmoe.quantize`` and ``cmoe.dequantize`` are its
parts. ``cmoe.check()`` tests the installation, ``cmoe.info()`` describes it.
"""

from ._lib import lib as _lib
from .batched import batched
from .errors import (
    BusyError,
    CorruptError,
    DeviceError,
    Error,
    FileError,
    InvalidError,
    LibraryError,
    MismatchError,
    NoDeviceError,
    NoMemoryError,
    SizeOverflowError,
    SlowPathWarning,
    UnsupportedError,
    WorkspaceError,
)
from .functions import dequantize, moe, quantize, route, sort
from .layer import Layer
from .problem import Problem
from .selfcheck import check, info

__version__ = _lib.version().decode()
__all__ = [
    "BusyError", "CorruptError", "DeviceError",
    "Error", "FileError", "InvalidError", "Layer", "LibraryError", "MismatchError",
    "NoDeviceError", "NoMemoryError", "Problem", "SizeOverflowError", "SlowPathWarning",
    "UnsupportedError", "WorkspaceError", "batched", "check", "dequantize", "info", "moe", "quantize",
    "route", "sort",
]  # fmt: skip
