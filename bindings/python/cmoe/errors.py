# SPDX-License-Identifier: MIT
"""One exception class for every status of the C library; the message is the library's sentence.

Every class derives from :class:`Error`, and from the builtin a Python caller would expect
(``ValueError`` for wrong arguments, ``NotImplementedError`` for valid but unsupported ones, ...).
"""


class Error(Exception):
    """A cmoe call failed. ``status`` is the C name, such as ``"CMOE_ERR_INVALID"``."""

    status = "CMOE_ERR"


class InvalidError(Error, ValueError):
    """An argument is wrong; the message names it."""

    status = "CMOE_ERR_INVALID"


class UnsupportedError(Error, NotImplementedError):
    """Valid, but no kernel on this device does it."""

    status = "CMOE_ERR_UNSUPPORTED"


class SizeOverflowError(Error, OverflowError):
    """A size does not fit."""

    status = "CMOE_ERR_OVERFLOW"


class NoDeviceError(Error, RuntimeError):
    """No such device, or its driver is missing."""

    status = "CMOE_ERR_NO_DEVICE"


class NoMemoryError(Error, MemoryError):
    """An allocation failed."""

    status = "CMOE_ERR_NO_MEMORY"


class WorkspaceError(Error, ValueError):
    """The workspace is too small or misaligned."""

    status = "CMOE_ERR_WORKSPACE"


class BusyError(Error, RuntimeError):
    """The object is in use by another call."""

    status = "CMOE_ERR_BUSY"


class FileError(Error, OSError):
    """The operating system refused a file operation."""

    status = "CMOE_ERR_IO"


class CorruptError(Error, ValueError):
    """A file or text does not follow its format."""

    status = "CMOE_ERR_CORRUPT"


class DeviceError(Error, RuntimeError):
    """The device reported a fault."""

    status = "CMOE_ERR_DEVICE"


class MismatchError(Error, ValueError):
    """Two objects that must agree do not."""

    status = "CMOE_ERR_MISMATCH"


class LibraryError(Error, ImportError):
    """libcmoe was not found, or is not the one these bindings were written for."""

    status = "CMOE_ERR_LIBRARY"


class SlowPathWarning(UserWarning):
    """No fast kernel covers a call: it runs on the ``ref`` device, which is right but slow."""


BY_STATUS = {
    1: InvalidError,
    2: UnsupportedError,
    3: SizeOverflowError,
    4: NoDeviceError,
    5: NoMemoryError,
    6: WorkspaceError,
    7: BusyError,
    8: FileError,
    9: CorruptError,
    10: DeviceError,
    12: MismatchError,
}
