# SPDX-License-Identifier: MIT
"""vLLM's fused-MoE functions by name, with its signatures and conventions, over cmoe.

Source: vllm/model_executor/layers/fused_moe (fused_moe.py, router/, moe_align_block_size.py) and
_custom_ops.moe_sum. Differences that users see: sums over k are fp32; sorting is stable; ids outside
the experts, -1 among them, contribute exactly zero.
"""

import torch

from ..errors import UnsupportedError
from ..functions import route, sort
from .common import (
    activation as _activation,
    grouped_gemm,
    run_experts,
    store_rows,
    unpack_zeros,
    weight_words,
)

_SCORES = {"softmax": "softmax", "sigmoid": "sigmoid", "sqrtsoftplus": "sqrtsoftplus"}


def _score(name):
    if name not in _SCORES:
        raise UnsupportedError(f"scoring_func {name!r} is none of {sorted(_SCORES)}")
    return _SCORES[name]


def fused_topk(hidden_states, gating_output, topk, renormalize, indices_type=None,
               scoring_func="softmax"):  # fmt: skip
    """(topk_weights f32 [M, k], topk_ids int32 [M, k], token_expert_indices int32 [M, k])."""
    words = f"{_score(scoring_func)} {'renorm' if renormalize else ''}"
    weights, ids = route(gating_output, topk, words)
    rows, k = ids.shape
    source = torch.arange(rows * k, dtype=torch.int32, device=ids.device).view(k, rows).t()
    return weights, ids.to(indices_type or torch.int32), source.contiguous()


def fused_topk_bias(hidden_states, gating_output, scoring_func, e_score_correction_bias, topk,
                    renormalize, indices_type=None, input_tokens=None, hash_indices_table=None,
                    routed_scaling_factor=1.0):  # fmt: skip
    """(weights, ids): the bias counts for the selection only; renormalised by max(sum, 1e-20)."""
    words = f"{_score(scoring_func)} scale={routed_scaling_factor}"
    if renormalize:
        words += " renorm eps=1e-20"
    if hash_indices_table is not None:
        weights, ids = route(gating_output, topk, words + " hash", token_ids=input_tokens,
                             hash_table=hash_indices_table)  # fmt: skip
    elif e_score_correction_bias is None:
        weights, ids = route(gating_output, topk, words)
    else:
        weights, ids = route(gating_output, topk, words + " rbias", bias=e_score_correction_bias)
    return weights, ids.to(indices_type or torch.int32)


def grouped_topk(hidden_states, gating_output, topk, renormalize, num_expert_group=0, topk_group=0,
                 scoring_func="softmax", routed_scaling_factor=1.0,
                 e_score_correction_bias=None):  # fmt: skip
    """(weights f32 [M, k], ids int32 [M, k]), best first.

    With a bias a group's score is the sum of its two best biased scores, without one the best score;
    experts of other groups cannot be chosen. Renormalised first, then scaled.
    """
    experts = gating_output.shape[1]
    words = f"{_score(scoring_func)} scale={routed_scaling_factor}"
    if renormalize:
        words += " renorm eps=1e-20"
    groups = num_expert_group or 0
    if groups > 1 and experts > groups and experts % groups == 0:
        words += f" groups={groups}/{topk_group}"
        if e_score_correction_bias is not None:
            words += " gsum2"
    if e_score_correction_bias is not None:
        words += " rbias"
    return route(gating_output, topk, words, bias=e_score_correction_bias)


_FLAGS = ("use_fp8_w8a8", "use_int8_w8a8", "use_int8_w8a16", "use_int4_w4a16", "ocp_mx_scheme",
          "per_channel_quant", "w1_scale", "w2_scale", "w1_zp", "w2_zp", "a1_scale", "a2_scale",
          "block_shape", "w1_bias", "w2_bias")  # fmt: skip


