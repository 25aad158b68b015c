# SPDX-License-Identifier: MIT
"""What AITER's tests and kernels import beside operators: the machine, types, configurations, names of
kernels, and activations into the caller's tensors. The answers are gfx950's, whose fp8 is OCP's."""

import torch

_CONFIG = {"BLOCK_SIZE_M": 32, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1,
           "num_warps": 4, "num_stages": 2, "waves_per_eu": 0, "matrix_instr_nonkdim": 16,
           "kpack": 1}  # fmt: skip


def get_gfx():
    """The architecture whose conventions these modules have."""
    return "gfx950"


get_arch = get_gfx


def get_cu_num():
    """Multiprocessors of the current device."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    return 1


def is_fp4_avail():
    """cmoe computes fp4 everywhere."""
    return True


def get_optimal_moe_config(dtype=None, M=1, **kinds):
    """A configuration whose block size callers align with; cmoe's planner uses none."""
    return dict(_CONFIG)


def get_optimal_moe_config_func(dtype=None, **kinds):
    """M -> a configuration."""
    return lambda M: dict(_CONFIG)


class _TorchToTriton(dict):
    """torch type -> Triton's where Triton is installed, else the torch type."""

    def __missing__(self, dtype):
        try:
            import triton.language as tl
        except ImportError:
            return dtype
        name = str(dtype).removeprefix("torch.")
        renamed = {"bfloat16": "bfloat16", "float8_e4m3fn": "float8e4nv", "float8_e5m2": "float8e5"}
        return getattr(tl, renamed.get(name, name), dtype)


torch_to_triton_dtype = _TorchToTriton()


def make_kernel_repr(base_name, config_keys):
    """A ``repr`` for triton.jit: the kernel's name with the values of its constants."""

    def name(specialization):
        constants = specialization.constants
        parts = [f"{key}_{constants.get(key)}" for key in config_keys]
        return "_".join((base_name, *parts)).replace(".", "_")

    return name


def remap_xcd(pid, GRID_MN, NUM_XCDS=8):
    """Programs in order: there are no dies to spread them over."""
    return pid


def pid_grid(pid, num_pid_m, num_pid_n, GROUP_SIZE_M=1):
    """(pid_m, pid_n) of a program; GROUP_SIZE_M rows of tiles run column by column."""
    if GROUP_SIZE_M == 1:
        return pid // num_pid_n, pid % num_pid_n
    per = GROUP_SIZE_M * num_pid_n
    first = pid // per * GROUP_SIZE_M
    size = min(num_pid_m - first, GROUP_SIZE_M)
    return first + pid % per % size, pid % per // size


def _and_mul(act):
    def function(out, input, limit=0.0):
        """out [.., d] = activation(first half of input) * second half, in fp32."""
        gate, up = input.float().chunk(2, -1)
        if limit:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        out.copy_(act(gate) * up)

    return function


_f = torch.nn.functional
silu_and_mul = _and_mul(_f.silu)
gelu_and_mul = _and_mul(_f.gelu)
gelu_tanh_and_mul = _and_mul(lambda v: _f.gelu(v, approximate="tanh"))


def swiglu_and_mul(out, input):
    """gpt-oss's: alpha 1.702, limit 7, up + 1."""
    gate, up = input.float().chunk(2, -1)
    gate = gate.clamp(max=7.0)
    out.copy_(gate * torch.sigmoid(1.702 * gate) * (up.clamp(-7.0, 7.0) + 1))


def scaled_silu_and_mul(out, input, scale):
    """silu_and_mul / scale in out's type."""
    gate, up = input.float().chunk(2, -1)
    out.copy_((_f.silu(gate) * up / scale.float()).to(out.dtype))


def _with_bias(function):
    def biased(out, input, expert_ids, bias):
        """The same of input + bias[expert] by row; rows of expert -1 become zero."""
        ids = expert_ids.long()
        shape = (*ids.shape, 1)
        function(out, input.float() + bias[ids.clamp(min=0)].float())
        out.mul_((ids >= 0).view(shape))

    return biased


silu_and_mul_bias = _with_bias(silu_and_mul)
gelu_and_mul_bias = _with_bias(gelu_and_mul)
swiglu_and_mul_bias = _with_bias(swiglu_and_mul)


def names(*wanted):
    """Functions of this module by name."""
    return {name: globals()[name] for name in wanted}
