# SPDX-License-Identifier: MIT
"""AITER's family C quantisers. Source: aiter/ops/triton/moe/quant_moe.py."""

import enum

import torch

from ...errors import UnsupportedError
from ...functions import Quantized, dequantize, quantize
from .quant import _FP8


class DequantScaleRoundingMode(enum.IntEnum):
    """How an MX scale is rounded to a power of two."""

    ROUND_UP = 0
    ROUND_DOWN = 1


def downcast_to_static_fp8(x, scale):
    """x / scale in fp8, saturated."""
    top = torch.finfo(_FP8).max
    return (x.float() / scale.float()).clamp(-top, top).to(_FP8)


downcast_to_static_fp8_3d = downcast_to_static_fp8


def _words(out_quant_type):
    return "e2m1/mx32:away" if out_quant_type == torch.uint8 else "e4m3/mx32"


def downcast_to_mxfp(src, out_quant_type, axis,
                     DEQUANT_SCALE_ROUNDING_MODE=DequantScaleRoundingMode.ROUND_UP):  # fmt: skip
    """(codes, e8m0) along ``axis``, where fp4 (uint8) is packed; fp4 rounds half away from zero."""
    if DEQUANT_SCALE_ROUNDING_MODE != DequantScaleRoundingMode.ROUND_UP:
        raise UnsupportedError("downcast_to_mxfp: only ROUND_UP")
    moved = src.transpose(axis, -1).contiguous()
    q = quantize(moved.reshape(-1, moved.shape[-1]), _words(out_quant_type), activations=True)
    shape = moved.shape[:-1]
    codes, scale = q.data.view(*shape, -1), q.scale.view(torch.uint8).view(*shape, -1)
    return codes.transpose(axis, -1), scale.transpose(axis, -1)


def upcast_from_mxfp(tensor, scale, dtype, axis):
    """The values of downcast_to_mxfp."""
    packed = tensor.dtype == torch.uint8
    codes = tensor.transpose(axis, -1).contiguous()
    scales = scale.view(torch.uint8).transpose(axis, -1).contiguous()
    q = Quantized(codes.reshape(-1, codes.shape[-1]), scales.reshape(-1, scales.shape[-1]), None, None)
    values = dequantize(q, _words(torch.uint8 if packed else None), activations=True)
    return values.view(*codes.shape[:-1], -1).to(dtype).transpose(axis, -1)


def dequant_x_blockscale(x, s, per_row, group_shape):
    """f32 of x [M, K] with scales [M or M/rows, K/columns]."""
    rows, cols = group_shape
    wide = s.float() if per_row else s.float().repeat_interleave(rows, 0)[: x.shape[0]]
    return x.float() * wide.repeat_interleave(cols, 1)[:, : x.shape[1]]


def dequant_w_blockscale(w, s, group_shape):
    """f32 of w [E, K, N] with scales [E, K/rows, N/columns]."""
    rows, cols = group_shape
    wide = s.float().repeat_interleave(rows, 1).repeat_interleave(cols, 2)
    return w.float() * wide[:, : w.shape[1], : w.shape[2]]


def smoothquant_quantize(x, smooth):
    """(int8 [M, K], f32 [M]) of x * smooth: scale max/127 + 1e-12, half away from zero."""
    v = x.float() * smooth.float()
    scale = v.abs().amax(-1) / 127 + 1e-12
    v = v / scale[:, None]
    return (v.sign() * (v.abs() + 0.5).floor()).clamp(-127, 127).to(torch.int8), scale


def quantize_weights_int8(w):
    """(int8 [E, K, N], f32 [E, N]): scale max/127 + 1e-12, half to even."""
    scale = w.float().abs().amax(1) / 127 + 1e-12
    return (w.float() / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def exports():
    """aiter.ops.triton.moe.quant_moe."""
    return {f.__name__: f for f in (
        DequantScaleRoundingMode, downcast_to_static_fp8, downcast_to_mxfp, upcast_from_mxfp,
        dequant_x_blockscale, dequant_w_blockscale, smoothquant_quantize,
        quantize_weights_int8)} | {"downcast_to_static_fp8_3d": downcast_to_static_fp8}  # fmt: skip
