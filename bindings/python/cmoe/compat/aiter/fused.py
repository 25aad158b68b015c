# SPDX-License-Identifier: MIT
"""AITER's family A: fused_moe, asm_moe, fused_moe_dp_share_expert, and their torch references.

Weights [E, N, K] with all gate rows before all up rows. gelu is the erf form; swiglu is gpt-oss's
with alpha 1.702, limit 7 and up + 1. expert_mask has one entry per global expert, nonzero = local.
Source: aiter/fused_moe.py, fused_moe_bf16_asm.py, fused_moe_dp_shared_expert.py.
"""

import torch

from ... import tensors
from ...errors import InvalidError, UnsupportedError
from ...functions import route
from ..common import run_experts
from .kinds import ACTS, ActivationType, QuantType
from .ops import expert_map, moe_sorting
from .quant import unswizzle


def fused_topk(hidden_states, gating_output, topk, renormalize, topk_ids=None, topk_weights=None):
    """(topk_weights f32 [M, k], topk_ids int32 [M, k]): softmax, then top-k, ties to the lowest id."""
    return route(gating_output, topk, f"softmax {'renorm' if renormalize else ''}", ids=topk_ids,
                 weights=topk_weights)  # fmt: skip


def kind_of(w):
    """cmoe's element type of weights; bytes are fp4 pairs or e4m3 of an older torch."""
    name = tensors.torch_dtype_name(w.dtype)
    return "e4m3" if name == "u8" else name


def words_of(w1, quant_type, activation, static, inter):
    """Words for x, w and mid: AITER's quantisation at each stage."""
    if quant_type == QuantType.No:
        return None
    kind = kind_of(w1)
    if kind in tensors.FLOATS:  # weights without scales: the layer quantises them
        kind = "e4m3"
        if quant_type == QuantType.per_1x32:
            a16 = activation in (ActivationType.Swiglu, ActivationType.Situv2)
            return "w=e2m1/mx32" if a16 else "x=e2m1/mx32 w=e2m1/mx32 mid=e2m1/mx32"
    if quant_type == QuantType.per_Tensor:
        s = ":static" if static else ""
        return f"x={kind}/tensor{s} w={kind}/tensor mid={kind}/tensor{s}"
    if quant_type == QuantType.per_Token:
        cut = ":trunc" if kind == "i8" else ""  # AITER's int8 cast truncates
        return f"x={kind}/token{cut} w={kind}/channel mid={kind}/token{cut}"
    if quant_type in (QuantType.per_1x128, QuantType.per_128x128):
        joint = "joint" if inter % 128 else ""
        return f"x={kind}/g128 w={kind}/b128 mid={kind}/g128 {joint}"
    if quant_type == QuantType.per_1x32:
        if kind in ("e4m3", "e5m2") and w1.dtype != torch.uint8:
            return f"x={kind}/mx32 w={kind}/mx32 mid={kind}/mx32"
        a16 = activation in (ActivationType.Swiglu, ActivationType.Situv2)
        return "w=e2m1/mx32" if a16 else "x=e2m1/mx32 w=e2m1/mx32 mid=e2m1/mx32"
    raise UnsupportedError(f"{QuantType(quant_type)!s} is not a quantisation of experts")


