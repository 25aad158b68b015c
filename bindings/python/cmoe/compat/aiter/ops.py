# SPDX-License-Identifier: MIT
"""AITER's routing and sorting operators: they write into their callers' tensors.

Source: aiter/ops/moe_op.py, topk.py, moe_sorting.py; ties go to the lowest id.
"""

import torch

from ...errors import UnsupportedError
from ...functions import route, sort
from ..vllm import moe_sum  # noqa: F401


def _store(result, weights, ids):
    """Copy (weights, ids) into the first k columns of tensors that may be wider or strided."""
    w, i = result
    weights[:, : w.shape[1]] = w.to(weights.dtype)
    ids[:, : i.shape[1]] = i.to(ids.dtype)


def topk_softmax(topk_weights, topk_indices=None, token_expert_indices=None, gating_output=None,
                 need_renorm=False, num_shared_experts=0, shared_expert_scoring_func="", *,
                 topk=None, renormalize=False):  # fmt: skip
    """In place: softmax over the routed logits, then top-k into [:, :k]; k = topk_indices' columns.

    token_expert_indices[row, j] = j*rows + row. With shared experts the gating rows end in their
    logits, whose sigmoids are written behind the k weights.
    The guide's form ``topk_softmax(gating_output, topk=2, renormalize=True)`` returns
    (topk_weights, topk_ids) instead.
    """
    if topk is not None:
        return route(topk_weights, topk, f"softmax {'renorm' if renormalize else ''}")
    shared = num_shared_experts
    if shared and shared_expert_scoring_func != "sigmoid":
        raise UnsupportedError(f"shared experts scored by {shared_expert_scoring_func!r}")
    experts = gating_output.shape[1] - shared
    k = topk_indices.shape[1]
    result = route(gating_output[:, :experts], k, f"softmax {'renorm' if need_renorm else ''}")
    _store(result, topk_weights, topk_indices)
    if shared:
        topk_weights[:, k : k + shared] = gating_output[:, experts:].float().sigmoid()
    if token_expert_indices is not None:
        rows = gating_output.shape[0]
        source = torch.arange(rows * k, dtype=torch.int32).view(k, rows).t()
        token_expert_indices[:, :k] = source.to(token_expert_indices.device)
    return None


def topk_softmax_asm(topk_weights, topk_indices, token_expert_indices, gating_output, need_renorm):
    """topk_softmax under the name of its assembly kernel; every (E, k) is served."""
    topk_softmax(topk_weights, topk_indices, token_expert_indices, gating_output, need_renorm)


def topk_sigmoid(topk_weights, topk_indices=None, gating_output=None, *, topk=None):
    """In place: sigmoid, top-k, no renormalisation. ``topk_sigmoid(gating_output, topk=1)`` returns."""
    if topk is not None:
        return route(topk_weights, topk, "sigmoid")
    _store(route(gating_output, topk_indices.shape[1], "sigmoid"), topk_weights, topk_indices)
    return None


def topk_gating(topk_weights, topk_indices, gating_output, correction_bias=None, need_renorm=True,
                routed_scaling_factor=1.0, score_func="sqrtsoftplus"):  # fmt: skip
    """In place: selection by score + bias, weights by the score; / max(sum, 1e-20), x factor."""
    words = f"{score_func} scale={routed_scaling_factor}"
    words += " renorm eps=1e-20" if need_renorm else ""
    words += " rbias" if correction_bias is not None else ""
    result = route(gating_output, topk_indices.shape[1], words, bias=correction_bias)
    _store(result, topk_weights, topk_indices)


topk_softplus = topk_gating


def biased_grouped_topk(gating_output, correction_bias, topk_weights, topk_ids, num_expert_group,
                        topk_group, need_renorm, routed_scaling_factor=1.0):  # fmt: skip
    """In place: DeepSeek-V3's router; groups by the sum of their two best biased scores."""
    words = f"sigmoid rbias scale={routed_scaling_factor}"
    words += " renorm" if need_renorm else ""
    if num_expert_group > 1:
        words += f" groups={num_expert_group}/{topk_group} gsum2"
    result = route(gating_output, topk_ids.shape[1], words, bias=correction_bias)
    _store(result, topk_weights, topk_ids)


biased_grouped_topk_hip = biased_grouped_topk


def grouped_topk(gating_output, topk_weights, topk_ids, num_expert_group, topk_group, need_renorm,
                 is_softmax=True, routed_scaling_factor=1.0):  # fmt: skip
    """In place: groups by their best score."""
    words = f"{'softmax' if is_softmax else 'sigmoid'} scale={routed_scaling_factor}"
    words += " renorm" if need_renorm else ""
    if num_expert_group > 1:
        words += f" groups={num_expert_group}/{topk_group}"
    _store(route(gating_output, topk_ids.shape[1], words), topk_weights, topk_ids)


