# SPDX-License-Identifier: MIT
"""What layers should compute, in NumPy's fp64 from the formulas; nothing here calls cmoe."""

import math

import numpy as np


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def erf(a):
    return np.vectorize(math.erf)(a)


ACTIVATIONS = {
    "silu": lambda g, u: g * sigmoid(g) * u,
    "gelu": lambda g, u: g * (1 + erf(g / math.sqrt(2))) / 2 * u,
    "gelu-tanh": lambda g, u: g
    * (1 + np.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))) / 2 * u,
    "relu": lambda g, u: np.maximum(g, 0) * u,
    "relu2": lambda g, u: np.maximum(g, 0) ** 2 * u,
    "swiglu-oai": lambda g, u: np.minimum(g, 7)
    * sigmoid(1.702 * np.minimum(g, 7)) * (np.clip(u, -7, 7) + 1),
    "identity": lambda g, u: g * u,
}  # fmt: skip


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def top(keys, k):
    """Ids of the k largest of each row, ties to the lowest id."""
    return np.argsort(-keys, axis=-1, kind="stable")[:, :k]


def experts(x, w1, w2, weights, ids, act="silu", gate="split", b1=None, b2=None, first=0,
            weight_on="out"):  # fmt: skip
    """y [T, H] in fp64; ids outside the local experts contribute nothing."""
    x, w1, w2, weights = (np.asarray(a, np.float64) for a in (x, w1, w2, weights))
    y = np.zeros((x.shape[0], w2.shape[1]))
    for t in range(x.shape[0]):
        for s in range(ids.shape[1]):
            e = int(ids[t, s]) - first
            if not 0 <= e < w1.shape[0]:
                continue
            r = weights[t, s]
            h = w1[e] @ (x[t] * r if weight_on == "input" else x[t])
            if b1 is not None:
                h = h + b1[e]
            if gate == "none":
                mid = ACTIVATIONS[act](h, 0.0 if act == "swiglu-oai" else 1.0)
            elif gate == "interleaved":
                mid = ACTIVATIONS[act](h[::2], h[1::2])
            else:
                g, u = np.split(h, 2)
                mid = ACTIVATIONS[act](g, u)
            z = w2[e] @ mid
            if b2 is not None:
                z = z + b2[e]
            y[t] += z * r if weight_on == "out" else z
    return y


def close(got, want, relative):
    """Assert that the result is not zero and within ``relative`` of the rows' norm."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    size = np.linalg.norm(want)
    assert size > 0, "an expected result of zero proves nothing"
    assert np.linalg.norm(got - want) <= relative * size
