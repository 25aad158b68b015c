# SPDX-License-Identifier: MIT
"""AITER's single-kernel entry points of family A: fmoe*, ck_moe_stage*, moe_stage1_g1u1, moe_cktile2stages_*.

They take the order that moe_sorting made: ids (slot << 24) | token, one expert for every block of ids.
Whole-layer calls add to ``out``; stage 1 writes [M, k, I], stage 2 adds its weighted rows to [M, H].
Source: aiter/ops/moe_op.py.
"""

import torch

from ... import tensors
from ...errors import UnsupportedError
from ..common import grouped_gemm, run_experts
from .fused import kind_of, words_of
from .kinds import ACTS, ActivationType, QuantType


def unsort(sorted_ids, expert_ids, num_valid, block_m, tokens, topk):
    """(positions, flat ids token*k + slot, experts) of the rows that are no padding."""
    used = min(int(num_valid.reshape(-1)[0]), sorted_ids.numel())
    ids = sorted_ids[:used].long()
    token, slot = ids & 0xFFFFFF, ids >> 24
    experts = expert_ids.long()[torch.arange(used, device=ids.device) // block_m]
    live = ((token < tokens) & (slot < topk)).nonzero()[:, 0]
    return live, (token * topk + slot)[live], experts[live]


def _routing(sorted_ids, sorted_weights, expert_ids, num_valid, block_m, tokens, topk):
    """topk_ids and topk_weights [M, k] again; -1 where a slot is not in the order."""
    live, flat, experts = unsort(sorted_ids, expert_ids, num_valid, block_m, tokens, topk)
    ids = torch.full((tokens * topk,), -1, dtype=torch.int32, device=sorted_ids.device)
    ids[flat] = experts.int()
    weights = torch.zeros(tokens * topk, device=ids.device)
    weights[flat] = sorted_weights[live].float()
    return ids.view(tokens, topk), weights.view(tokens, topk)


def _layer(out, x, w1, w2, order, topk, words, activation, *, weight_on="out", block_m=32, **arrays):
    sorted_ids, sorted_weights, expert_ids, num_valid = order
    tokens = out.shape[0]
    ids, weights = _routing(sorted_ids, sorted_weights, expert_ids, num_valid, block_m, tokens, topk)
    per_slot = x.numel() == tokens * topk * x.shape[-1] and topk > 1
    if per_slot:  # slot-major rows [k, M, H], each quantised for its expert: k*M tokens of one slot
        x = x.reshape(topk * tokens, -1)
        ids, weights = (t.t().reshape(-1, 1).contiguous() for t in (ids, weights))
    gate = "none" if w1.shape[1] == w2.shape[2] else "split"
    y = run_experts(x, w1, w2, weights, ids, words, act=ACTS[ActivationType(activation)], gate=gate,
                    weight_on=weight_on, dtype=out.dtype, **arrays)  # fmt: skip
    out += y.view(topk, tokens, -1).float().sum(0).to(out.dtype) if per_slot else y


def fmoe(out, input, gate, down, sorted_token_ids, sorted_weights, sorted_expert_ids, num_valid_ids,
         topk):  # fmt: skip
    """out += the layer in 16 bits with one projection and silu."""
    order = (sorted_token_ids, sorted_weights, sorted_expert_ids, num_valid_ids)
    _layer(out, input, gate, down, order, topk, None, ActivationType.Silu)


def fmoe_g1u1(out, input, gate, down, sorted_token_ids, sorted_weights, sorted_expert_ids,
              num_valid_ids, topk, input_scale, fc1_scale, fc2_scale, kernelName="",
              fc2_smooth_scale=None, activation=ActivationType.Silu, weight_on="out"):  # fmt: skip
    """out += the layer of int8 or fp8 rows ``input`` [M, H] with input_scale [M, 1].

    With fc2_smooth_scale [E, 1, I], rows and scales are slot-major [k, M, ...], smoothed by expert.
    """
    order = (sorted_token_ids, sorted_weights, sorted_expert_ids, num_valid_ids)
    kind = kind_of(gate)
    cut = ":trunc" if kind == "i8" else ""
    mid = f"{kind}/token{cut}" if fc2_smooth_scale is None else f"{kind}/smooth"
    _layer(out, input, gate, down, order, topk, f"x={kind}/token w={kind}/channel mid={mid}",
           activation, weight_on=weight_on, x_scale=input_scale.reshape(-1), w1_scale=fc1_scale,
           w2_scale=fc2_scale, smooth2=fc2_smooth_scale)  # fmt: skip


def fmoe_int8_g1u0(out, input, gate, down, sorted_token_ids, sorted_weights, sorted_expert_ids,
                   num_valid_ids, topk, input_scale, fc1_scale, fc2_scale, fc2_smooth_scale=None,
                   activation=ActivationType.Silu):  # fmt: skip
    """fmoe_g1u1 with one projection, int8."""
    fmoe_g1u1(out, input, gate, down, sorted_token_ids, sorted_weights, sorted_expert_ids,
              num_valid_ids, topk, input_scale, fc1_scale, fc2_scale, "", fc2_smooth_scale,
              activation)  # fmt: skip


def fmoe_g1u1_tkw1(*args, **options):
    """fmoe_g1u1 with the routing weight on GEMM1's result."""
    fmoe_g1u1(*args, **options, weight_on="gemm1")


def fmoe_g1u1_a16(out, input, gate, down, sorted_token_ids, sorted_weights, sorted_expert_ids,
                  num_valid_ids, topk, fc1_scale, fc2_scale, fc1_smooth_scale, fc2_smooth_scale,
                  activation=ActivationType.Silu):  # fmt: skip
    """out += the layer of 16-bit rows that are smoothed and quantised here."""
    order = (sorted_token_ids, sorted_weights, sorted_expert_ids, num_valid_ids)
    kind = kind_of(gate)
    _layer(out, input, gate, down, order, topk,
           f"x={kind}/smooth w={kind}/channel mid={kind}/smooth", activation, w1_scale=fc1_scale,
           w2_scale=fc2_scale, smooth1=fc1_smooth_scale, smooth2=fc2_smooth_scale)  # fmt: skip


fmoe_int8_g1u0_a16 = fmoe_g1u1_a16


def fmoe_fp8_blockscale_g1u1(out, input, gate, down, sorted_token_ids, sorted_weights,
                             sorted_expert_ids, num_valid_ids, topk, input_scale, fc1_scale,
                             fc2_scale, kernelName="", fc_scale_blkn=128, fc_scale_blkk=128,
                             fc2_smooth_scale=None, activation=ActivationType.Silu,
                             block_size_M=32):  # fmt: skip
    """out += the block-scaled layer of fp8 rows; input_scale [H/128, M] is transposed."""
    if (fc_scale_blkn, fc_scale_blkk) != (128, 128) or fc2_smooth_scale is not None:
        raise UnsupportedError("fmoe_fp8_blockscale_g1u1 takes blocks of 128 x 128, not smoothed")
    order = (sorted_token_ids, sorted_weights, sorted_expert_ids, num_valid_ids)
    words = words_of(gate, QuantType.per_1x128, activation, False, down.shape[2])
    scale = input_scale.reshape(-1, input.shape[0]).t().contiguous()
    _layer(out, input, gate, down, order, topk, words, activation, block_m=block_size_M,
           x_scale=scale, w1_scale=fc1_scale, w2_scale=fc2_scale)  # fmt: skip


# --- one stage at a time ---


def _gemm(a, w, order, topk, rows, quant_type, a_scale, w_scale, block_m, bias=None, weights=None):
    """(flat ids, experts, positions, f32 [rows, N]): a[flat // topk] @ w[expert].T."""
    sorted_ids, expert_ids, num_valid = order
    live, flat, experts = unsort(sorted_ids, expert_ids, num_valid, block_m, *rows)
    device = a.device
    by = torch.argsort(experts, stable=True)
    words = words_of(w, QuantType(quant_type), ActivationType.Silu, False, 128)
    codes = a_scale is not None
    kind = tensors.torch_dtype_name(a.dtype)
    if words is None:
        words = f"x={kind} in={kind} w={tensors.torch_dtype_name(w.dtype)}"
    else:
        words = " ".join(p for p in words.split() if not p.startswith("mid") and p != "joint")
        words += "" if codes else f" in={kind}"
        words = words if "x=" in words else f"x={kind} {words}"
    # One row a block: the order holds experts without padding.
    count = torch.tensor([flat.numel()], dtype=torch.int32, device=device)
    result = grouped_gemm(a, w, words, flat[by].int(), experts[by].int(), count, topk, block_m=1,
                          a_scale=a_scale, b_scale=w_scale)  # fmt: skip
    if weights is not None:
        wide = torch.zeros(result.shape[0], 1, device=device)
        wide[flat, 0] = weights.reshape(-1)[live].float()
        result = result * wide
    if bias is not None:
        owner = torch.zeros(result.shape[0], dtype=torch.long, device=device)
        owner[flat] = experts
        result = result + bias[owner].float()
    return flat, result


def _activate(h, activation, inter):
    act = ActivationType(activation)
    if act == ActivationType.Situv2:
        raise UnsupportedError("Situv2 in a single stage")
    f = torch.nn.functional
    gate, up = (h, None) if h.shape[1] == inter else h.chunk(2, -1)
    if act == ActivationType.Swiglu:
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0) + 1
        gate *= torch.sigmoid(1.702 * gate)
    else:
        gate = {ActivationType.Silu: f.silu, ActivationType.Gelu: f.gelu,
                ActivationType.No: lambda v: v}[act](gate)  # fmt: skip
    return gate if up is None else gate * up


