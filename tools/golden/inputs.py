# SPDX-License-Identifier: MIT
"""Inputs of the golden cases: element i of tensor NAME in case SEED is a function of those three.

tests/harness_golden.c makes the same numbers, so only outputs are stored. Every value lies on a
small grid that bf16 and f16 hold exactly; codes avoid NaN and the far ends of wide types."""
import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)

# Largest magnitude code drawn, lowest, and log2 of the scale that brings the codes to weight size.
CODES = {"e4m3": (0x00, 0x7F, -9), "e4m3fnuz": (0x00, 0x80, -8), "e5m2": (0x28, 0x50, -5)}
BASE = {"e4m3": -9, "e4m3fnuz": -8, "e5m2": -5, "i8": -8, "u8": -8, "i4": -4, "u4": -4, "e2m1": -4}
STATIC = {"e4m3": -8, "e4m3fnuz": -7, "e5m2": -15, "i8": -6, "e2m1": -10}


def stream(seed, name, n):
    """First n outputs of splitmix64 started at seed ^ fnv1a(name)."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & (2**64 - 1)
    with np.errstate(over="ignore"):
        z = np.uint64(h ^ seed) + np.arange(1, n + 1, dtype=np.uint64) * GAMMA
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _mod(u, n, shift=0):
    return ((u >> np.uint64(shift)) % np.uint64(n)).astype(np.int64)


def grid(seed, name, shape, unit):
    """k * unit, k in [-64, 64]; one value in 16 is four times as large. f32."""
    u = stream(seed, name, int(np.prod(shape)))
    v = (_mod(u, 129) - 64) * unit * np.where(_mod(u, 16, 32) == 0, 4.0, 1.0)
    return v.astype(np.float32).reshape(shape)


def rows(seed, name, shape):
    """grid with unit 1/64, row t times 1/2, 1 or 2, so that rows differ in size."""
    r = np.arange(shape[0]) % 3 - 1.0
    return (grid(seed, name, shape, 1 / 64) * np.exp2(r)[:, None]).astype(np.float32)


def codes(seed, name, shape, dtype):
    u = stream(seed, name, int(np.prod(shape)))
    if dtype in CODES:
        low, high, _ = CODES[dtype]
        magnitude = low + _mod(u, high - low)
        sign = _mod(u, 2, 32) * 0x80
        c = np.where((magnitude == 0) & (dtype == "e4m3fnuz"), 0, magnitude | sign)
    else:
        c = _mod(u, 256 if dtype in ("i8", "u8") else 16)
    return c.astype(np.uint8).reshape(shape)


def scales(seed, name, shape, base):
    """2^e (1 + m/8), e within 1 of base. f32."""
    u = stream(seed, name, int(np.prod(shape)))
    v = np.exp2(base + _mod(u, 3) - 1.0) * (1 + _mod(u, 8, 8) / 8)
    return v.astype(np.float32).reshape(shape)


def e8m0(seed, name, shape, base):
    u = stream(seed, name, int(np.prod(shape)))
    return (127 + base + _mod(u, 3) - 1).astype(np.uint8).reshape(shape)


def block_e4m3(seed, name, shape):
    """e4m3 codes of 0.5 to 2."""
    u = stream(seed, name, int(np.prod(shape)))
    return (0x30 + _mod(u, 17)).astype(np.uint8).reshape(shape)


def zeros(seed, name, shape, dtype):
    u = stream(seed, name, int(np.prod(shape)))
    z = _mod(u, 16) if dtype == "u4" else 112 + _mod(u, 33)
    return z.astype(np.uint8).reshape(shape)


def route_weights(seed, shape):
    """1/64 .. 1."""
    u = stream(seed, "r", int(np.prod(shape)))
    return ((_mod(u, 64) + 1) / 64).astype(np.float32).reshape(shape)


def ids(seed, mode, tokens, topk, experts, shared):
    """plain: distinct routed ids, then the shared ones. rough: duplicates, ids out of range, and
    token 2 (the largest row of x) with none that is valid."""
    slots, total = topk + shared, experts + shared
    out = np.empty((tokens, slots), np.int64)
    if mode == "plain":
        start = _mod(stream(seed, "ids", tokens), experts)
        out[:, :topk] = (start[:, None] + np.arange(topk)) % experts
        out[:, topk:] = experts + np.arange(shared)
        return out.astype(np.int32)
    u = stream(seed, "ids", tokens * slots).reshape(tokens, slots)
    kind, free = _mod(u, 8), _mod(u, total, 8)
    wild = [-1, total, 2**31 - 1, -(2**31)]
    for t in range(tokens):
        for s in range(slots):
            k = kind[t, s] if t != 2 else kind[t, s] % 4
            out[t, s] = wild[k] if k < 4 and (s > 0 or t == 2) else free[t, s]
            if k == 4 and s > 0:
                out[t, s] = out[t, s - 1]
    return out.astype(np.int32)


def batched_ids(seed, experts, capacity):
    """Experts of the rows of the batched layout: a count each, none for expert 1; -1 past it."""
    count = 2 + _mod(stream(seed, "counts", experts), capacity - 1)
    count[1] = 0
    row = np.arange(experts * capacity)
    return np.where(row % capacity < count[row // capacity], row // capacity, -1)[:, None]


def expert_map(seed, ids_total, local):
    """A permutation's first `local` values are local indices; the others are -1 or too large."""
    del seed
    step = next(s for s in (7, 5, 3, 1) if np.gcd(s, ids_total) == 1)
    p = (np.arange(ids_total) * step + 3) % ids_total
    return np.where(p < local, p, np.where(p % 2 == 0, 1000 + p, -1)).astype(np.int32)


