# SPDX-License-Identifier: MIT
"""SGLang's fused-MoE functions by name over cmoe.

Source: sglang/srt/layers/moe/fused_moe_triton and topk.py. As cmoe.compat.vllm, plus ``no_combine``
(the k results are kept apart), ``routed_scaling_factor`` on the sum, and fused shared experts.
"""

import torch

from ..errors import UnsupportedError
from . import vllm as _vllm
from .vllm import grouped_topk, invoke_fused_moe_kernel, moe_sum  # noqa: F401


def fused_topk(hidden_states, gating_output, topk, renormalize, **_):
    """(topk_weights f32 [M, k], topk_ids int32 [M, k]); SGLang's has no third result."""
    return _vllm.fused_topk(hidden_states, gating_output, topk, renormalize)[:2]


def fused_experts(hidden_states, w1, w2, topk_output, inplace=False, activation="silu",
                  apply_router_weight_on_input=False, no_combine=False, routed_scaling_factor=None,
                  **options):  # fmt: skip
    """topk_output: (topk_weights, topk_ids[, router_logits]). no_combine: [M, k, H]."""
    weights, ids = topk_output[:2]
    call = dict(activation=activation, apply_router_weight_on_input=apply_router_weight_on_input,
                **options)  # fmt: skip
    if no_combine:
        if inplace:
            raise UnsupportedError("no_combine cannot be inplace")
        slots = [(weights[:, s : s + 1], ids[:, s : s + 1]) for s in range(ids.shape[1])]
        return torch.stack([_vllm.fused_experts(hidden_states, w1, w2, *s, **call) for s in slots], 1)
    if routed_scaling_factor not in (None, 1.0):
        weights = weights * routed_scaling_factor
    return _vllm.fused_experts(hidden_states, w1, w2, weights, ids, inplace=inplace, **call)


def fused_moe(hidden_states, w1, w2, topk_output, **options):
    """The same function under SGLang's other name."""
    return fused_experts(hidden_states, w1, w2, topk_output, **options)


def moe_align_block_size(topk_ids, block_size, num_experts):
    """(sorted_ids, expert_ids, num_tokens_post_pad)."""
    return _vllm.moe_align_block_size(topk_ids, block_size, num_experts)