def settings(quant_config, given):
    """The spelled-out arguments, from vLLM's config object where one is given."""
    unknown = set(given) - set(_FLAGS) - {"allow_deep_gemm", "allow_cutlass_block_scaled_grouped_gemm"}
    if unknown:
        raise TypeError(f"fused_experts() got an unexpected argument {sorted(unknown)[0]!r}")
    found = {name: getattr(quant_config, name, None) for name in _FLAGS}
    if quant_config is not None:
        found["per_channel_quant"] = getattr(quant_config, "per_act_token_quant", False)
    found.update({k: v for k, v in given.items() if k in _FLAGS and v is not None})
    return found


def fused_experts(hidden_states, w1, w2, topk_weights, topk_ids, inplace=False, activation="silu",
                  apply_router_weight_on_input=False, global_num_experts=-1, expert_map=None,
                  quant_config=None, **quant):  # fmt: skip
    """[M, H]: routed experts. ``quant`` are the flags and scales of fused_experts_impl.

    hidden_states [M, H], w1 [E, 2I, H] (or packed), w2 [E, H, I]; expert_map int32 [global experts],
    local index or -1. apply_router_weight_on_input multiplies GEMM1's result, as vLLM's kernel does.
    """
    q = settings(quant_config, quant)
    act, gate = _activation(activation)
    words = weight_words(
        w1, q["w1_scale"], fp8=q["use_fp8_w8a8"], int8=q["use_int8_w8a8"],
        int8_w8a16=q["use_int8_w8a16"], int4_w4a16=q["use_int4_w4a16"], mx=q["ocp_mx_scheme"],
        per_channel=q["per_channel_quant"], block_shape=q["block_shape"],
        zeros=q["w1_zp"] is not None, static=q["a1_scale"] is not None,
    )  # fmt: skip
    if apply_router_weight_on_input and q["w1_bias"] is not None:
        raise UnsupportedError("a bias of GEMM1 together with router weights on its result")
    zeros = [q["w1_zp"], q["w2_zp"]]
    if q["use_int4_w4a16"]:
        zeros = [z if z is None else unpack_zeros(z) for z in zeros]
    experts = None if global_num_experts in (-1, None) else global_num_experts
    if expert_map is None and experts is not None and experts != w1.shape[0]:
        experts = None  # ids are local already
    return run_experts(
        hidden_states, w1, w2, topk_weights, topk_ids, words, act=act, gate=gate,
        weight_on="gemm1" if apply_router_weight_on_input else "out",
        out=hidden_states if inplace else None, x_scale=q["a1_scale"], mid_scale=q["a2_scale"],
        w1_scale=q["w1_scale"], w2_scale=q["w2_scale"], w1_zero=zeros[0], w2_zero=zeros[1],
        b1=q["w1_bias"], b2=q["w2_bias"], expert_map=expert_map, experts=experts,
    )  # fmt: skip


def fused_moe(hidden_states, w1, w2, gating_output, topk, renormalize, inplace=False,
              activation="silu", use_grouped_topk=False, num_expert_group=None, topk_group=None,
              custom_routing_function=None, **options):  # fmt: skip
    """Routing by fused_topk, grouped_topk or a custom function, then fused_experts."""
    if use_grouped_topk:
        weights, ids = grouped_topk(hidden_states, gating_output, topk, renormalize,
                                    num_expert_group, topk_group)  # fmt: skip
    elif custom_routing_function is not None:
        weights, ids = custom_routing_function(hidden_states, gating_output, topk, renormalize)
    else:
        weights, ids, _ = fused_topk(hidden_states, gating_output, topk, renormalize)
    return fused_experts(hidden_states, w1, w2, weights, ids, inplace=inplace,
                         activation=activation, **options)  # fmt: skip