def moe_fused_gate(input, bias, topk_weights, topk_ids, num_expert_group, topk_group, topk,
                   n_share_experts_fusion, routed_scaling_factor=1.0):  # fmt: skip
    """In place and returned: routed weights are scores / sum; shared slots get 1 / factor."""
    routed = topk - n_share_experts_fusion
    words = f"sigmoid rbias renorm groups={num_expert_group}/{topk_group} gsum2"
    _store(route(input, routed, words, bias=bias), topk_weights, topk_ids)
    for s in range(n_share_experts_fusion):
        topk_ids[:, routed + s] = input.shape[1] + s
        topk_weights[:, routed + s] = 1 / routed_scaling_factor
    return topk_weights, topk_ids


def expert_map(expert_mask):
    """int32 [experts]: local index (exclusive prefix sum of the mask) or -1. Any mask type."""
    if expert_mask is None:
        return None
    on = expert_mask.reshape(-1) != 0
    return torch.where(on, on.long().cumsum(0) - 1, -1).int()


def moe_sorting(topk_ids, topk_weights, num_experts, model_dim, moebuf_dtype, block_size=32,
                expert_mask=None, num_local_tokens=None, dispatch_policy=0,
                return_local_topk_ids=False, accumulate=True, flat=False,
                output_aux=False):  # fmt: skip
    """(sorted_ids, sorted_weights, sorted_expert_ids, num_valid_ids, moe_buf[, local_topk_ids]).

    sorted_ids = (slot << 24) | token by expert, ascending token, padded to block_size with
    (k << 24) | tokens and weight 0; sorted_expert_ids counts local experts; num_valid_ids = [padded
    rows, tokens]; moe_buf [M, model_dim] is zero. Entries past num_valid_ids[0] are padding too.
    """
    if flat or output_aux:
        raise UnsupportedError("moe_sorting: flat and output_aux are not supported")
    tokens, k = topk_ids.shape
    live = tokens if num_local_tokens is None else min(tokens, int(num_local_tokens.reshape(-1)[0]))
    mapping = expert_map(expert_mask)
    s = sort(topk_ids[:live], num_experts, "packed", block_m=block_size,
             topk_weights=topk_weights[:live], expert_map=mapping)  # fmt: skip
    size = tokens * k + num_experts * block_size - k
    device = topk_ids.device
    ids = torch.full((size,), (k << 24) | live, dtype=torch.int32, device=device)
    weights = torch.zeros(size, dtype=torch.float32, device=device)
    experts = torch.full((-(-size // block_size),), -1, dtype=torch.int32, device=device)
    used = int(s.num_valid[0])
    ids[:used], weights[:used] = s.ids[:used], s.weights[:used]
    experts[: used // block_size] = s.experts[: used // block_size]
    valid = torch.tensor([used, live], dtype=torch.int32, device=device)
    buffer = torch.zeros((tokens, model_dim) if accumulate else (0, 0), dtype=moebuf_dtype,
                         device=device)  # fmt: skip
    result = (ids, weights, experts, valid, buffer)
    if not return_local_topk_ids:
        return result
    known = (topk_ids >= 0) & (topk_ids < num_experts)
    local = topk_ids if mapping is None else mapping[topk_ids.clamp(0, num_experts - 1).long()]
    return (*result, torch.where(known, local, -1).int())


def moe_sorting_fwd(topk_ids, topk_weights, sorted_token_ids, sorted_weights, sorted_expert_ids,
                    num_valid_ids, moe_buf, num_experts, unit_size, local_expert_mask=None,
                    num_local_tokens=None, dispatch_policy=0):  # fmt: skip
    """moe_sorting into the caller's tensors."""
    made = moe_sorting(topk_ids, topk_weights, num_experts, 0, torch.float32, unit_size,
                       local_expert_mask, num_local_tokens)  # fmt: skip
    targets = (sorted_token_ids, sorted_weights, sorted_expert_ids, num_valid_ids)
    for target, value in zip(targets, made):
        n = min(target.numel(), value.numel())
        target.reshape(-1)[:n] = value[:n]
    moe_buf.zero_()


def moe_align_block_size(topk_ids, num_experts, block_size, sorted_token_ids, experts_ids,
                         token_nums, num_tokens_post_pad):  # fmt: skip
    """In place, vLLM's format: flat ids; padding is written as topk_ids.numel()."""
    from .. import vllm

    ids, experts, total = vllm.moe_align_block_size(topk_ids, block_size, num_experts)
    n = min(sorted_token_ids.numel(), ids.numel())
    sorted_token_ids[:n] = ids[:n]
    n = min(experts_ids.numel(), experts.numel())
    experts_ids[:n] = experts[:n]
    num_tokens_post_pad[:] = total
    if token_nums is not None:
        real = (ids[: int(total)] < topk_ids.numel()).view(-1, block_size).sum(1)
        token_nums[: real.numel()] = real.int()


def moe_align_block_size_triton(topk_ids, num_experts, block_size, sorted_token_ids, expert_ids,
                                num_tokens_post_pad):  # fmt: skip
    """The same without counts."""
    moe_align_block_size(topk_ids, num_experts, block_size, sorted_token_ids, expert_ids, None,
                         num_tokens_post_pad)  # fmt: skip


def exports(names):
    """Functions of this module by name."""
    return {name: globals()[name] for name in names.split()}
