# SPDX-License-Identifier: MIT
"""AITER's family C: routing with gather and scatter, moe_gemm_*, quantisers, in torch's arithmetic."""

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, strategies as st  # noqa: E402

from test_compat_aiter import F, close, fp8  # noqa: E402  (installs the modules)

from aiter.ops.triton.moe import quant_moe  # noqa: E402
from aiter.ops.triton.moe.moe_op_gemm_a16w4 import moe_gemm_a16w4  # noqa: E402
from aiter.ops.triton.moe.moe_op_gemm_int8_smoothquant import (  # noqa: E402
    fused_moe_int8_smoothquant,
)
from aiter.ops.triton.moe.moe_routing.routing import routing, routing_from_hash  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::cmoe.SlowPathWarning")
M, E, K, H, N = 11, 8, 3, 64, 96


def select(z, k, key=None):
    """(weights' ids by expert): the k best, of equal ones the highest id, then ascending."""
    key = z if key is None else key
    ids = torch.tensor([sorted(sorted(range(z.shape[1]), key=lambda e: (-float(row[e]), -e))[:k])
                        for row in key])  # fmt: skip
    return ids


@pytest.mark.parametrize("mode", [None, "first", "sigmoid", "sqrtsoftplus"])
def test_routing(mode):
    g = torch.Generator().manual_seed(1)
    z = torch.randint(-3, 3, (M, E), generator=g).float()  # many ties
    bias = torch.randn(E, generator=g)
    if mode in (None, "first"):
        ids = select(z, K)
        scores = z.softmax(-1) if mode else z
        want = scores.gather(1, ids)
        want = want if mode else want.softmax(-1)
        data, gather, scatter = routing(z, K, sm_first=mode == "first")
    else:
        scores = z.sigmoid() if mode == "sigmoid" else F.softplus(z).sqrt()
        ids = select(z, K, scores + bias)
        want = scores.gather(1, ids)
        want = want / want.sum(-1, keepdim=True) * 1.5
        data, gather, scatter = routing(z, K, score_mode=mode, bias=bias, routed_scaling_factor=1.5)
    order = torch.argsort(ids.reshape(-1), stable=True)
    assert torch.equal(gather.long(), order)
    assert torch.equal(scatter.long()[order], torch.arange(M * K))
    torch.testing.assert_close(data.gate_scal, want.reshape(-1)[order])
    hist = torch.bincount(ids.reshape(-1), minlength=E)
    assert torch.equal(data.expt_hist.long(), hist) and data.block_m == 16
    assert data.expt_data.token_offs_raw.tolist() == [0, *hist.cumsum(0).tolist()]
    blocks = [(b << 16) | e for e in range(E) for b in range(-(-int(hist[e]) // 16))]
    assert data.expt_data.block_pid_map.tolist()[: len(blocks)] == blocks
    assert (data.expt_data.block_pid_map[len(blocks) :] == -1).all()


@given(m=st.integers(1, 40), e=st.integers(1, 20), k=st.integers(1, 6), spread=st.integers(0, 4),
       seed=st.integers(0, 999))  # fmt: skip
def test_routing_of_any_size(m, e, k, spread, seed):
    k = min(k, e)
    z = torch.randint(-spread, spread + 1, (m, e), generator=torch.Generator().manual_seed(seed)).float()
    data, gather, scatter = routing(z, k)
    ids = select(z, k)
    order = torch.argsort(ids.reshape(-1), stable=True)
    assert torch.equal(gather.long(), order)
    assert torch.equal(gather.long()[scatter.long()], torch.arange(m * k))
    want = z.gather(1, ids).softmax(-1).reshape(-1)[order]
    torch.testing.assert_close(data.gate_scal, want)
    pad = data.expt_data.token_offs_pad
    assert int(pad[-1]) == sum(-(-int(n) // data.block_m) for n in data.expt_hist)
    assert int((data.expt_data.block_pid_map >= 0).sum()) == int(pad[-1])


def test_routing_grouped_and_hash():
    g = torch.Generator().manual_seed(2)
    z = torch.randn(M, E, generator=g)
    data, gather, _ = routing(z, 2, score_mode="softmax", use_grouped_topk=True, num_expert_group=4,
                              topk_group=2)  # fmt: skip
    s = z.softmax(-1)
    best = s.view(M, 4, 2).amax(-1).topk(2).indices
    mask = torch.zeros(M, 4).scatter_(1, best, 1).bool().repeat_interleave(2, 1)
    ids = s.masked_fill(~mask, -1).topk(2).indices.sort(1).values
    want = s.gather(1, ids)
    order = torch.argsort(ids.reshape(-1), stable=True)
    assert torch.equal(gather.long(), order)
    torch.testing.assert_close(data.gate_scal, (want / want.sum(1, True)).reshape(-1)[order])
    table = torch.stack([torch.randperm(E, generator=g)[:2] for _ in range(50)]).int()
    tokens = torch.randint(0, 50, (M,), generator=g)
    data, gather, _ = routing_from_hash(z, table, tokens, 2, 16)
    ids = table[tokens].long().sort(1).values
    s = F.softplus(z).sqrt().gather(1, ids)
    order = torch.argsort(ids.reshape(-1), stable=True)
    assert torch.equal(gather.long(), order)
    torch.testing.assert_close(data.gate_scal, (s / s.sum(1, True)).reshape(-1)[order])


def formula(x, w, data, gather, scatter, bias=None, gammas=None, swiglu=None):
    """fp64: row by row, then a sum over each token's rows."""
    owner = torch.repeat_interleave(torch.arange(E), data.expt_hist.long())
    rows = []
    for r, e in enumerate(owner.tolist()):
        v = x[int(gather[r]) // K] if gather is not None else x[r]
        h = v.double() @ w[e].double()
        h = h if bias is None else h + bias[e].double()
        if swiglu:
            alpha, limit, add = swiglu
            gate, up = h[::2], h[1::2]
            if limit is not None:
                gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            h = gate * torch.sigmoid(alpha * gate) * (up + (1 if add else 0))
        rows.append(h if gammas is None else h * gammas[r].double())
    y = torch.stack(rows)
    if scatter is None:
        return y
    return torch.stack([sum(y[int(scatter[t * K + s])] for s in range(K)) for t in range(M)])


def mx(w, kind="fp4"):
    """Along K of [E, K, N]: codes, scales, values."""
    q, s = quant_moe.downcast_to_mxfp(w, torch.uint8 if kind == "fp4" else torch.float8_e4m3fn, 1)
    return q, s, quant_moe.upcast_from_mxfp(q, s, torch.float32, 1)


def inputs(gathered=True):
    g = torch.Generator().manual_seed(4)
    z = torch.randn(M, E, generator=g)
    x = torch.randn(M if gathered else M * K, H, generator=g).bfloat16()
    w = torch.randn(E, H, N, generator=g) / 8
    bias = torch.randn(E, N, generator=g) / 4
    return routing(z, K), x, w, bias


@pytest.mark.parametrize("gathered", [True, False])
@pytest.mark.parametrize("scattered", [True, False])
@pytest.mark.parametrize("swiglu", [None, (1.702, 7.0, True), (1.0, None, False)])
def test_a16w4(gathered, scattered, swiglu):
    (data, gather, scatter), x, w, bias = inputs(gathered)
    q, s, wide = mx(w)
    gather, scatter = gather if gathered else None, scatter if scattered else None
    options = {}
    if swiglu:
        options = dict(zip(("alpha", "limit", "swiglu_add_residual"), swiglu), apply_swiglu=True)
    got = moe_gemm_a16w4(x, q, None, s, bias=bias, routing_data=data, gather_indx=gather,
                         scatter_indx=scatter, gammas=data.gate_scal, **options)  # fmt: skip
    close(got, formula(x, wide, data, gather, scatter, bias, data.gate_scal, swiglu))


@fp8
@pytest.mark.parametrize("kind", ["static", "mx"])
def test_a8w4_and_a8w8(kind):
    from aiter.ops.triton.moe.moe_op_gemm_a8w8 import moe_gemm_a8w8
    from aiter.ops.triton.moe_op_gemm_a8w4 import moe_gemm_a8w4

    (data, gather, scatter), x, w, bias = inputs()
    if kind == "static":
        one = torch.tensor(0.02)
        codes, scale, static = quant_moe.downcast_to_static_fp8(x, one), None, one
        rows = codes.float() * one
    else:
        codes, scale = quant_moe.downcast_to_mxfp(x, torch.float8_e4m3fn, 1)
        static, rows = None, quant_moe.upcast_from_mxfp(codes, scale, torch.float32, 1)
    common = dict(bias=bias, routing_data=data, gather_indx=gather, x_static_scale=static)
    q, s, wide = mx(w)
    got = moe_gemm_a8w4(codes, q, scale, s, scatter_indx=scatter, gammas=data.gate_scal,
                        residual=x.repeat(1, 2)[:, :N], **common)  # fmt: skip
    want = formula(rows, wide, data, gather, scatter, bias, data.gate_scal)
    close(got, want + x.repeat(1, 2)[:, :N].double())
    out, out_scale = moe_gemm_a8w4(codes, q, scale, s, out_mx_quant=True, **common)
    back = quant_moe.upcast_from_mxfp(out, out_scale, torch.float32, 1)
    close(back, formula(rows, wide, data, gather, None, bias), 0.05)
    q, s, wide = mx(w, "fp8")
    close(moe_gemm_a8w8(codes, q, scale, s, **common), formula(rows, wide, data, gather, None, bias))
    step = torch.tensor(0.01)
    got = moe_gemm_a8w8(codes, q, scale, s, quant_static_scale=step, **common)
    close(got.float() * step, formula(rows, wide, data, gather, None, bias), 0.05)


def test_a4w4():
    from aiter.ops.triton.moe.moe_op_gemm_a4w4 import moe_gemm_a4w4

    (data, gather, scatter), x, w, bias = inputs()
    codes, scale = quant_moe.downcast_to_mxfp(x, torch.uint8, 1)
    rows = quant_moe.upcast_from_mxfp(codes, scale, torch.float32, 1)
    q, s, wide = mx(w)
    got = moe_gemm_a4w4(codes, q, scale, s, bias, data, gather, scatter, data.gate_scal)
    close(got, formula(rows, wide, data, gather, scatter, bias, data.gate_scal))


@fp8
@pytest.mark.parametrize("per_row", [True, False])
def test_block_scales(per_row):
    from aiter.ops.triton.moe.moe_op_gemm_a8w8_blockscale import moe_gemm_a8w8_blockscale

    g = torch.Generator().manual_seed(4)
    data, gather, scatter = routing(torch.randn(M, E, generator=g), K)
    x, w = torch.randn(M, 256, generator=g), torch.randn(E, 256, 128, generator=g) / 16
    xs = torch.rand(M if per_row else 1, 2, generator=g) / 50 + 0.01
    ws = torch.rand(E, 2, 1, generator=g) / 500 + 0.001
    wide_x = xs.expand(M, 2).repeat_interleave(128, 1)
    wide_w = ws.repeat_interleave(128, 1).expand(E, 256, 128)
    xq, wq = (x / wide_x).to(torch.float8_e4m3fn), (w / wide_w).to(torch.float8_e4m3fn)
    got = moe_gemm_a8w8_blockscale(xq, wq, xs, ws, routing_data=data, gather_indx=gather,
                                   scatter_indx=scatter, per_row_x_scale=per_row)  # fmt: skip
    rows = quant_moe.dequant_x_blockscale(xq, xs, per_row, (128, 128))
    wide = quant_moe.dequant_w_blockscale(wq, ws, (128, 128))
    torch.testing.assert_close(rows, xq.float() * wide_x)
    torch.testing.assert_close(wide, wq.float() * wide_w)
    close(got, formula(rows, wide, data, gather, scatter))


def test_int8_layer():
    g = torch.Generator().manual_seed(6)
    x, z = torch.randn(M, H, generator=g).bfloat16(), torch.randn(M, E, generator=g)
    w13, w2 = torch.randn(E, H, N, generator=g) / 8, torch.randn(E, N // 2, H, generator=g) / 7
    (q1, s1), (q2, s2) = quant_moe.quantize_weights_int8(w13), quant_moe.quantize_weights_int8(w2)
    got = fused_moe_int8_smoothquant(x, q1, q2, s1, s2, z, K, True)
    weights, ids = z.double().softmax(-1).topk(K)
    weights = weights / weights.sum(1, True)
    want = torch.zeros(M, H, dtype=torch.float64)
    for t in range(M):
        for s in range(K):
            e = int(ids[t, s])
            h = x[t].double() @ w13[e].double()
            want[t] += (F.silu(h[::2]) * h[1::2]) @ w2[e].double() * weights[t, s]
    close(got, want, 0.05)


def test_mxfp_values():
    """fp4 rounds half away from zero; scales are the next power of two of max/6."""
    x = torch.zeros(1, 32)
    x[0, :6] = torch.tensor([6.0, 2.5, -2.5, 0.25, 1.75, 5.0])
    q, s = quant_moe.downcast_to_mxfp(x, torch.uint8, 1)
    assert s.tolist() == [[127]]
    assert quant_moe.upcast_from_mxfp(q, s, torch.float32, 1)[0, :6].tolist() == [6, 3, -3, 0.5, 2, 6]
    codes, scale = quant_moe.smoothquant_quantize(torch.tensor([[127.0, 0.5, -1.5]]), torch.ones(3))
    assert codes.tolist() == [[127, 1, -2]] and scale.tolist() == [1.0]
