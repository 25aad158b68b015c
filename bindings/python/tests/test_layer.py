# SPDX-License-Identifier: MIT
"""cmoe.moe, Layer, route, sort and quantize on NumPy arrays against fp64 formulas."""

import threading
import warnings

import pytest

np = pytest.importorskip("numpy")
from hypothesis import given, strategies as st  # noqa: E402

import cmoe  # noqa: E402
import oracles  # noqa: E402


def make(t=5, e=8, k=2, h=64, i=32, gate="split", seed=0):
    rng = np.random.default_rng(seed)
    rows = i if gate == "none" else 2 * i
    x, z = rng.standard_normal((t, h)), rng.standard_normal((t, e))
    w1, w2 = rng.standard_normal((e, rows, h)) / h**0.5, rng.standard_normal((e, h, i)) / i**0.5
    ids = oracles.top(z, k).astype(np.int32)
    weights = rng.uniform(0.1, 1, (t, k))
    return [a.astype(np.float32) for a in (x, w1, w2, z, weights)] + [ids]


@given(
    t=st.integers(0, 40), e=st.integers(1, 12), h=st.integers(1, 70), i=st.integers(1, 40),
    k=st.integers(1, 4), act=st.sampled_from(sorted(oracles.ACTIVATIONS)),
    gate=st.sampled_from(("split", "interleaved", "none")), seed=st.integers(0, 1000),
    transposed=st.booleans(), bias=st.booleans(), pack=st.booleans(), wide=st.booleans(),
)  # fmt: skip
def test_layer_is_the_formula(t, e, h, i, k, act, gate, seed, transposed, bias, pack, wide):
    k = min(k, e)
    x, w1, w2, _, weights, ids = make(t, e, k, h, i, gate, seed)
    ids[::3, 0] = -1
    ids[1::3, -1] = e + 5
    rng = np.random.default_rng(seed + 1)
    b1, b2 = None, None
    if bias:
        b1, b2 = (rng.standard_normal(w.shape[:2]).astype(np.float32) for w in (w1, w2))
    want = oracles.experts(x, w1, w2, weights, ids, act, gate, b1, b2)
    if transposed:
        w1, w2 = (np.ascontiguousarray(w.swapaxes(1, 2)) for w in (w1, w2))
    layer = cmoe.Layer(w1, w2, act=act, gate=gate, b1=b1, b2=b2, transposed=transposed, pack=pack)
    got = layer(x, topk_ids=ids.astype(np.int64) if wide else ids, topk_weights=weights)
    assert got.shape == want.shape and got.dtype == np.float32
    assert np.allclose(got, want, rtol=1e-4, atol=2e-5 * (1 + np.abs(want).max(initial=0)))


def test_routed_layer():
    x, w1, w2, z, _, _ = make()
    p = oracles.softmax(z.astype(np.float64))
    ids = oracles.top(p, 2)
    weights = np.take_along_axis(p, ids, -1)
    weights /= weights.sum(-1, keepdims=True)
    got, got_ids, got_weights = cmoe.moe(
        x, w1, w2, router_logits=z, topk=2, router="qwen3", return_routing=True
    )
    oracles.close(got, oracles.experts(x, w1, w2, weights, ids), 1e-6)
    assert (got_ids == ids).all()
    assert np.allclose(got_weights, weights, atol=1e-6)


@given(t=st.integers(1, 20), e=st.sampled_from((4, 8, 12, 60)), k=st.integers(1, 4),
       seed=st.integers(0, 999), renorm=st.booleans())  # fmt: skip
def test_route_softmax(t, e, k, seed, renorm):
    z = np.random.default_rng(seed).standard_normal((t, e)).astype(np.float32)
    p = oracles.softmax(z.astype(np.float64))
    ids = oracles.top(z, k)
    want = np.take_along_axis(p, ids, -1)
    if renorm:
        want /= want.sum(-1, keepdims=True)
    weights, got = cmoe.route(z, k, "softmax renorm" if renorm else "softmax")
    assert (got == ids).all() and np.allclose(weights, want, atol=1e-6)


