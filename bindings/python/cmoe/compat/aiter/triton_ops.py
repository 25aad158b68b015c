# SPDX-License-Identifier: MIT
"""AITER's family B: one grouped GEMM per call, flat sorted ids, results per slot.

Source: aiter/ops/triton/moe/moe_op*.py. Weights [E, N, K]; gate = first half of the columns; gelu is
the tanh form; the caller aligns and sums (moe_align_block_size, moe_sum).
"""

import torch

from ...errors import UnsupportedError
from ...functions import route
from ..common import grouped_gemm, run_experts, store_rows, unpack_zeros, weight_words
from ..vllm import _gemm_words


def _block_m(sorted_ids, expert_ids, config):
    if config and "BLOCK_SIZE_M" in config:
        return config["BLOCK_SIZE_M"]
    return -(-sorted_ids.numel() // expert_ids.numel())


def _gemm(A, B, A_scale, B_scale, B_zp, topk_weights, sorted_ids, expert_ids, num_tokens, weighted,
          top_k, fp8, int8, int4, block_shape, config):  # fmt: skip
    words = weight_words(B, B_scale, fp8=fp8, int8_w8a16=int8, int4_w4a16=int4,
                         block_shape=block_shape, zeros=B_zp is not None)  # fmt: skip
    scale = A_scale if fp8 and block_shape else None  # per tensor: A is quantised in here
    zeros = unpack_zeros(B_zp) if int4 and B_zp is not None else B_zp
    result = grouped_gemm(A, B, _gemm_words(A, B, words, scale), sorted_ids, expert_ids, num_tokens,
                          top_k, block_m=_block_m(sorted_ids, expert_ids, config), b_scale=B_scale,
                          b_zero=zeros, a_scale=scale)  # fmt: skip
    return result * topk_weights.reshape(-1, 1).float() if weighted else result


def fused_moe(A, B, C, A_scale, B_scale, B_zp, topk_weights, topk_ids, sorted_token_ids, expert_ids,
              num_tokens_post_padded, mul_routed_weight, top_k, compute_type=None,
              use_fp8_w8a8=False, use_int8_w8a16=False, use_int4_w4a16=False, block_shape=None,
              config=None):  # fmt: skip
    """C[s] = A[s // top_k] @ B[expert].T (x topk_weights[s]) for the sorted flat ids s; in place."""
    result = _gemm(A, B, A_scale, B_scale, B_zp, topk_weights, sorted_token_ids, expert_ids,
                   num_tokens_post_padded, mul_routed_weight, top_k, use_fp8_w8a8, use_int8_w8a16,
                   use_int4_w4a16, block_shape, config)  # fmt: skip
    store_rows(C.view(-1, C.shape[-1]), result, sorted_token_ids, expert_ids,
               num_tokens_post_padded, _block_m(sorted_token_ids, expert_ids, config))  # fmt: skip


def fused_moe_silu(A, B, C, A_scale, B_scale, B_zp, topk_weights, topk_ids, sorted_token_ids,
                   expert_ids, num_tokens_post_padded, mul_routed_weight, top_k, compute_type=None,
                   use_fp8_w8a8=False, use_int8_w8a16=False, use_int4_w4a16=False,
                   block_shape=None, config=None):  # fmt: skip
    """fused_moe, then silu(first half) * second half into C [M*k, N/2]; weights multiply before."""
    result = _gemm(A, B, A_scale, B_scale, B_zp, topk_weights, sorted_token_ids, expert_ids,
                   num_tokens_post_padded, mul_routed_weight, top_k, use_fp8_w8a8, use_int8_w8a16,
                   use_int4_w4a16, block_shape, config)  # fmt: skip
    gate, up = result.to(C.dtype).float().chunk(2, -1)
    store_rows(C.view(-1, C.shape[-1]), torch.nn.functional.silu(gate) * up, sorted_token_ids,
               expert_ids, num_tokens_post_padded,
               _block_m(sorted_token_ids, expert_ids, config))  # fmt: skip


def fused_moe_gelu(A, B, C, A_scale, B_scale, topk_weights, topk_ids, sorted_token_ids, expert_ids,
                   num_tokens_post_padded, mul_routed_weight, top_k, compute_type=None,
                   use_fp8_w8a8=False, use_int8_w8a16=False, block_shape=None,
                   config=None):  # fmt: skip
    """One ungated projection with tanh-gelu, which AITER applies only without routed weights."""
    result = _gemm(A, B, A_scale, B_scale, None, topk_weights, sorted_token_ids, expert_ids,
                   num_tokens_post_padded, mul_routed_weight, top_k, use_fp8_w8a8, use_int8_w8a16,
                   False, block_shape, config)  # fmt: skip
    if not mul_routed_weight:
        result = torch.nn.functional.gelu(result, approximate="tanh")
    store_rows(C.view(-1, C.shape[-1]), result, sorted_token_ids, expert_ids,
               num_tokens_post_padded, _block_m(sorted_token_ids, expert_ids, config))  # fmt: skip


def e2e_moe(A, W1, W2, *rest, config=None):
    """Both GEMMs with silu between, per slot: C [M, k, K], in place and returned.

    e2e_moe(A, W1, W2, Intermediate, C, A_scale, W1_scale, W2_scale, topk_weights, sorted_token_ids,
    topk_ids, expert_ids, num_tokens_post_padded, mul_routed_weight, top_k, use_fp8_w8a8,
    use_int8_w8a16). The guide's short form e2e_moe(A, W1, W2, topk_weights, topk_ids, ...) with the
    three dots, or without, gives the summed layer [M, K].
    """
    if len(rest) in (2, 3) and rest[2:] in ((), (Ellipsis,)):
        return run_experts(A, W1, W2, rest[0], rest[1], None, act="silu", gate="split")
    if len(rest) < 14:
        raise TypeError(f"e2e_moe() takes 5 or 17 positional arguments, not {len(rest) + 3}")
    _, C, _, s1, s2, weights, _, ids, _, _, weighted, _, fp8, int8 = rest[:14]
    words = weight_words(W1, s1, fp8=fp8, int8_w8a16=int8)
    if fp8:
        raise UnsupportedError("e2e_moe with use_fp8_w8a8")
    factors = weights if weighted else torch.ones_like(weights)
    slots = range(ids.shape[1])
    for s in slots:
        C[:, s] = run_experts(A, W1, W2, factors[:, s : s + 1], ids[:, s : s + 1], words, act="silu",
                              gate="split", w1_scale=s1, w2_scale=s2).to(C.dtype)  # fmt: skip
    return C


def routing_sigmoid_top1(x, w, topk, fused_shared_experts=False, config=None):
    """(ids int32, weights f32) [M, 1]: sigmoid of the best column of x @ w; lowest id wins ties.

    fused_shared_experts adds a column with id N and weight 1.
    """
    assert topk == 1
    weights, ids = route(x.float() @ w.float(), 1, "sigmoid")
    if fused_shared_experts:
        ids = torch.cat((ids, torch.full_like(ids, w.shape[1])), 1)
        weights = torch.cat((weights, torch.ones_like(weights)), 1)
    return ids, weights


def torch_silu_and_mul_ref(input):
    """silu(first half) * second half."""
    gate, up = input.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up
