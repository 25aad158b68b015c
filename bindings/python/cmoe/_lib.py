# SPDX-License-Identifier: MIT
"""Finds and loads libcmoe.so, and turns failed calls into exceptions.

Order: the file that CMOE_LIBRARY names, this package's folder (wheels carry the library there), a
build folder of the source tree these files lie in, then the system's loader.
"""

import ctypes
import os
from pathlib import Path
from types import SimpleNamespace

from . import _abi
from .errors import BY_STATUS, Error, LibraryError

NAMES = ("libcmoe.so.0", "libcmoe.so")


def _candidates():
    named = os.environ.get("CMOE_LIBRARY")
    if named:
        yield named
        return
    here = Path(__file__).resolve().parent
    folders = [here]
    if (here.parents[2] / "include" / "cmoe" / "cmoe.h").exists():
        folders += [here.parents[2] / "build" / preset for preset in ("release", "dev")]
    for folder in folders:
        for name in NAMES:
            if (folder / name).exists():
                yield str(folder / name)
    yield from NAMES


def _load():
    tried = []
    for path in _candidates():
        try:
            return path, ctypes.CDLL(path)
        except OSError as error:
            tried.append(f"{path}: {error}")
    raise LibraryError("libcmoe was not found. Set CMOE_LIBRARY to its path. " + "; ".join(tried))


def fail(status):
    """Raise the exception of a failed call on this thread."""
    message = lib.last_error().decode(errors="replace")
    raise BY_STATUS.get(status, Error)(message)


def _checked(function):
    def call(*args):
        status = function(*args)
        if status:
            fail(status)

    return call


def _bind(cdll, path):
    bound = SimpleNamespace()
    for name, (restype, argtypes) in _abi.FUNCTIONS.items():
        try:
            function = getattr(cdll, "cmoe_" + name)
        except AttributeError:
            raise LibraryError(f"{path} has no function cmoe_{name}: it is too old") from None
        function.argtypes = argtypes
        function.restype = ctypes.c_int if restype == "status" else restype
        setattr(bound, name, _checked(function) if restype == "status" else function)
    return bound


path, _cdll = _load()
lib = _bind(_cdll, path)
_abi.verify(lib, path)


def text_of(function, *args):
    """The whole text of a C function with snprintf rules, called as function(*args, buf, len)."""
    size = 512
    while True:
        buffer = ctypes.create_string_buffer(size)
        needed = function(*args, buffer, size)
        if needed < size:
            return buffer.value.decode(errors="replace")
        size = needed + 1


def enumerate_names(function):
    """Every name of cmoe_scheme_name and its like."""
    names, i = [], 0
    while (name := function(i)) is not None:
        names.append(name.decode())
        i += 1
    return names
