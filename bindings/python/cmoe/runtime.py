# SPDX-License-Identifier: MIT
"""The process's context and devices, plans, and the workspace of each thread.

One context serves the whole process, made when it is first needed with the library's defaults
(CMOE_THREADS, CMOE_NODES, CMOE_CPU, CMOE_TUNED, CMOE_LOG; CMOE_RECORD: record.py). A forked child makes its own.
"""

import ctypes
import os
import threading

from . import _abi, record
from ._lib import fail, lib, text_of
from .errors import InvalidError

_lock = threading.Lock()
_contexts = {}  # pid -> context
_devices = {}  # (pid, spec) -> Device
_local = threading.local()
ignore_tuned = False  # True: plans go by estimates only


def recording():
    """Does CMOE_RECORD name a folder for the first call of this process?"""
    return bool(os.environ.get("CMOE_RECORD"))


def context():
    """The handle of this process's context."""
    pid = os.getpid()
    with _lock:
        handle = _contexts.get(pid)
        if handle is None:
            handle = ctypes.c_void_p()
            options = record.context_options() if recording() else None
            lib.context_create(options and ctypes.byref(options), ctypes.byref(handle))
            _contexts[pid] = handle
        return handle


class Device:
    """An open device: ``spec`` ("ref", "cpu", "cuda:0"), its handle, and its description."""

    def __init__(self, spec):
        self.spec = spec
        self.handle = ctypes.c_void_p()
        lib.device_open(context(), spec.encode(), ctypes.byref(self.handle))
        info = _abi.DeviceInfo()
        info.struct_size = ctypes.sizeof(info)
        lib.device_describe(self.handle, ctypes.byref(info))
        self.info = info
        self.host = bool(info.host)

    def __repr__(self):
        return f"Device({self.spec!r}: {self.info.name.decode()}, {self.info.isa.decode()})"


def device(spec=None):
    """Open (once) the device ``spec``; None: what CMOE_DEVICE names, else "cpu"."""
    spec = spec or os.environ.get("CMOE_DEVICE") or "cpu"
    key = (os.getpid(), spec)
    found = _devices.get(key)
    if found is None:
        found = Device(spec)
        found = _devices.setdefault(key, found)
    return found


class Plan:
    """A plan on a device: what cmoe_plan_create decided, and how to run it."""

    def __init__(self, dev, problem, weights=None, pin=None, formats=(None, None)):
        self.handle = None
        self.device, self.problem, self.weights = dev, problem, weights
        options = _abi.PlanOptions(struct_size=ctypes.sizeof(_abi.PlanOptions))
        options.pin = pin.encode() if pin else None
        options.format1, options.format2 = formats
        options.ignore_tuned = int(ignore_tuned)
        handle = ctypes.c_void_p()
        lib.plan_create(
            dev.handle,
            ctypes.byref(problem.c),
            weights.handle if weights else None,
            ctypes.byref(options),
            ctypes.byref(handle),
        )
        self.handle = handle.value
        self.workspace_size = lib.plan_workspace_size(handle)

    def __del__(self):
        if self.handle:
            lib.plan_destroy(self.handle)
            self.handle = None

    def path(self, tokens):
        """Names of the kernels that run for ``tokens``, joined by " > "."""
        return text_of(lib.plan_path, self.handle, tokens)

    def explain(self, tokens=0):
        """The planner's report for ``tokens`` (0: every bucket)."""
        return text_of(lib.plan_explain, self.handle, tokens)

    def weight_format(self, matrix):
        """Weight format that the plan reads for matrix 1 or 2, or "none"."""
        return lib.plan_weight_format(self.handle, matrix).decode()

    def run(self, tensors, like=None, workspace=None):
        """Execute with an _abi.Tensors; ``like``: a View on the device, for GPUs.

        ``workspace``: a contiguous torch tensor on the device; used if its bytes are enough.
        """
        pointer = 0
        if workspace is not None:
            size = workspace.numel() * workspace.element_size()
            first = (workspace.data_ptr() + 255) & ~255
            if first + self.workspace_size <= workspace.data_ptr() + size:
                pointer = first
        if self.device.host:
            pointer = pointer or host_workspace(self.workspace_size)[0]
            status = lib.execute(
                self.handle, ctypes.byref(tensors), pointer, self.workspace_size, None
            )
        else:
            status = self._run_on_gpu(tensors, like, pointer)
        if status:
            fail(status)

    def _run_on_gpu(self, tensors, like, pointer):
        """Workspace from torch's allocator, which knows streams and graph capture."""
        if like is None or like.kind != "torch":
            raise InvalidError("GPU devices take torch tensors")
        import torch

        if not pointer:
            buffer = torch.empty(
                self.workspace_size + 256, dtype=torch.uint8, device=like.owner.device
            )
            pointer = (buffer.data_ptr() + 255) & ~255
        stream = torch.cuda.current_stream(like.owner.device).cuda_stream
        return lib.execute(
            self.handle, ctypes.byref(tensors), pointer, self.workspace_size, stream
        )


def host_workspace(size):
    """(address, owner) of this thread's workspace, at least ``size`` bytes; it grows by doubling.

    Whoever keeps the address keeps the owner, too.
    """
    if getattr(_local, "size", -1) < size:
        _local.size = 1 << max(size - 1, 4095).bit_length()
        _local.buffer = (ctypes.c_char * (_local.size + 256))()
        _local.pointer = (ctypes.addressof(_local.buffer) + 255) & ~255
    return _local.pointer, _local.buffer


def new_tensors(n_tokens):
    """An _abi.Tensors for a call with ``n_tokens`` tokens."""
    return _abi.Tensors(struct_size=ctypes.sizeof(_abi.Tensors), n_tokens=n_tokens)
