# SPDX-License-Identifier: MIT
"""Problems: what to compute, as the line of text that docs/problem.md describes."""

import ctypes

from . import _abi
from ._lib import lib, text_of


class Problem:
    """A problem, built from words such as ``"e=8 k=2 h=64 i=32 renorm scheme=fp8-block"``.

    Words apply from left to right on top of the library's defaults. ``str()`` gives the canonical
    line, ``hash()`` the key of tuned tables. Raises InvalidError naming the word not understood.
    """

    def __init__(self, text="", base=None):
        self.c = _abi.Problem()
        if base is None:
            lib.problem_init(ctypes.byref(self.c))
        else:
            ctypes.memmove(ctypes.byref(self.c), ctypes.byref(base.c), ctypes.sizeof(self.c))
        if text:
            self.apply(text)

    def apply(self, text):
        """Apply more words."""
        lib.problem_parse(ctypes.byref(self.c), text.encode())
        return self

    def copy(self, text=""):
        """A copy with more words applied."""
        return Problem(text, self)

    def check(self):
        """Raise InvalidError, UnsupportedError or SizeOverflowError where the library refuses it."""
        lib.problem_check(ctypes.byref(self.c))
        return self

    def __str__(self):
        return text_of(lib.problem_print, ctypes.byref(self.c))

    def __repr__(self):
        return f"Problem({str(self)!r})"

    def __eq__(self, other):
        return isinstance(other, Problem) and str(self) == str(other)

    def __hash__(self):
        return lib.problem_hash(ctypes.byref(self.c))

    @property
    def slots(self):
        """Slots of a token: topk + shared."""
        return lib.problem_slots(ctypes.byref(self.c))

    @property
    def local_experts(self):
        """Experts whose weights a plan holds."""
        return lib.problem_local_experts(ctypes.byref(self.c))


DTYPES = {}  # name -> enum value, and value -> name
for _name in ("none", "f32", "f16", "bf16", "e4m3", "e4m3fnuz", "e5m2", "e8m0", "i8", "u8", "i4",
              "u4", "e2m1", "i32", "i64"):  # fmt: skip
    _value = lib.dtype_parse(_name.encode())
    DTYPES[_name], DTYPES[_value] = _value, _name

# Positions in types.def's SCALING list; checked against the library by tests/test_package.py.
SCALINGS = ("none", "tensor", "token", "smooth", "channel", "b128", "g", "mx32", "nv16")


def dtype_of(fmt):
    """Name of a format's element type."""
    return DTYPES[fmt.dtype]


def scaling_of(fmt):
    """Name of a format's scaling, without the group's size."""
    return SCALINGS[fmt.scaling]


def bits_of(fmt):
    """Bits of one element of a format."""
    return lib.dtype_bits(fmt.dtype)


def weight_problem(scheme):
    """A problem with nothing but a scheme applied: where the format of a scheme is read from."""
    return Problem(f"scheme={scheme}")


def format_bytes(fmt, rows, cols):
    """Bytes of codes, scales and zero points of a [rows, cols] matrix in a format."""
    codes, scales, zeros = _abi.SIZE(), _abi.SIZE(), _abi.SIZE()
    lib.format_bytes(
        fmt, rows, cols, ctypes.byref(codes), ctypes.byref(scales), ctypes.byref(zeros)
    )
    return codes.value, scales.value, zeros.value