def logits(seed, shape, kind):
    """real: k/2^17 - 4 over 2^20 values; ties: five values; tame for bf16 and f16: eighths."""
    u = stream(seed, "logits", int(np.prod(shape)))
    if kind == "real":
        v = _mod(u, 2**20) / 2.0**17 - 4
    elif kind == "ties":
        v = _mod(u, 5) / 2.0 - 1
    elif kind == "eighths":
        v = _mod(u, 65) / 8.0 - 4
    else:  # wild: the same with NaN and infinities
        v = _mod(u, 65) / 8.0 - 4
        pick = _mod(u, 12, 32)
        v = np.where(pick == 0, np.nan, np.where(pick == 1, np.inf, np.where(pick < 6, -np.inf, v)))
    v = v.astype(np.float32).reshape(shape)
    if kind == "wild":
        v[0] = -np.inf  # row 0: nothing to route to; row 1: no finite logit
        v[1] = np.where(np.isfinite(v[1]), -np.inf, v[1])
    return v


def wide(seed, shape, broken):
    """Rows from 2^-30 to 2^14 in size, and within a row 2^-3 to 1, with zeros and ties; row 3 is of
    denormals, row 5 zero. broken: row 6 has a NaN, row 7 an infinity."""
    rows, cols = shape
    u = stream(seed, "wide", rows * cols).reshape(shape)
    k = _mod(u, 129) - 64
    exponent = -_mod(u, 4, 8) - 6 + np.array([0, 10, -20, -134, 3, 0, 1, -2, 14, -30])[
        np.arange(rows) % 10][:, None]
    v = np.ldexp(k.astype(np.float64), exponent).astype(np.float32)
    v[_mod(u, 9, 16) == 0] = 0
    v[np.arange(rows) % 10 == 5] = 0
    if broken:
        v[6, cols // 2], v[7, cols - 1] = np.nan, -np.inf
    return v


def route_bias(seed, experts):
    u = stream(seed, "bias", experts)
    return (_mod(u, 2**16) / 2.0**18 - 0.125).astype(np.float32)