def moe_align_block_size(topk_ids, block_size, num_experts, expert_map=None, pad_sorted_ids=False,
                         ignore_invalid_experts=False):  # fmt: skip
    """(sorted_ids int32, expert_ids int32 by block, num_tokens_post_pad int32 [1]).

    Flat ids m*k+s by expert, each expert padded to block_size with M*k. With expert_map, blocks of
    experts that are elsewhere have expert id -1, or are left out with ignore_invalid_experts.
    """
    count = topk_ids.numel()
    if ignore_invalid_experts and expert_map is not None:
        safe = topk_ids.long().clamp(0, num_experts - 1)
        known = (topk_ids >= 0) & (topk_ids < num_experts) & (expert_map[safe] >= 0)
        topk_ids = torch.where(known, topk_ids, -1)
    s = sort(topk_ids, num_experts, "flat", block_m=block_size)
    used = int(s.num_valid[0]) if count else 0
    size = count + num_experts * (block_size - 1)
    if pad_sorted_ids:
        size = -(-size // block_size) * block_size
    if count < num_experts:
        size = min(count * block_size, size)
    ids = torch.full((size,), count, dtype=torch.int32, device=topk_ids.device)
    ids[:used] = s.ids[:used]
    blocks = -(-size // block_size)
    experts = torch.full((blocks,), -1, dtype=torch.int32, device=topk_ids.device)
    experts[: used // block_size] = s.experts[: used // block_size]
    if expert_map is not None:
        mapped = expert_map[experts.clamp(min=0).long()].int()
        experts = torch.where(experts >= 0, mapped, experts)
    return ids, experts, torch.tensor([used], dtype=torch.int32, device=topk_ids.device)


def moe_sum(input, output):
    """output [M, H] = input [M, k, H] summed over k in fp32."""
    output.copy_(input.float().sum(1))


def invoke_fused_moe_kernel(A, B, C, A_scale, B_scale, B_zp, topk_weights, sorted_token_ids,
                            expert_ids, num_tokens_post_padded, mul_routed_weight, top_k, config,
                            compute_type=None, use_fp8_w8a8=False, use_int8_w8a8=False,
                            use_int8_w8a16=False, use_int4_w4a16=False, per_channel_quant=False,
                            block_shape=None, B_bias=None):  # fmt: skip
    """One grouped GEMM: C[s] = A[s // top_k] @ B[expert of s's block].T for the sorted flat ids s.

    A [M, K] (quantised, with A_scale, for w8a8), B [E, N, K], C [M, top_k, N] is written in place.
    config needs BLOCK_SIZE_M. Router weights multiply after scales and bias.
    """
    words = weight_words(B, B_scale, fp8=use_fp8_w8a8, int8=use_int8_w8a8,
                         int8_w8a16=use_int8_w8a16, int4_w4a16=use_int4_w4a16,
                         per_channel=per_channel_quant, block_shape=block_shape,
                         zeros=B_zp is not None,
                         static=A_scale is not None and A_scale.numel() == 1)  # fmt: skip
    words = _gemm_words(A, B, words, A_scale)
    zeros = unpack_zeros(B_zp) if use_int4_w4a16 and B_zp is not None else B_zp
    block_m = config["BLOCK_SIZE_M"]
    result = grouped_gemm(A, B, words, sorted_token_ids, expert_ids, num_tokens_post_padded, top_k,
                          block_m=block_m, b_scale=B_scale, b_zero=zeros, bias=B_bias,
                          a_scale=A_scale)  # fmt: skip
    if mul_routed_weight:
        result *= topk_weights.reshape(-1, 1).float()
    store_rows(C.view(-1, C.shape[-1]), result, sorted_token_ids, expert_ids,
               num_tokens_post_padded, block_m)  # fmt: skip


def _gemm_words(a, b, words, a_scale):
    """Words for one GEMM: x's type from A unless it is quantised."""
    from ..tensors import torch_dtype_name

    kind = torch_dtype_name(a.dtype)
    if words is None:
        return f"x={kind} in={kind} w={torch_dtype_name(b.dtype)}"
    if "x=" not in words:
        return f"x={kind} in={kind} {words}"
    return words if a_scale is not None else f"in={kind} {words}"