def test_route_deepseek_v3():
    """Groups by the sum of their two best biased scores; weights without the bias."""
    rng = np.random.default_rng(3)
    z, bias = (rng.standard_normal(s).astype(np.float32) for s in ((33, 32), (32,)))
    s = oracles.sigmoid(z.astype(np.float64))
    b = s + bias
    groups = np.sort(b.reshape(33, 8, 4), -1)[..., -2:].sum(-1)
    keep = oracles.top(groups, 4)
    mask = np.zeros((33, 8), bool)
    np.put_along_axis(mask, keep, True, 1)
    ids = oracles.top(np.where(mask.repeat(4, 1), b, -np.inf), 8)
    want = np.take_along_axis(s, ids, -1)
    want = want / want.sum(-1, keepdims=True) * 2.5
    weights, got = cmoe.route(z, 8, "deepseek-v3", bias=bias)
    assert (got == ids).all() and np.allclose(weights, want, atol=1e-5)


def test_expert_slice_and_map():
    x, w1, w2, _, weights, ids = make(t=9, e=8)
    part = slice(2, 5)
    want = oracles.experts(x, w1[part], w2[part], weights, ids, first=2)
    got = cmoe.moe(x, w1[part], w2[part], topk_ids=ids, topk_weights=weights, experts=8,
                   expert_first=2)  # fmt: skip
    oracles.close(got, want, 1e-6)
    table = np.array([-1, 2, -1, 0, -1, -1, 1, -1], np.int32)
    want = oracles.experts(x, w1[:3], w2[:3], weights, table[ids])
    got = cmoe.moe(x, w1[:3], w2[:3], topk_ids=ids, topk_weights=weights, expert_map=table)
    oracles.close(got, want, 1e-6)


def test_weight_on_input():
    x, w1, w2, _, weights, ids = make(k=1)
    want = oracles.experts(x, w1, w2, weights, ids, weight_on="input")
    got = cmoe.moe(x, w1, w2, topk_ids=ids, topk_weights=weights, weight_on="input")
    oracles.close(got, want, 1e-6)


# Relative error of the whole layer on Gaussian weights: the format's own coarseness, with room.
SCHEMES = {
    "fp8-tensor": 0.08, "fp8-token": 0.08, "fp8-block": 0.08, "fp8-w8a16": 0.05,
    "int8-w8a8": 0.03, "int8-w8a16": 0.02, "int4-w4a16": 0.25, "int4-w4a16:g64,zp": 0.25,
    "int4-w4a8": 0.25, "mxfp4-w4a16": 0.25, "mxfp4-mxfp8": 0.25, "mxfp4-w4a4": 0.35,
    "mxfp8": 0.08, "nvfp4-w4a16": 0.2, "nvfp4-w4a4": 0.3,
}  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.filterwarnings("ignore::cmoe.SlowPathWarning")
def test_schemes_from_floats(scheme):
    x, w1, w2, _, weights, ids = make(t=6, h=128, i=128)
    want = oracles.experts(x, w1, w2, weights, ids)
    got = cmoe.Layer(w1, w2, scheme=scheme)(x, topk_ids=ids, topk_weights=weights)
    oracles.close(got, want, SCHEMES[scheme])


@pytest.mark.parametrize("scheme", ["fp8-w8a16", "int4-w4a16", "mxfp4-w4a16"])
@pytest.mark.filterwarnings("ignore::cmoe.SlowPathWarning")
def test_quantised_arrays_are_the_same_layer(scheme):
    """quantize, then codes and scales by hand: what the scheme says about dequantised weights."""
    x, w1, w2, _, weights, ids = make(t=6, h=128, i=64)
    q1, q2 = cmoe.quantize(w1, scheme), cmoe.quantize(w2, scheme)
    d1, d2 = cmoe.dequantize(q1, scheme), cmoe.dequantize(q2, scheme)
    assert 0 < np.abs(d1 - w1).max() < 0.2
    want = oracles.experts(x, d1, d2, weights, ids)
    got = cmoe.moe(x, q1.data, q2.data, w1_scale=q1.scale, w2_scale=q2.scale, scheme=scheme,
                   topk_ids=ids, topk_weights=weights)  # fmt: skip
    oracles.close(got, want, 1e-5)


