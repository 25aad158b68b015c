# SPDX-License-Identifier: MIT
"""AITER's single-kernel calls behind moe_sorting, and activations that arrive quantised."""

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, strategies as st  # noqa: E402

from test_compat_aiter import F, close, fp8, layer, make  # noqa: E402  (installs the modules)

from aiter import ActivationType, QuantType  # noqa: E402
from aiter.fused_moe import fused_moe, fused_topk, moe_sorting  # noqa: E402
from aiter.ops import moe_op  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::cmoe.SlowPathWarning")


def sort(weights, ids, e, h, dtype=torch.bfloat16, block=32):
    order = moe_sorting(ids, weights, e, h, dtype, block)
    assert (order[4] == 0).all()
    return order[:4], order[4]


def channel(w, kind):
    top = 127 if kind == torch.int8 else 448
    scale = w.float().abs().amax(-1, keepdim=True) / top
    codes = w.float() / scale
    return (codes if kind != torch.int8 else codes.round()).to(kind), scale


def test_fmoe():
    x, w1, w2, z = make(gated=False)
    weights, ids = fused_topk(x, z, 2, True)
    order, out = sort(weights, ids, 8, 64)
    moe_op.fmoe(out, x, w1, w2, *order, 2)
    close(out, layer(x, w1, w2, weights, ids))
    once = out.clone()
    moe_op.fmoe(out, x, w1, w2, *order, 2)  # it adds
    close(out, 2 * once.double())


@given(m=st.integers(1, 30), e=st.integers(1, 9), k=st.integers(1, 4), block=st.sampled_from((1, 4, 32)),
       seed=st.integers(0, 999))  # fmt: skip
def test_the_order_is_undone(m, e, k, block, seed):
    """unsort() finds every slot of moe_sorting's order again, and nothing in the padding."""
    from cmoe.compat.aiter.direct import unsort

    k = min(k, e)
    g = torch.Generator().manual_seed(seed)
    weights, ids = fused_topk(None, torch.randn(m, e, generator=g), k, True)
    order, _ = sort(weights, ids, e, 8, block=block)
    live, flat, experts = unsort(order[0], order[2], order[3], block, m, k)
    assert torch.equal(flat.sort().values, torch.arange(m * k))
    assert torch.equal(experts.int(), ids.reshape(-1)[flat])
    assert torch.equal(order[1][live], weights.reshape(-1)[flat])


