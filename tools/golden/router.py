# SPDX-License-Identifier: MIT
"""Routing (docs/numerics.md section 3) with torch's softmax, sigmoid, softplus and stable sort."""
import numpy as np
import torch

from golden import inputs
from golden.formats import F32, to_float

INF = float("inf")
torch.set_num_threads(1)


def order(keys, tie_high):
    """Positions by descending rank +Inf > finite > -Inf > NaN, ties by position."""
    k = keys.double()
    k = torch.where(k == INF, torch.full_like(k, 1e300), k)
    k = torch.where(k == -INF, torch.full_like(k, -1e300), k)
    k = torch.where(torch.isnan(k), torch.full_like(k, -INF), k)
    if not tie_high:
        return torch.sort(k, dim=-1, descending=True, stable=True)[1]
    flipped = torch.sort(k.flip(-1), dim=-1, descending=True, stable=True)[1]
    return k.shape[-1] - 1 - flipped


def score(kind, z):
    z = z.double()
    if kind == "softmax":
        return torch.softmax(z, -1)
    if kind == "sigmoid":
        return torch.sigmoid(z)
    if kind == "sqrtsoftplus":
        return torch.sqrt(torch.nn.functional.softplus(z, threshold=700))
    return z


def keep_groups(p, keys):
    """keys with the experts of dropped groups removed (as NaN below every NaN: a mask)."""
    n, kept = p["groups"]
    high = "tiehigh" in p.flags
    g = keys.reshape(keys.shape[0], n, -1)
    best = torch.gather(g, 2, order(g, high))
    value = best[..., 0] + best[..., 1] if "gsum2" in p.flags else best[..., 0]
    chosen = order(value, high)[:, :kept]
    mask = torch.zeros(value.shape, dtype=torch.bool).scatter_(1, chosen, True)
    return mask.unsqueeze(-1).expand_as(g).reshape(keys.shape)


def select(p, logits, bias):
    """ids [T, k] of the routed slots."""
    z = torch.from_numpy(logits)
    keys = z
    if p.flags & {"rbias", "gsum2"}:
        s = score(p["route"], z)
        s = torch.where(torch.isnan(s), z.double(), s).float()
        keys = s + torch.from_numpy(bias)
        keys = torch.where(torch.isnan(z) | (z == -INF), z, keys)
    ranked = order(keys, "tiehigh" in p.flags)
    if p["groups"][0]:
        allowed = torch.gather(keep_groups(p, keys), 1, ranked)
        first = torch.sort(allowed.int(), dim=-1, descending=True, stable=True)[1]
        ranked = torch.gather(ranked, 1, first)
    return ranked[:, : p["k"]]


def weigh(p, logits, ids):
    """Steps 4 to 6 in f64. ids outside [0, E) weigh nothing."""
    z = torch.from_numpy(logits)
    valid = (ids >= 0) & (ids < p["e"])
    index = torch.where(valid, ids, torch.zeros_like(ids))
    if "topkfirst" in p.flags:
        w = score(p["route"], torch.gather(z, 1, index))
    else:
        w = torch.gather(score(p["route"], z), 1, index)
    w = torch.where(valid, w, torch.zeros_like(w))
    if "renorm" in p.flags:
        total = w.sum(1, keepdim=True) + float(F32(p["eps"]))
        w = torch.where(total == 0, torch.zeros_like(w), w / total)
    return w * float(F32(p["scale"]))


def route(p, seed, logits, wild=True):
    """ids int32 and weights f32, [T, k + shared], from f32 logits [T, E (+ shared)]."""
    e, t = p["e"], p["t"]
    routed = np.ascontiguousarray(logits[:, :e])
    if "hash" in p.flags:
        table, tokens = hash_inputs(p, seed, wild)
        ids = torch.from_numpy(table[tokens].astype(np.int64))
    else:
        bias = inputs.route_bias(seed, e) if "rbias" in p.flags else np.zeros(e, F32)
        ids = select(p, routed, bias)
    w = weigh(p, routed, ids)
    nowhere = torch.from_numpy((routed == -INF).all(1))
    if "hash" not in p.flags:
        ids = torch.where(nowhere[:, None], torch.full_like(ids, -1), ids)
        w = torch.where(nowhere[:, None], torch.zeros_like(w), w)
    ids, w = ids.numpy().astype(np.int32), w.numpy().astype(F32)
    if p["shared"]:
        more = np.full((t, p["shared"]), F32(p["shw"]))
        if "shsigmoid" in p.flags:
            more = torch.sigmoid(torch.from_numpy(logits[:, e:]).double()).numpy().astype(F32)
        ids = np.hstack([ids, np.tile(e + np.arange(p["shared"], dtype=np.int32), (t, 1))])
        w = np.hstack([w, more])
    return ids, w


VOCAB = 11


def hash_inputs(p, seed, wild=True):
    """Table [vocab, k], if wild with a few ids out of range, and the tokens' rows of it."""
    u = inputs.stream(seed, "table", VOCAB * p["k"])
    low, count = (-1, p["e"] + 2) if wild else (0, p["e"])
    table = (u % np.uint64(count)).astype(np.int64) + low
    rows = (inputs.stream(seed, "tokens", p["t"]) % np.uint64(VOCAB)).astype(np.int64)
    return table.reshape(VOCAB, p["k"]).astype(np.int32), rows


def logits_from_x(p, seed, bias=True):
    x = to_float(inputs.rows(seed, "x", (p["t"], p["h"])), p["in"]).astype(np.float64)
    n = p["e"] + (p["shared"] if "shsigmoid" in p.flags else 0)
    w = inputs.grid(seed, "wr", (n, p["h"]), 1 / 256).astype(np.float64)
    b = inputs.grid(seed, "br", (n,), 1 / 64).astype(np.float64) * bias
    return (x @ w.T + b).astype(F32)


def case_logits(p, seed, kind):
    n = p["e"] + (p["shared"] if "shsigmoid" in p.flags else 0)
    if "rx" in p.flags:
        return logits_from_x(p, seed)
    return to_float(inputs.logits(seed, (p["t"], n), kind), p["lg"])
