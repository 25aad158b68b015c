# SPDX-License-Identifier: MIT
"""ctypes mirrors of the public structs, compared with the library before the first call.

Field order and types are those of include/cmoe/*.h. :func:`verify` asks the loaded library for sizes
and offsets, so that a library of another version is an import error and never a wrong result.
"""

import ctypes as C

from .errors import BY_STATUS, LibraryError

P = C.c_void_p
I32, I64, SIZE, F32 = C.c_int32, C.c_int64, C.c_size_t, C.c_float


class ContextOptions(C.Structure):
    _fields_ = [
        ("struct_size", SIZE), ("alloc", P), ("free", P), ("log", P), ("run", P),
        ("run_is_concurrent", C.c_int), ("user", P), ("n_threads", C.c_int), ("cpu", C.c_char_p),
        ("tuned", C.c_char_p), ("recorder", P), ("nodes", C.c_int),
    ]  # fmt: skip


class DeviceInfo(C.Structure):
    _fields_ = [
        ("struct_size", SIZE), ("name", C.c_char * 96), ("isa", C.c_char * 64),
        ("features", C.c_char * 256), ("threads", C.c_int), ("l1d", I64), ("l2", I64), ("l3", I64),
        ("memory", I64), ("host", C.c_int),
    ]  # fmt: skip


class Format(C.Structure):
    _fields_ = [(n, C.c_uint8) for n in (
        "dtype", "scaling", "scale_dtype", "zero", "fixed", "rounding", "mx_rounding", "reserved",
    )] + [("group", C.c_uint16), ("reserved2", C.c_uint16)]  # fmt: skip


class Problem(C.Structure):
    _fields_ = (
        [("struct_size", SIZE)]
        + [(n, I32) for n in (
            "max_tokens", "hidden", "inter", "hidden_pad", "inter_pad", "experts", "expert_first",
            "expert_count", "topk", "shared", "capacity", "groups", "groups_kept",
        )]
        + [(n, F32) for n in (
            "renorm_eps", "route_scale", "shared_weight", "act_limit", "act_alpha", "act_beta",
            "act_lbeta", "accumulate",
        )]
        + [("flags", C.c_uint32)]
        + [(n, C.c_uint8) for n in (
            "router", "act", "gate", "weight_on", "first", "last", "sort_format", "logits",
        )]
        + [("block_m", I32), ("in_", C.c_uint8), ("y", C.c_uint8), ("reserved", C.c_uint8 * 2)]
        + [("x", Format), ("w", Format), ("mid", Format)]
    )  # fmt: skip


class PlanOptions(C.Structure):
    _fields_ = [
        ("struct_size", SIZE), ("pin", C.c_char_p), ("format1", C.c_char_p),
        ("format2", C.c_char_p), ("bucket_weight", P), ("n_bucket_weight", C.c_int),
        ("workspace_limit", SIZE), ("ignore_tuned", C.c_int), ("n_threads", C.c_int),
    ]  # fmt: skip


class Tensors(C.Structure):
    _fields_ = [
        ("struct_size", SIZE), ("n_tokens", I32), ("n_tokens_dev", P), ("weights", P),
        ("logits", P), ("logits_stride", I64), ("router_w", P), ("router_b", P), ("route_bias", P),
        ("hash_table", P), ("token_ids", P), ("vocab", I64), ("topk_ids", P), ("topk_weights", P),
        ("topk_ids64", P), ("expert_map", P), ("x", P), ("x_stride", I64), ("x_scale", P),
        ("x_global", P), ("mid_scale", P), ("sorted_ids", P), ("expert_offsets", P),
        ("block_experts", P), ("num_valid", P), ("sorted_weights", P), ("xq", P), ("xq_scale", P),
        ("xq_global", P), ("gate_up", P), ("mid", P), ("mid_q", P), ("mid_q_scale", P),
        ("mid_q_global", P), ("z", P), ("y", P), ("y_stride", I64), ("expert_load", P),
        ("stage_us", P),
    ]  # fmt: skip


class Matrix(C.Structure):
    _fields_ = [
        ("data", P), ("row_stride", I64), ("col_stride", I64), ("scale", P), ("zero", P),
        ("global_", P), ("bias", P), ("smooth", P),
    ]  # fmt: skip


class WeightsDesc(C.Structure):
    _fields_ = [
        ("struct_size", SIZE), ("gate_up", P), ("up", P), ("down", P), ("format1", C.c_char_p),
        ("format2", C.c_char_p),
    ]  # fmt: skip


class Fused(C.Structure):
    _fields_ = [
        ("data", P), ("scale", P), ("zero", P), ("global_", P), ("bias", P), ("smooth", P),
        ("rows", I64), ("cols", I64), ("scale_rows", I64), ("experts", C.c_int),
        ("transposed", C.c_int),
    ]  # fmt: skip


class KernelInfo(C.Structure):
    _fields_ = [
        ("name", C.c_char_p), ("backend", C.c_char_p), ("target", C.c_char_p),
        ("format1", C.c_char_p), ("format2", C.c_char_p), ("first", C.c_int), ("last", C.c_int),
        ("conversion", C.c_int),
    ]  # fmt: skip


class ErrorStats(C.Structure):
    _fields_ = [
        ("n", I64), ("outside", I64), ("first", I64), ("max_abs", C.c_double),
        ("max_ratio", C.c_double), ("rel_l2", C.c_double), ("zeros", C.c_double),
    ]  # fmt: skip