KINDS = [torch.int8, pytest.param(getattr(torch, "float8_e4m3fn", None), marks=fp8)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage1", [False, True])
def test_fmoe_g1u1(kind, stage1):
    x, w1, w2, z = make()
    weights, ids = fused_topk(x, z, 2, True)
    (q1, s1), (q2, s2) = channel(w1, kind), channel(w2, kind)
    codes, scale = channel(x, kind)
    order, out = sort(weights, ids, 8, 64)
    call = moe_op.fmoe_g1u1_tkw1 if stage1 else moe_op.fmoe_g1u1
    call(out, codes, q1, q2, *order, 2, scale, s1, s2)
    want = layer(codes.double() * scale, q1.double() * s1, q2.double() * s2, weights, ids,
                 stage1=stage1)  # fmt: skip
    close(out, want, 0.05)


def test_fmoe_int8_slot_major():
    """Rows smoothed by expert come slot-major [k, M, H]; the intermediate is smoothed, too."""
    x, w1, w2, z = make(gated=False)
    weights, ids = fused_topk(x, z, 2, True)
    smooth1, smooth2 = torch.rand(8, 1, 64) + 0.5, torch.rand(8, 1, 48) + 0.5
    (q1, s1), (q2, s2) = (channel(w.float() / s, torch.int8) for w, s in ((w1, smooth1), (w2, smooth2)))
    rows = x.float() * smooth1[:, 0][ids.t().long()]  # [k, M, H]
    codes, scale = channel(rows, torch.int8)
    order, out = sort(weights, ids, 8, 64)
    moe_op.fmoe_int8_g1u0(out, codes, q1, q2, *order, 2, scale, s1, s2, smooth2)
    close(out, layer(x, w1, w2, weights, ids), 0.06)
    out.zero_()
    moe_op.fmoe_int8_g1u0_a16(out, x, q1, q2, *order, 2, s1, s2, smooth1, smooth2)
    close(out, layer(x, w1, w2, weights, ids), 0.06)


@fp8
def test_block_scale():
    x, w1, w2, z = make(h=256, i=128)
    weights, ids = fused_topk(x, z, 2, True)
    q, s, d = [], [], []
    for w in (w1.float(), w2.float()):
        e, n, k = w.shape
        scale = w.view(e, n // 128, 128, k // 128, 128).abs().amax((2, 4)) / 448
        wide = scale.repeat_interleave(128, 1).repeat_interleave(128, 2)
        q.append((w / wide).to(torch.float8_e4m3fn))
        s.append(scale)
        d.append(q[-1].double() * wide)
    groups = x.float().view(7, 2, 128)
    scale = groups.abs().amax(-1) / 448
    codes = (groups / scale[..., None]).to(torch.float8_e4m3fn).view(7, 256)
    wide = codes.double() * scale.repeat_interleave(128, 1)
    order, out = sort(weights, ids, 8, 256)
    moe_op.fmoe_fp8_blockscale_g1u1(out, codes, *q, *order, 2, scale.t().contiguous(), *s)
    want = layer(wide, *d, weights, ids)
    close(out, want, 0.05)
    got = fused_moe(codes, *q, weights, ids, quant_type=QuantType.per_1x128, w1_scale=s[0],
                    w2_scale=s[1], a1_scale=scale, dtype=torch.bfloat16)  # fmt: skip
    close(got, want, 0.05)


@fp8
def test_quantised_input_per_token():
    x, w1, w2, z = make()
    weights, ids = fused_topk(x, z, 2, True)
    (q1, s1), (q2, s2) = (channel(w, torch.float8_e4m3fn) for w in (w1, w2))
    codes, scale = channel(x, torch.float8_e4m3fn)
    got = fused_moe(codes, q1, q2, weights, ids, quant_type=QuantType.per_Token, w1_scale=s1,
                    w2_scale=s2, a1_scale=scale, dtype=torch.bfloat16)  # fmt: skip
    close(got, layer(codes.double() * scale, q1.double() * s1, q2.double() * s2, weights, ids), 0.05)


def test_quantised_input_mxfp4():
    import cmoe
    from aiter.ops.quant import per_1x32_f4_quant

    x, w1, w2, z = make(h=64, i=64)
    weights, ids = fused_topk(x, z, 2, True)
    (q1, s1), (q2, s2) = per_1x32_f4_quant(w1.float()), per_1x32_f4_quant(w2.float())
    codes, scale = per_1x32_f4_quant(x.float())
    wide = [cmoe.dequantize(cmoe.quantize(w.float(), "e2m1/mx32"), "e2m1/mx32") for w in (w1, w2)]
    rows = cmoe.dequantize(cmoe.quantize(x.float(), "e2m1/mx32", activations=True), "e2m1/mx32",
                           activations=True)  # fmt: skip
    got = fused_moe(codes, q1, q2, weights, ids, quant_type=QuantType.per_1x32, w1_scale=s1,
                    w2_scale=s2, a1_scale=scale, dtype=torch.bfloat16)  # fmt: skip
    close(got, layer(rows, *wide, weights, ids), 0.2)  # the intermediate is fp4, too


@pytest.mark.parametrize("activation, f", [(ActivationType.Silu, F.silu), (ActivationType.Gelu, F.gelu)])
def test_two_stages(activation, f):
    x, w1, w2, z = make()
    weights, ids = fused_topk(x, z, 2, True)
    order, out = sort(weights, ids, 8, 64)
    mid = torch.full((7, 2, 48), float("nan"), dtype=x.dtype)
    moe_op.ck_moe_stage1_fwd(x, w1, w2, order[0], order[2], order[3], mid, 2, activation=activation)
    assert not mid.isnan().any()
    moe_op.ck_moe_stage2_fwd(mid, w1, w2, order[0], order[2], order[3], out, 2,
                             sorted_weights=order[1])  # fmt: skip
    close(out, layer(x, w1, w2, weights, ids, f), 2e-2)
    again = torch.empty_like(mid)
    moe_op.moe_stage1_g1u1(x, w1, w2, order[0], order[2], order[3], again, 48, activation=activation)
    assert torch.equal(again, mid)


@fp8
def test_two_stages_per_token():
    x, w1, w2, z = make()
    weights, ids = fused_topk(x, z, 2, True)
    (q1, s1), (q2, s2) = (channel(w, torch.float8_e4m3fn) for w in (w1, w2))
    codes, scale = channel(x, torch.float8_e4m3fn)
    order, out = sort(weights, ids, 8, 64)
    mid = torch.empty(7, 2, 48, dtype=x.dtype)
    moe_op.ck_moe_stage1(codes, q1, q2, order[0], order[2], order[3], mid, 2, None, s1, scale,
                         quant_type=QuantType.per_Token)  # fmt: skip
    mid_codes, mid_scale = channel(mid, torch.float8_e4m3fn)
    moe_op.ck_moe_stage2(mid_codes, q1, q2, order[0], order[2], order[3], out, 2, None, s2,
                         mid_scale.reshape(-1, 1), sorted_weights=order[1],
                         quant_type=QuantType.per_Token)  # fmt: skip
    close(out, layer(codes.double() * scale, q1.double() * s1, q2.double() * s2, weights, ids), 0.05)


def test_cktile_with_biases():
    x, w1, w2, z = make()
    weights, ids = fused_topk(x, z, 2, True)
    order, out = sort(weights, ids, 8, 64)
    b1, b2 = torch.randn(8, 96), torch.randn(8, 64)
    mid = torch.empty(7, 2, 48, dtype=x.dtype)
    moe_op.moe_cktile2stages_gemm1(x, w1, mid, order[0], order[2], order[3], 2, exp_bias=b1)
    moe_op.moe_cktile2stages_gemm2(mid, w2, out, order[0], order[2], order[3], 2,
                                   topk_weight=order[1], exp_bias=b2)  # fmt: skip
    want = torch.zeros(7, 64, dtype=torch.float64)
    for t in range(7):
        for s in range(2):
            e = int(ids[t, s])
            gate, up = (w1[e].double() @ x[t].double() + b1[e].double()).chunk(2)
            want[t] += (w2[e].double() @ (F.silu(gate) * up) + b2[e].double()) * weights[t, s].double()
    close(out, want, 2e-2)