@given(rows=st.integers(1, 9), cols=st.integers(1, 200), seed=st.integers(0, 999))
def test_quantize_rows_is_amax_over_448(rows, cols, seed):
    ml = pytest.importorskip("ml_dtypes")
    x = np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)
    q = cmoe.quantize(x, "e4m3/token", activations=True)
    scale = np.abs(x).max(1, keepdims=True) / np.float32(448)
    assert (np.asarray(q.scale) == scale).all()
    assert (q.data.view(np.uint8) == (x / scale).astype(ml.float8_e4m3fn).view(np.uint8)).all()


def test_bfloat16_as_uint16_and_as_ml_dtypes():
    ml = pytest.importorskip("ml_dtypes")
    x, w1, w2, _, weights, ids = make()
    want = oracles.experts(x, w1, w2, weights, ids)
    bx, b1, b2 = (a.astype(ml.bfloat16) for a in (x, w1, w2))
    got = cmoe.moe(bx, b1, b2, topk_ids=ids, topk_weights=weights)
    assert got.dtype == ml.bfloat16
    oracles.close(got.astype(np.float64), want, 0.02)
    codes = cmoe.moe(*(a.view(np.uint16) for a in (bx, b1, b2)), topk_ids=ids,
                     topk_weights=weights)  # fmt: skip
    assert codes.dtype == np.uint16 and (codes == got.view(np.uint16)).all()


@given(t=st.integers(0, 30), e=st.integers(1, 9), k=st.integers(1, 3), bm=st.sampled_from((1, 4, 16)),
       seed=st.integers(0, 999))  # fmt: skip