def ck_moe_stage1(hidden_states, w1, w2, sorted_token_ids, sorted_expert_ids, num_valid_ids, out, topk,
                  kernelName=None, w1_scale=None, a1_scale=None, block_m=32, sorted_weights=None,
                  quant_type=QuantType.No, activation=ActivationType.Silu, splitk=1,
                  use_non_temporal_load=False, dst_type=None, is_shuffled=True,
                  bias=None):  # fmt: skip
    """out [M, k, I] = activation of hidden_states @ w1[expert].T; sorted_weights multiply before it.

    hidden_states are 16-bit, or quantised with a1_scale.
    """
    tokens = hidden_states.shape[0]
    order = (sorted_token_ids, sorted_expert_ids, num_valid_ids)
    flat, h = _gemm(hidden_states, w1, order, topk, (tokens, topk), quant_type, a1_scale, w1_scale,
                    block_m, bias, sorted_weights)  # fmt: skip
    target = out.view(tokens * topk, -1)
    target[flat] = _activate(h[flat], activation, target.shape[1]).to(out.dtype)
    return out


def ck_moe_stage2(inter_states, w1, w2, sorted_token_ids, sorted_expert_ids, num_valid_ids, out, topk,
                  kernelName=None, w2_scale=None, a2_scale=None, block_m=32, sorted_weights=None,
                  quant_type=QuantType.No, activation=ActivationType.Silu, splitk=1,
                  use_non_temporal_load=False, dst_type=None, is_shuffled=True,
                  bias=None):  # fmt: skip
    """out [M, H] += the weighted rows of inter_states [M, k, I] @ w2[expert].T, summed in slot order."""
    tokens = out.shape[0]
    live, flat, _ = unsort(sorted_token_ids, sorted_expert_ids, num_valid_ids, block_m, tokens, topk)
    a = inter_states.reshape(tokens * topk, -1)
    order = (sorted_token_ids, sorted_expert_ids, num_valid_ids)
    _, z = _gemm(a, w2, order, 1, (tokens, topk), quant_type, a2_scale, w2_scale, block_m, bias)
    rows = torch.zeros_like(z)
    scale = 1.0 if sorted_weights is None else sorted_weights.reshape(-1)[live].float()[:, None]
    rows[flat] = z[flat] * scale
    out += rows.view(tokens, topk, -1).sum(1).to(out.dtype)
    return out


