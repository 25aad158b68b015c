# SPDX-License-Identifier: MIT
"""AITER's family C routing: gather and scatter indices over expert-sorted rows.

Of equal keys the highest expert wins. A token's choices are ordered by expert, then all are sorted by
expert, stably. Indices are int32 (AITER: uint16 where they fit), gates have the logits' type.
Source: aiter/ops/triton/moe/moe_routing/routing.py.
"""

from collections import namedtuple

import torch

from ...errors import UnsupportedError
from ...functions import route

ExptData = namedtuple("ExptData", "hist token_offs_raw token_offs_pad block_pid_map")
ExptData.__doc__ = """int32: rows of each expert; their offsets [E + 1], tight and in blocks; and for
every block of rows (its number in the expert << 16) | expert, -1 where unused."""


class RoutingData:
    """block_m, gate_scal by sorted row, expt_hist [E], n_expts_tot, n_expts_act, expt_data."""

    def __init__(self, block_m, gate_scal, expt_hist, n_expts_tot, n_expts_act, expt_data=None):
        self.block_m, self.gate_scal, self.expt_hist = block_m, gate_scal, expt_hist
        self.n_expts_tot, self.n_expts_act, self.expt_data = n_expts_tot, n_expts_act, expt_data

    def n_blocks(self, n_rows, block_m):
        """Blocks of rows in the worst case."""
        return _max_blocks(n_rows, self.n_expts_tot, block_m)


def _max_blocks(gates, experts, block_m):
    if gates <= experts:
        return gates
    return experts - 1 - ((experts - gates - 1) // block_m)


def compute_expt_data_torch(hist, n_expts_tot, n_gates, block_m):
    """ExptData of a histogram."""
    hist = hist.int()
    blocks = (hist + block_m - 1) // block_m
    zero = torch.zeros(1, dtype=torch.int32, device=hist.device)
    raw = torch.cat((zero, hist.cumsum(0).int()))
    pad = torch.cat((zero, blocks.cumsum(0).int()))
    table = torch.full((_max_blocks(n_gates, n_expts_tot, block_m),), -1, dtype=torch.int32,
                       device=hist.device)  # fmt: skip
    experts = torch.repeat_interleave(torch.arange(n_expts_tot, device=hist.device), blocks.long())
    within = torch.arange(experts.numel(), device=hist.device) - pad.long()[experts]
    table[: experts.numel()] = ((within << 16) | experts).int()
    return ExptData(hist, raw, pad, table)


def _words(score_mode, sm_first, bias, renorm, factor, grouped, num_expert_group, topk_group):
    if score_mode is None:
        return f"softmax tiehigh {'' if sm_first else 'topkfirst'}"
    known = ("sigmoid", "sqrtsoftplus", "softmax")
    if score_mode not in known:
        raise UnsupportedError(f"score_mode {score_mode!r} is none of {known}")
    # Without groups AITER takes "softmax" for the logits themselves.
    score = "raw" if score_mode == "softmax" and not grouped else score_mode
    words = f"{score} tiehigh scale={factor}"
    if renorm:
        words += " renorm eps=1e-20" if grouped else " renorm"
    if bias is not None:
        words += " rbias"
    if grouped:
        words += f" groups={num_expert_group}/{topk_group} {'gsum2' if bias is not None else ''}"
    return words


def routing(logits, n_expts_act, *, score_mode=None, sm_first=False, bias=None, renorm=True,
            routed_scaling_factor=1.0, use_grouped_topk=False, num_expert_group=None,
            topk_group=None, expert_group=None):  # fmt: skip
    """(RoutingData, gather_indx, scatter_indx) for logits [M, E].

    score_mode None: the k best logits, then their softmax (sm_first: the other way round, not
    renormalised). sigmoid, sqrtsoftplus: selected with the bias, weighted without it.
    gather_indx[row] is token*k + slot, scatter_indx its inverse.
    """
    if expert_group is not None:
        raise UnsupportedError("routing: expert_group, an arbitrary map of experts to groups")
    grouped = use_grouped_topk and (num_expert_group or 1) != 1
    words = _words(score_mode, sm_first, bias, renorm, routed_scaling_factor, grouped,
                   num_expert_group, topk_group)  # fmt: skip
    weights, ids = route(logits, n_expts_act, words, bias=bias)
    return _sorted(weights.to(logits.dtype), ids, logits.shape[1])


def _sorted(weights, ids, experts, block_m=None):
    tokens, k = ids.shape
    ids, order = ids.long().sort(dim=1, stable=True)
    gates = weights.gather(1, order).reshape(-1)
    flat = ids.reshape(-1)
    gather = torch.argsort(flat, stable=True)
    scatter = torch.argsort(gather)
    hist = torch.bincount(flat, minlength=experts)[:experts].int()
    if block_m is None:
        want = max(1, tokens * k // experts)
        block_m = min(128, max(16, 1 << (want - 1).bit_length()))
    data = compute_expt_data_torch(hist, experts, tokens * k, block_m)
    made = RoutingData(block_m, gates[gather], hist, experts, k, data)
    return made, gather.int(), scatter.int()


def routing_from_hash(router_logits, tid2eid, input_ids, n_expts_act, block_m=None, *,
                      score_mode="sqrtsoftplus", renorm=True,
                      routed_scaling_factor=1.0):  # fmt: skip
    """routing() with experts tid2eid[input_ids] and the scores of their logits as weights."""
    words = f"{score_mode} hash scale={routed_scaling_factor} {'renorm' if renorm else ''}"
    weights, ids = route(router_logits, n_expts_act, words, token_ids=input_ids, hash_table=tid2eid)
    return _sorted(weights.to(router_logits.dtype), ids, router_logits.shape[1], block_m)


def routing_torch(logits, n_expts_act, sm_first=False):
    """routing() in torch alone."""
    scores = logits.float().softmax(-1) if sm_first else logits.float()
    ids = torch.argsort(scores, dim=1, stable=True).flip(1)[:, :n_expts_act]
    weights = scores.gather(1, ids)
    weights = weights if sm_first else weights.softmax(-1)
    return _sorted(weights.to(logits.dtype), ids, logits.shape[1])


def exports():
    """aiter.ops.triton.moe.moe_routing.routing."""
    return {f.__name__: f for f in (ExptData, RoutingData, compute_expt_data_torch, routing,
                                    routing_from_hash, routing_torch)}  # fmt: skip