class Record(C.Structure):
    _fields_ = [
        ("struct_size", SIZE), ("problem", P), ("tensors", P), ("weights", P),
        ("path", C.c_char_p), ("device", C.c_char_p), ("far", C.c_int),
    ]  # fmt: skip


class Recorder(C.Structure):
    _fields_ = [("record", P), ("user", P)]


MIRRORS = {
    "cmoe_context_options": (ContextOptions, ("user", "recorder", "nodes")),
    "cmoe_device_info": (DeviceInfo, ("threads", "host")),
    "cmoe_format": (Format, ("group",)),
    "cmoe_problem": (
        Problem, ("max_tokens", "groups", "flags", "router", "block_m", "x", "mid"),
    ),
    "cmoe_plan_options": (PlanOptions, ("workspace_limit", "n_threads")),
    "cmoe_tensors": (Tensors, ("weights", "topk_ids", "x", "sorted_ids", "y", "stage_us")),
    "cmoe_matrix": (Matrix, ("smooth",)),
    "cmoe_weights_desc": (WeightsDesc, ("format2",)),
    "cmoe_fused": (Fused, ("rows", "transposed")),
    "cmoe_kernel_info": (KernelInfo, ("conversion",)),
    "cmoe_record": (Record, ("far",)),
    "cmoe_recorder": (Recorder, ()),
    "cmoe_error": (ErrorStats, ("zeros",)),
}  # fmt: skip

# name: (restype, argtypes); functions that return a status have restype "status".
FUNCTIONS = {
    "abi_size": (SIZE, [C.c_char_p]),
    "version": (C.c_char_p, []),
    "last_error": (C.c_char_p, []),
    "status_name": (C.c_char_p, [C.c_int]),
    "context_create": ("status", [P, P]),
    "context_destroy": (None, [P]),
    "context_threads": (C.c_int, [P]),
    "context_executor": (C.c_char_p, [P]),
    "device_open": ("status", [P, C.c_char_p, P]),
    "device_close": (None, [P]),
    "device_describe": (None, [P, P]),
    "backend_describe": (C.c_int, [C.c_int, P, C.c_char_p, SIZE]),
    "kernel_describe": (C.c_int, [C.c_int, P]),
    "dtype_parse": (C.c_int, [C.c_char_p]),
    "dtype_name": (C.c_char_p, [C.c_int]),
    "dtype_bits": (C.c_int, [C.c_int]),
    "problem_init": (None, [P]),
    "problem_check": ("status", [P]),
    "problem_parse": ("status", [P, C.c_char_p]),
    "problem_print": (C.c_int, [P, C.c_char_p, SIZE]),
    "problem_hash": (C.c_uint64, [P]),
    "problem_slots": (I32, [P]),
    "problem_local_experts": (I32, [P]),
    "problem_rows1": (I64, [P]),
    "scheme_name": (C.c_char_p, [C.c_int]),
    "model_name": (C.c_char_p, [C.c_int]),
    "router_name": (C.c_char_p, [C.c_int]),
    "sort_capacity": (I64, [P, I64]),
    "matrix_split": ("status", [P, Format, P]),
    "weights_create": ("status", [P, P, P, P]),
    "weights_destroy": (None, [P]),
    "weights_format": (C.c_char_p, [P, C.c_int]),
    "weights_owned_bytes": (SIZE, [P]),
    "plan_create": ("status", [P, P, P, P, P]),
    "plan_destroy": (None, [P]),
    "plan_workspace_size": (SIZE, [P]),
    "plan_weight_format": (C.c_char_p, [P, C.c_int]),
    "plan_path": (C.c_int, [P, C.c_int, C.c_char_p, SIZE]),
    "plan_explain": (C.c_int, [P, C.c_int, C.c_char_p, SIZE]),
    "execute": (C.c_int, [P, P, P, SIZE, P]),
    "reference": ("status", [P, P, P, P, P, P]),
    "compare": (None, [C.c_int, P, P, P, I64, P]),
    "convert": ("status", [C.c_int, P, C.c_int, P, I64]),
    "format_bytes": ("status", [Format, I64, I64, P, P, P]),
    "quantize_weight": ("status", [Format, P, I64, I64, P, P, P, P]),
    "dequantize_weight": ("status", [Format, P, I64, I64, P]),
    "quantize_rows": ("status", [Format, P, I64, I64, P, P, P, P]),
    "dequantize_rows": ("status", [Format, P, P, P, I64, I64, P]),
    "pack4": ("status", [C.c_int, P, I64, I64, P]),
    "unpack4": ("status", [C.c_int, P, I64, I64, P]),
    "static_scale": (F32, [Format, F32]),
}


def verify(lib, path):
    """Compare every mirror and the status names with the library; raise LibraryError if one differs."""
    for name, (mirror, fields) in MIRRORS.items():
        pairs = [(name, C.sizeof(mirror))]
        pairs += [(f"{name}.{f}", getattr(mirror, f).offset) for f in fields]
        for what, mine in pairs:
            theirs = lib.abi_size(what.encode())
            if theirs != mine:
                raise LibraryError(
                    f"{path} does not fit these bindings: {what} is {theirs} there and {mine} here"
                )
    for value, cls in BY_STATUS.items():
        theirs = lib.status_name(value).decode()
        if theirs != cls.status:
            raise LibraryError(f"{path}: status {value} is {theirs} there and {cls.status} here")