def moe_stage1_g1u1(input, w1, w2, sorted_token_ids, sorted_expert_ids, num_valid_ids, out, inter_dim,
                    kernelName="", block_m=32, ksplit=0, activation=ActivationType.Silu,
                    quant_type=QuantType.No, a1_scale=None, w1_scale=None,
                    sorted_weights=None):  # fmt: skip
    """ck_moe_stage1 under the name of its assembly kernel; k comes from out [M, k, I]."""
    return ck_moe_stage1(input, w1, w2, sorted_token_ids, sorted_expert_ids, num_valid_ids, out,
                         out.shape[1], kernelName, w1_scale, a1_scale, block_m, sorted_weights,
                         quant_type, activation)  # fmt: skip


def _tile_type(x_scale, w):
    return QuantType.No if w.dtype in (torch.float16, torch.bfloat16) else (
        QuantType.per_1x32 if kind_of(w) == "e4m3" and x_scale is None else QuantType.per_Token)  # fmt: skip


def moe_cktile2stages_gemm1(XQ, WQ, Y, sorted_ids, sorted_expert_ids, max_token_ids, topk,
                            n_padded_zeros=0, k_padded_zeros=0, topk_weight=None, x_scale=None,
                            w_scale=None, exp_bias=None, activation=0, block_m=32, split_k=1,
                            kernel_name=""):  # fmt: skip
    """ck_moe_stage1 with biases; the padded sizes are hints, since padding holds zeros."""
    return ck_moe_stage1(XQ, WQ, None, sorted_ids, sorted_expert_ids, max_token_ids, Y, topk, None,
                         w_scale, x_scale, block_m, topk_weight, _tile_type(x_scale, WQ), activation,
                         bias=exp_bias)  # fmt: skip


def moe_cktile2stages_gemm2(XQ, WQ, Y, sorted_ids, sorted_expert_ids, max_token_ids, topk,
                            n_padded_zeros=0, k_padded_zeros=0, topk_weight=None, x_scale=None,
                            w_scale=None, exp_bias=None, activation=0, block_m=32, split_k=1,
                            kernel_name=""):  # fmt: skip
    """ck_moe_stage2 with biases."""
    return ck_moe_stage2(XQ, None, WQ, sorted_ids, sorted_expert_ids, max_token_ids, Y, topk, None,
                         w_scale, x_scale, block_m, topk_weight, _tile_type(x_scale, WQ), activation,
                         bias=exp_bias)  # fmt: skip


def exports():
    """What aiter.ops.moe_op has of these."""
    made = {f.__name__: f for f in (
        fmoe, fmoe_g1u1, fmoe_int8_g1u0, fmoe_g1u1_tkw1, fmoe_g1u1_a16, fmoe_fp8_blockscale_g1u1,
        ck_moe_stage1, ck_moe_stage2, moe_stage1_g1u1, moe_cktile2stages_gemm1,
        moe_cktile2stages_gemm2)}  # fmt: skip
    return {**made, "fmoe_int8_g1u0_a16": fmoe_g1u1_a16, "ck_moe_stage1_fwd": ck_moe_stage1,
            "ck_moe_stage2_fwd": ck_moe_stage2}  # fmt: skip
