# SPDX-License-Identifier: MIT
"""AITER's quantisers, type names and shuffles.

Source: aiter/ops/quant.py, aiter/ops/shuffle.py, aiter/utility/dtypes.py, as on gfx950 (OCP fp8).
"""

import types

import torch

from ...errors import UnsupportedError
from ...functions import quantize
from .kinds import ActivationType, QuantType

_FP8 = getattr(torch, "float8_e4m3fn", torch.uint8)

dtypes = types.SimpleNamespace(
    fp8=_FP8,
    fp16=torch.float16,
    bf16=torch.bfloat16,
    fp32=torch.float32,
    i8=torch.int8,
    u8=torch.uint8,
    i32=torch.int32,
    fp4x2=getattr(torch, "float4_e2m1fn_x2", torch.uint8),
    fp8_e8m0=getattr(torch, "float8_e8m0fnu", torch.uint8),
    i4x2=torch.uint8,
)


def _largest(dtype):
    return 127.0 if dtype == torch.int8 else torch.finfo(dtype).max


def pertoken_quant(x, scale=None, x_scale=None, scale_dtype=torch.float32, quant_dtype=torch.int8,
                   dtypeMax=None):  # fmt: skip
    """(codes, scale [..., 1]): amax/max of each row, 0 counts as 1; int8 truncates, fp8 rounds."""
    v = x.float() if x_scale is None else x.float() * x_scale
    if scale is None:
        scale = v.abs().amax(-1, keepdim=True) / (dtypeMax or _largest(quant_dtype))
        scale = torch.where(scale == 0, 1.0, scale)
    return (v / scale).to(quant_dtype), scale.to(scale_dtype)


def per_tensor_quant(x, scale=None, scale_dtype=torch.float32, quant_dtype=torch.int8,
                     dtypeMax=None):  # fmt: skip
    """(codes, scale [1]) of the whole tensor."""
    if scale is None:
        scale = x.float().abs().amax() / (dtypeMax or _largest(quant_dtype))
    return (x.float() / scale).to(quant_dtype), scale.reshape(1).to(scale_dtype)


def per_block_quant_wrapper(block_shape=(1, 128)):
    """A quantiser of rows in groups: (codes, scale [rows, columns/128])."""
    if tuple(block_shape) != (1, 128):
        raise UnsupportedError(f"per_block_quant_wrapper: {block_shape} is not (1, 128)")

    def quantise(x, scale=None, quant_dtype=_FP8):
        groups = x.reshape(-1, x.shape[-1] // 128, 128)
        codes, made = pertoken_quant(groups, quant_dtype=quant_dtype)
        return codes.view(x.shape), made.view(*x.shape[:-1], -1)

    return quantise


def per_1x32_f4_quant(x, scale=None, quant_dtype=None, shuffle=False):
    """(codes u8 [..., columns/2], e8m0 [..., columns/32]); RoundUp scales, codes to nearest even."""
    flat = x.reshape(-1, x.shape[-1])
    q = quantize(flat, "e2m1/mx32", activations=True)
    codes = q.data.view(*x.shape[:-1], -1)
    scales = q.scale.view(torch.uint8)
    return codes, shuffle_scale(scales) if shuffle else scales.view(*x.shape[:-1], -1)


def get_torch_quant(qType):
    """The quantiser of a QuantType: (x, scale=None, quant_dtype=...) -> (codes, scale)."""
    known = {
        QuantType.No: lambda x, *a, **k: (x, None),
        QuantType.per_Tensor: per_tensor_quant,
        QuantType.per_Token: pertoken_quant,
        QuantType.per_1x32: per_1x32_f4_quant,
        QuantType.per_1x128: per_block_quant_wrapper((1, 128)),
    }
    if qType not in known:
        raise UnsupportedError(f"no quantiser for {qType!s}")
    return known[qType]


get_hip_quant = get_triton_quant = get_torch_quant


def get_torch_act(aType):
    """The torch function of an activation; gelu is the erf form."""
    f = torch.nn.functional
    return {ActivationType.No: lambda a: a, ActivationType.Silu: f.silu,
            ActivationType.Gelu: f.gelu}[aType]  # fmt: skip


def shuffle_weight(x, layout=(16, 16), *args, **kwargs):
    """The same values in the same order, marked: cmoe reads the logical layout.

    AITER's shuffle is an order for AMD's matrix instructions; ``is_shuffled`` is lost on views there
    and here.
    """
    marked = x.view(x.shape)
    marked.is_shuffled = True
    return marked


shuffle_weight_a16w4 = shuffle_weight


def shuffle_scale_a16w4(src, *args, **kwargs):
    """The same values in the same order."""
    return src


def shuffle_scale(src, experts_cnt=None, is_guinterleave=False, gate_up=False):
    """AITER's byte order of e8m0 scales [rows, columns]: a real permutation, padded to 256 x 8.

    Marked, so that fused_moe can undo it.
    """
    if is_guinterleave:
        return shuffle_scale_a16w4(src)
    flat = src.view(torch.uint8).reshape(-1, src.shape[-1])
    rows, cols = -(-flat.shape[0] // 256) * 256, -(-flat.shape[1] // 8) * 8
    padded = torch.zeros(rows, cols, dtype=torch.uint8, device=src.device)
    padded[: flat.shape[0], : flat.shape[1]] = flat
    grid = padded.view(rows // 32, 2, 16, cols // 8, 2, 4)
    swizzled = grid.permute(0, 3, 5, 2, 4, 1).contiguous().view(rows, cols)
    swizzled.cmoe_swizzled = tuple(flat.shape)
    return swizzled


e8m0_shuffle = shuffle_scale


def unswizzle(scale, rows):
    """The plain order of a scale tensor that shuffle_scale marked; others as they are."""
    shape = getattr(scale, "cmoe_swizzled", None)
    if shape is None:
        return scale
    r, c = scale.shape
    grid = scale.view(r // 32, c // 8, 4, 16, 2, 2).permute(0, 5, 3, 1, 4, 2)
    return grid.reshape(r, c)[: shape[0], : shape[1]].contiguous()


def exports():
    """aiter.ops.quant."""
    return {f.__name__: f for f in (
        pertoken_quant, per_tensor_quant, per_block_quant_wrapper, per_1x32_f4_quant,
        get_torch_quant, get_torch_act)} | {"get_hip_quant": get_torch_quant,
                                            "get_triton_quant": get_torch_quant}  # fmt: skip


def shuffles():
    """aiter.ops.shuffle."""
    return {"shuffle_weight": shuffle_weight, "shuffle_weight_a16w4": shuffle_weight,
            "shuffle_scale": shuffle_scale, "shuffle_scale_a16w4": shuffle_scale_a16w4,
            "e8m0_shuffle": shuffle_scale}  # fmt: skip
