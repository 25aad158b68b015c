# SPDX-License-Identifier: MIT
"""Layer calls with activations that arrive quantised, rows that lie by expert, and recorded calls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
from hypothesis import given, strategies as st  # noqa: E402

import cmoe  # noqa: E402
import oracles  # noqa: E402
from test_layer import make  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::cmoe.SlowPathWarning")

SCHEMES = {"fp8-token": "e4m3/token", "fp8-block": "e4m3/g128", "int8-w8a8": "i8/token",
           "mxfp4-w4a4": "e2m1/mx32", "mxfp8": "e4m3/mx32", "nvfp4-w4a4": "e2m1/nv16"}  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantized_activations(scheme):
    """Codes and scales in place of x: what the layer would make of x itself, and near the floats."""
    x, w1, w2, _, weights, ids = make(7, h=128, i=64)
    layer = cmoe.Layer(w1, w2, scheme=scheme + (":f32" if ":" not in scheme else ",f32"))
    q = cmoe.quantize(x, SCHEMES[scheme], activations=True)
    got = layer(q.data, topk_ids=ids, topk_weights=weights, x_scale=q.scale, x_global=q.global_)
    assert got.dtype == np.float32
    back = cmoe.dequantize(q, SCHEMES[scheme], activations=True)
    oracles.close(layer(back, topk_ids=ids, topk_weights=weights), got, 1e-2)
    oracles.close(got, oracles.experts(x, w1, w2, weights, ids), 0.4)


def test_quantized_activations_refused():
    x, w1, w2, _, weights, ids = make(7, h=128, i=64)
    q = cmoe.quantize(x, "e4m3/token", activations=True)
    with pytest.raises(cmoe.InvalidError, match="expected one of f32, f16, bf16"):
        cmoe.Layer(w1, w2)(q.data, topk_ids=ids, topk_weights=weights, x_scale=q.scale)
    layer = cmoe.Layer(w1, w2, scheme="fp8-token")
    with pytest.raises(cmoe.InvalidError, match="x_scale is needed"):
        layer(q.data, topk_ids=ids, topk_weights=weights)
    with pytest.raises(cmoe.InvalidError, match=r"x_scale has shape \[3, 1\]; expected 7 elements"):
        layer(q.data, topk_ids=ids, topk_weights=weights, x_scale=q.scale[:3])


@given(e=st.integers(1, 5), capacity=st.integers(1, 9), h=st.integers(1, 40), i=st.integers(1, 30),
       seed=st.integers(0, 99), data=st.data())  # fmt: skip
def test_batched(e, capacity, h, i, seed, data):
    rng = np.random.default_rng(seed)
    counts = np.array(data.draw(st.lists(st.integers(0, capacity), min_size=e, max_size=e)), np.int32)
    _, w1, w2, _, _, _ = make(1, e, 1, h, i, seed=seed)
    x = rng.standard_normal((e, capacity, h)).astype(np.float32)
    mark = np.float32(-77)
    out = np.full((e, capacity, h), mark)
    for n in range(e):
        x[n, counts[n] :] = np.nan
    y = cmoe.batched(cmoe.Layer(w1, w2), x, counts, out=out)
    assert y is out
    for n in range(e):
        live = slice(0, counts[n])
        want = oracles.experts(x[n, live], w1[n : n + 1], w2[n : n + 1], np.ones((counts[n], 1)),
                               np.zeros((counts[n], 1), np.int32))  # fmt: skip
        assert np.allclose(y[n, live], want, rtol=1e-4, atol=1e-4)
        assert (y[n, counts[n] :] == mark).all()


def test_batched_quantized():
    rng = np.random.default_rng(5)
    _, w1, w2, _, _, _ = make(1, 3, 1, 128, 64)
    x, counts = rng.standard_normal((3, 4, 128)).astype(np.float32), np.array([4, 0, 2], np.int32)
    layer = cmoe.Layer(w1, w2, scheme="fp8-block:f32")
    want = cmoe.batched(layer, x, counts)
    q = cmoe.quantize(x.reshape(12, 128), "e4m3/g128", activations=True)
    got = cmoe.batched(layer, q.data.reshape(3, 4, 128), counts, x_scale=q.scale)
    for e, n in enumerate(counts):
        assert np.array_equal(got[e, :n], want[e, :n]) and (n == 0 or np.abs(want[e, :n]).max() > 0.1)


RECORDED = """
import cmoe, numpy as np
rng = np.random.default_rng(0)
x, w1, w2 = (rng.standard_normal(s, np.float32) / 6 for s in ((5, 64), (8, 64, 64), (8, 64, 32)))
z = rng.standard_normal((5, 8), np.float32)
cmoe.route(z, 2)  # not a layer call
cmoe.moe(x, w1, w2, router_logits=z, topk=2, scheme="mxfp4-w4a16:f32")
cmoe.moe(2 * x, w1, w2, router_logits=z, topk=2)  # not the first
"""


def test_recorded_call(tmp_path):
    if not (Path(cmoe.info()["library"]).parent / "libcmoe-io.so.0").exists():
        pytest.skip("libcmoe was built without libcmoe-io")
    env = dict(os.environ, CMOE_RECORD=str(tmp_path / "call"))
    done = subprocess.run([sys.executable, "-c", RECORDED], env=env, capture_output=True, text=True,
                          cwd=Path(cmoe.__file__).parents[1])  # fmt: skip
    assert done.returncode == 0 and "recorded the call in" in done.stderr, done.stderr
    x = np.load(tmp_path / "call" / "x.npy")
    rng = np.random.default_rng(0)
    assert np.array_equal(x, rng.standard_normal((5, 64), np.float32) / 6)
    assert "w=e2m1/mx32" in (tmp_path / "call" / "problem.txt").read_text()
    replay = Path(__file__).resolve().parents[3] / "build" / "release" / "cmoe"
    if replay.exists():
        done = subprocess.run([replay, "replay", tmp_path / "call"], capture_output=True, text=True)
        assert done.returncode == 0 and "within" in done.stdout, done.stderr