def fused_moe(hidden_states, w1, w2, topk_weight, topk_ids, expert_mask=None,
              activation=ActivationType.Silu, quant_type=QuantType.No, doweight_stage1=False,
              w1_scale=None, w2_scale=None, a1_scale=None, a2_scale=None, block_size_M=None,
              num_local_tokens=None, moe_sorting_dispatch_policy=0, dtype=None, hidden_pad=0,
              intermediate_pad=0, bias1=None, bias2=None, splitk=0, swiglu_limit=None, beta=None,
              linear_beta=None, gate_mode="separated", **unsupported):  # fmt: skip
    """[M, H] of ``dtype`` (default hidden_states').

    hidden_states bf16 or fp16 [M, H]; w1 [E, 2I or I, H], w2 [E, H, I]; scales by quant_type:
    per_Tensor [E], per_Token [E, rows, 1], per_1x128 [E, rows/128, columns/128], per_1x32 e8m0
    [E, rows, columns/32], plain or from shuffle_scale. a1_scale, a2_scale: static f32 [1], per_Tensor.
    hidden_states may also be quantised already, with a1_scale [M, 1], [M, H/128] or e8m0 [M, H/32] and
    ``dtype``. per_1x32 with fp4 weights quantises activations to fp4 for Silu and Gelu, and leaves them in 16
    bits for Swiglu and Situv2, at every batch size. doweight_stage1 multiplies GEMM1's result.
    16-bit weights with a quant_type and no scales are quantised in every call (fp8, or fp4 for
    per_1x32). block_size_M, splitk and the dispatch policy are accepted and have no effect.
    """
    given = sorted(k for k, v in unsupported.items() if v is not None and not isinstance(v, int))
    if given:
        raise UnsupportedError(f"fused_moe does not support {', '.join(given)}")
    codes = tensors.torch_dtype_name(hidden_states.dtype) not in tensors.FLOATS
    if codes and (dtype is None or a1_scale is None):
        raise InvalidError("quantised hidden_states need a1_scale and dtype")
    pack = max(1, w2.shape[1] // w1.shape[2])
    inter = w2.shape[2] * pack
    if w1.shape[1] not in (inter, 2 * inter):
        raise InvalidError(f"w1 has {w1.shape[1]} rows an expert; expected {inter} or {2 * inter}")
    scales = [_scale(s, w, quant_type) for s, w in ((w1_scale, w1), (w2_scale, w2))]
    options = f"hpad={hidden_pad} ipad={intermediate_pad}"
    if swiglu_limit:
        options += f" limit={swiglu_limit}"
    if activation == ActivationType.Situv2:
        options += f" beta={beta or 4.0} lbeta={25.0 if linear_beta is None else linear_beta}"
    rows = hidden_states.shape[0]
    live = rows if num_local_tokens is None else min(rows, int(num_local_tokens.reshape(-1)[0]))
    out = torch.empty(rows, w2.shape[1], dtype=dtype or hidden_states.dtype,
                      device=hidden_states.device)  # fmt: skip
    words = words_of(w1, quant_type, activation, a1_scale is not None, inter)
    if codes and quant_type == QuantType.per_1x32:
        kind = "e2m1" if hidden_states.shape[1] * 2 == w2.shape[1] else kind_of(hidden_states)
        words = f"x={kind}/mx32 w={'e2m1' if pack == 2 else kind}/mx32 mid={kind}/mx32"
    if codes and a1_scale.shape[:1] == (rows,):
        a1_scale = a1_scale[:live]
    run_experts(
        hidden_states[:live], w1, w2, topk_weight[:live], topk_ids[:live], words,
        act=ACTS[ActivationType(activation)], gate="none" if w1.shape[1] == inter else "split",
        weight_on="gemm1" if doweight_stage1 else "out", out=out[:live], x_scale=a1_scale,
        mid_scale=a2_scale, options=options, w1_scale=scales[0], w2_scale=scales[1], b1=bias1,
        b2=bias2, expert_map=expert_map(expert_mask), dtype=out.dtype if codes else None,
    )  # fmt: skip
    return out


def _scale(scale, w, quant_type):
    if scale is None or quant_type != QuantType.per_1x32:
        return scale
    return unswizzle(scale, w.shape[0] * w.shape[1])


def asm_moe(hidden_states, w1, w2, topk_weight, topk_ids, fc1_scale=None, fc2_scale=None,
            fc1_smooth_scale=None, fc2_smooth_scale=None, a16=False, per_tensor_quant_scale=None,
            block_shape=None, expert_mask=None, activation=ActivationType.Silu,
            local_expert_hash=None):  # fmt: skip
    """The older front end: no scales = 16 bits; block_shape (128, 128) = block-scaled fp8; else W8A8.

    Scales [E, rows, 1]; smoothing vectors fc1_smooth_scale [E, 1, H], fc2_smooth_scale [E, 1, I].
    """
    if fc1_smooth_scale is None:
        kind = QuantType.No if fc1_scale is None else QuantType.per_Token
        if block_shape is not None:
            kind = QuantType.per_1x128
        return fused_moe(hidden_states, w1, w2, topk_weight, topk_ids, expert_mask, activation, kind,
                         w1_scale=fc1_scale, w2_scale=fc2_scale)  # fmt: skip
    kind = kind_of(w1)
    gate = "none" if w1.shape[1] == w2.shape[2] else "split"
    return run_experts(
        hidden_states, w1, w2, topk_weight, topk_ids,
        f"x={kind}/smooth w={kind}/channel mid={kind}/smooth", act=ACTS[ActivationType(activation)],
        gate=gate, w1_scale=fc1_scale, w2_scale=fc2_scale, smooth1=fc1_smooth_scale,
        smooth2=fc2_smooth_scale, expert_map=expert_map(expert_mask),
    )  # fmt: skip


def asm_moe_tkw1(hidden_states, w1, w2, topk_weight, topk_ids, fc1_scale=None, fc2_scale=None,
                 fc1_smooth_scale=None, fc2_smooth_scale=None, a16=False,
                 per_tensor_quant_scale=None, expert_mask=None,
                 activation=ActivationType.Silu):  # fmt: skip
    """per_Token with the routing weight on GEMM1's result."""
    return fused_moe(hidden_states, w1, w2, topk_weight, topk_ids, expert_mask, activation,
                     QuantType.per_Token, True, w1_scale=fc1_scale, w2_scale=fc2_scale)  # fmt: skip


def get_dp_shared_expert_token_range(tokens, dp_size, dp_rank):
    """[start, end) of a rank: ceil(tokens / dp_size) each."""
    per = -(-tokens // dp_size)
    start = min(per * dp_rank, tokens)
    return start, min(start + per, tokens)


def fused_moe_dp_share_expert(hidden_states, w1, w2, expert_mask=None,
                              activation=ActivationType.Silu, quant_type=QuantType.No,
                              doweight_stage1=False, w1_scale=None, w2_scale=None, a1_scale=None,
                              a2_scale=None, block_size_M=None, num_local_tokens=None,
                              moe_sorting_dispatch_policy=0, dtype=None, dp_size=1, dp_rank=0,
                              moe_buf=None):  # fmt: skip
    """Every token of this rank's slice through every expert with weight 1, added to moe_buf.

    moe_buf [N, H] (zeros when None) is changed in place and returned whole.
    """
    buffer = torch.zeros_like(hidden_states) if moe_buf is None else moe_buf
    start, end = get_dp_shared_expert_token_range(hidden_states.shape[0], dp_size, dp_rank)
    if start == end:
        return buffer
    experts = w1.shape[0]
    ids = torch.arange(experts, dtype=torch.int32, device=hidden_states.device)
    ids = ids.repeat(end - start, 1)
    y = fused_moe(hidden_states[start:end], w1, w2, torch.ones(ids.shape, device=ids.device), ids,
                  expert_mask, activation, quant_type, doweight_stage1, w1_scale, w2_scale, a1_scale,
                  a2_scale)  # fmt: skip
    buffer[start:end] += y.to(buffer.dtype)
    return buffer


def torch_moe(hidden_states, w1, w2, topk_weight, topk_ids, fc1_scale=None, fc2_scale=None,
              fc1_smooth_scale=None, fc2_smooth_scale=None, expert_mask=None,
              activation=ActivationType.Silu):  # fmt: skip
    """AITER's reference in torch, not in cmoe: f32, weights dequantised per row, no quantised x."""
    f = {ActivationType.Silu: torch.nn.functional.silu, ActivationType.Gelu: torch.nn.functional.gelu,
         ActivationType.No: lambda g: g}[ActivationType(activation)]  # fmt: skip
    x, y = hidden_states.float(), torch.zeros(hidden_states.shape[0], w2.shape[1])
    table = expert_map(expert_mask)
    for e in range(w1.shape[0] if table is None else table.numel()):
        local = e if table is None else int(table[e])
        t, s = torch.where(topk_ids == e)
        if local < 0 or not len(t):
            continue
        a, b = w1[local].float(), w2[local].float()
        a = a if fc1_scale is None else a * fc1_scale[local].reshape(-1, 1)
        b = b if fc2_scale is None else b * fc2_scale[local].reshape(-1, 1)
        v = x[t] if fc1_smooth_scale is None else x[t] * fc1_smooth_scale[local].reshape(1, -1)
        h = v @ a.t()
        if a.shape[0] == 2 * b.shape[1]:
            gate, up = h.chunk(2, -1)
            h = f(gate) * up
        else:
            h = f(h)
        h = h if fc2_smooth_scale is None else h * fc2_smooth_scale[local].reshape(1, -1)
        y.index_add_(0, t, (h @ b.t()) * topk_weight[t, s, None].float())
    return y.to(hidden_states.dtype)


def get_topk_valid_mask(topk_ids, expert_mask=None):
    """[M, k]: ones, or the mask's value of every id."""
    if expert_mask is None:
        return torch.ones_like(topk_ids, dtype=torch.int32)
    return expert_mask[topk_ids.long()]


def get_inter_dim(w1_shape, w2_shape):
    """(experts, model_dim, inter_dim), packing undone."""
    return w1_shape[0], w2_shape[1], w2_shape[2] * max(1, w2_shape[1] // w1_shape[2])


def exports():
    """aiter.fused_moe."""
    return {f.__name__: f for f in (fused_moe, fused_topk, torch_moe, get_topk_valid_mask,
                                    get_inter_dim)}  # fmt: skip


def asm_exports():
    """aiter.fused_moe_bf16_asm."""

    return {"asm_moe": asm_moe, "asm_moe_tkw1": asm_moe_tkw1, "torch_moe": torch_moe,
            "fused_topk": fused_topk, "moe_sorting_ck": moe_sorting}  # fmt: skip


def shared_exports():
    """aiter.fused_moe_dp_shared_expert."""
    return {f.__name__: f for f in (fused_moe_dp_share_expert, get_dp_shared_expert_token_range,
                                    torch_moe)}  # fmt: skip