@pytest.mark.filterwarnings("ignore::cmoe.SlowPathWarning")
def test_sort(t, e, k, bm, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(-1, e + 1, (t, k)).astype(np.int32)
    if (np.sort(ids, 1)[:, 1:] == np.sort(ids, 1)[:, :-1]).any():
        ids[:, 1:] = -1
    weights = rng.random((t, k), np.float32)
    index = cmoe.sort(ids, e, "index")
    flat, packed = (cmoe.sort(ids, e, f, block_m=bm, topk_weights=weights)
                    for f in ("flat", "packed"))  # fmt: skip
    rows, padded, blocks = [], [], []
    for expert in range(e):
        mine = np.flatnonzero(ids.reshape(-1) == expert)
        assert index.experts[expert] == len(rows)
        rows += list(mine)
        fill = -len(mine) % bm
        padded += list(mine) + [t * k] * fill
        blocks += [expert] * ((len(mine) + fill) // bm)
    assert list(index.ids[: len(rows)]) == rows
    assert flat.num_valid[0] == len(padded)
    assert list(flat.ids[: len(padded)]) == padded
    assert list(flat.experts[: len(blocks)]) == blocks
    assert t == 0 or list(packed.num_valid) == [len(padded), t]
    for n, row in enumerate(padded):
        real = row < t * k
        assert packed.ids[n] & 0xFFFFFF == (row // k if real else t)
        assert packed.ids[n] >> 24 == (row % k if real else k)
        assert packed.weights[n] == (weights.reshape(-1)[row] if real else 0)


def test_threads_share_a_layer():
    x, w1, w2, _, weights, ids = make(t=17)
    layer = cmoe.Layer(w1, w2)
    want = layer(x, topk_ids=ids, topk_weights=weights)
    bad = []

    def work(n):
        for _ in range(40):
            part = slice(0, 1 + n)
            y = layer(x[part], topk_ids=ids[part], topk_weights=weights[part])
            if not np.allclose(y, want[part], atol=1e-5):
                bad.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 3, 8, 16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not bad and np.abs(want).max() > 0.1


def test_expert_load_and_out():
    x, w1, w2, _, weights, ids = make()
    load, out = np.zeros(8, np.int64), np.full((5, 80), 7, np.float32)
    y = cmoe.Layer(w1, w2)(x, topk_ids=ids, topk_weights=weights, out=out[:, :64], expert_load=load)
    assert y.base is out and (out[:, 64:] == 7).all()
    oracles.close(y, oracles.experts(x, w1, w2, weights, ids), 1e-6)
    assert (load == np.bincount(ids.reshape(-1), minlength=8)).all()


def test_strided_inputs():
    x, w1, w2, _, weights, ids = make(t=6)
    want = oracles.experts(x, w1, w2, weights, ids)
    wide = np.zeros((6, 100), np.float32)
    wide[:, 10:74] = x
    deep = np.zeros((8, 64, 192), np.float32)
    deep[:, :, :64] = w1
    for y in (
        cmoe.moe(wide[:, 10:74], deep[:, :, :64], w2, topk_ids=ids, topk_weights=weights),
        cmoe.moe(np.asfortranarray(x), w1, np.asfortranarray(w2), topk_ids=ids,
                 topk_weights=np.asfortranarray(weights)),
    ):  # fmt: skip
        oracles.close(y, want, 1e-6)


@pytest.mark.parametrize("change, message", [
    (dict(topk_ids=None), "both topk_ids and topk_weights"),
    (dict(w2=np.zeros((3, 64, 32), np.float32)), "w1 holds 8 experts and w2 3"),
    (dict(x=np.zeros((5, 63), np.float32)), r"expected \[tokens, 64\]"),
    (dict(x=np.zeros((5, 64), np.int32)), "expected one of f32, f16, bf16"),
    (dict(topk_weights=np.zeros((4, 2), np.float32)), "do not belong to 5 tokens"),
    (dict(act="tanh"), "tanh"),
    (dict(scheme="fp9"), "fp9"),
    (dict(w1=np.zeros((8, 64, 64), np.uint8), scheme="fp8-w8a16"), "w1_scale is missing"),
    (dict(topk_ids=np.zeros((5, 2), np.float32)), "topk_ids has type f32; expected integers"),
    (dict(expert_map=np.zeros(8, np.float32)), "expert_map has type f32; expected integers"),
    (dict(router_logits=np.zeros((5, 8), np.float32), topk=2), "not both"),
    (dict(b1=np.zeros((8, 3), np.float32)), r"b1 has shape \[8, 3\]"),
    (dict(expert_load=np.zeros(7, np.int64)), r"expert_load must be contiguous int64 \[8\]"),
])  # fmt: skip
def test_wrong_arguments_are_named(change, message):
    x, w1, w2, _, weights, ids = make()
    call = dict(x=x, w1=w1, w2=w2, topk_ids=ids, topk_weights=weights) | change
    with pytest.raises(cmoe.InvalidError, match=message):
        cmoe.moe(call.pop("x"), call.pop("w1"), call.pop("w2"), **call)


def test_what_routers_read_has_the_size_they_read():
    x, w1, w2, z, _, ids = make()
    layer = cmoe.Layer(w1, w2, topk=2, router="deepseek-v3 groups=0")
    with pytest.raises(cmoe.InvalidError, match=r"route_bias has shape \[3\]; expected \[8\]"):
        layer(x, z, route_bias=np.zeros(3, np.float32))
    with pytest.raises(cmoe.InvalidError, match=r"route_bias has shape \[9\]; expected \[8\]"):
        cmoe.route(z, 2, "sigmoid rbias", bias=np.zeros(9, np.float32))
    hashed = dict(token_ids=np.zeros(len(x), np.int64), hash_table=ids)
    assert cmoe.route(z, 2, "softmax hash", **hashed)[1].shape == (len(x), 2)
    with pytest.raises(cmoe.InvalidError, match=r"token_ids has shape \[1\]"):
        cmoe.route(z, 2, "softmax hash", **(hashed | dict(token_ids=np.zeros(1, np.int64))))
    with pytest.raises(cmoe.InvalidError, match=r"hash_table has shape \[5, 1\]; expected \[any, 2\]"):
        cmoe.route(z, 2, "softmax hash", **(hashed | dict(hash_table=ids[:, :1])))
    with pytest.raises(cmoe.InvalidError, match="counts has type f32; expected integers"):
        cmoe.batched(layer, np.zeros((8, 3, 64), np.float32), np.zeros(8, np.float32))


def test_functions_see_new_weights_at_old_addresses():
    """moe keeps layers by address; weights changed in place count, freed ones are never read."""
    x, w1, w2, _, weights, ids = make()
    first = cmoe.moe(x, w1, w2, topk_ids=ids, topk_weights=weights)
    w2 *= 2
    assert np.allclose(cmoe.moe(x, w1, w2, topk_ids=ids, topk_weights=weights), 2 * first, atol=1e-5)


def test_no_slow_path_for_floats():
    x, w1, w2, z, _, _ = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cmoe.Layer(w1, w2, topk=2, router="qwen3", pack=True)(x, z)
