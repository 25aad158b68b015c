# SPDX-License-Identifier: MIT
"""What some routers read besides logits, checked: the library reads as much as the problem says."""

from . import tensors


def routing_extras(t, experts, topk, route_bias, token_ids, hash_table):
    """Set what some routers read besides logits; returns what must stay alive."""
    keep = []
    if route_bias is not None:
        v = tensors.cast(tensors.view(route_bias, "route_bias"), "f32")
        keep.append(tensors.expect(v, "route_bias", experts))
        t.route_bias = v.ptr
    if token_ids is not None:
        v = tensors.integers(token_ids, "token_ids", "i64")
        keep.append(tensors.expect(v, "token_ids", t.n_tokens))
        t.token_ids = v.ptr
    if hash_table is not None:
        v = tensors.integers(hash_table, "hash_table")
        keep.append(tensors.expect(v, "hash_table", None, topk))
        t.hash_table, t.vocab = v.ptr, v.shape[0]
    return keep
