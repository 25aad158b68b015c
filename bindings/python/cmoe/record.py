# SPDX-License-Identifier: MIT
"""CMOE_RECORD=DIR: the first layer call of the process is written to DIR for ``cmoe replay DIR``.

The library calls back at the start of every execute; libcmoe-io, next to libcmoe, writes the files.
Only calls on host devices can be written, and only weights used in place, so layers do not pack
while CMOE_RECORD is set.
"""

import ctypes
import os
import sys
import threading

from . import _abi
from ._lib import lib, path

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_once = threading.Lock()  # taken by the call that is written, and kept
_keep = []


def _say(text):
    print(f"cmoe: {text}", file=sys.stderr)


def _write(_, call):
    recorded = _abi.Record.from_address(call)
    if not recorded.weights or not _once.acquire(blocking=False):
        return
    folder = os.environ.get("CMOE_RECORD", "")
    if recorded.device.startswith(b"cuda"):
        _say(f"CMOE_RECORD: the call is on {recorded.device.decode()}; only the CPU's are recorded")
        return
    try:
        io = ctypes.CDLL(os.path.join(os.path.dirname(path), "libcmoe-io.so.0"))
    except OSError as error:
        _say(f"CMOE_RECORD: libcmoe-io cannot be loaded: {error}")
        return
    io.cmoe_record_write.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    if io.cmoe_record_write(folder.encode(), call):
        _say(f"CMOE_RECORD: {lib.last_error().decode(errors='replace')}")
    else:
        _say(f"recorded the call in {folder}")


def context_options():
    """Options of a context whose calls come to _write."""
    callback = _CALLBACK(_write)
    recorder = _abi.Recorder(record=ctypes.cast(callback, ctypes.c_void_p))
    _keep.extend((callback, recorder))
    options = _abi.ContextOptions(struct_size=ctypes.sizeof(_abi.ContextOptions))
    options.recorder = ctypes.addressof(recorder)
    return options
