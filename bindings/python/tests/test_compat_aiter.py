# SPDX-License-Identifier: MIT
"""cmoe.compat.aiter: the calls of AITER's guide, and its conventions, against torch arithmetic."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import cmoe  # noqa: E402
from cmoe.compat import aiter as compat  # noqa: E402

compat.install()
from aiter import ActivationType, QuantType  # noqa: E402
from aiter.fused_moe import fused_moe, fused_topk, moe_sorting, torch_moe  # noqa: E402
from aiter.ops.shuffle import shuffle_scale, shuffle_weight  # noqa: E402

F = torch.nn.functional
fp8 = pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no fp8")
pytestmark = pytest.mark.filterwarnings("ignore::cmoe.SlowPathWarning")


def make(m=7, e=8, k=2, h=64, i=48, dtype=torch.bfloat16, gated=True):
    g = torch.Generator().manual_seed(m + h)
    x, z = torch.randn(m, h, generator=g), torch.randn(m, e, generator=g)
    w1 = torch.randn(e, (1 + gated) * i, h, generator=g) / h**0.5
    w2 = torch.randn(e, h, i, generator=g) / i**0.5
    return x.to(dtype), w1.to(dtype), w2.to(dtype), z


def layer(x, w1, w2, weights, ids, f=F.silu, stage1=False, add=0.0, limit=None, local=None,
          quant=lambda v: v):  # fmt: skip
    """fp64; gated split; ``stage1`` multiplies GEMM1's result."""
    x, w1, w2, weights = x.double(), w1.double(), w2.double(), weights.double()
    y = torch.zeros(x.shape[0], w2.shape[1], dtype=torch.float64)
    for t in range(x.shape[0]):
        for s in range(ids.shape[1]):
            e = int(ids[t, s]) if local is None else int(local[int(ids[t, s])])
            if e < 0:
                continue
            h = w1[e] @ quant(x[t]) * (weights[t, s] if stage1 else 1)
            if w1.shape[1] == w2.shape[2]:
                mid = f(h)
            else:
                gate, up = h.chunk(2)
                if limit:
                    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
                mid = f(gate) * (up + add)
            y[t] += w2[e] @ quant(mid) * (1 if stage1 else weights[t, s])
    return y


def close(got, want, relative=1e-2):
    assert want.norm() > 0 and got.shape == want.shape
    assert (got.double() - want).norm() <= relative * want.norm()


# --- the guide's calls ---


def test_guide_standard():
    hidden_states, w1, w2, gating_output = make()
    topk_weights, topk_ids = fused_topk(hidden_states, gating_output, topk=2, renormalize=True)
    output = fused_moe(hidden_states, w1, w2, topk_weights, topk_ids,
                       activation=ActivationType.Silu, quant_type=QuantType.No)  # fmt: skip
    want, ids = gating_output.softmax(-1).topk(2)
    want = want / want.sum(-1, keepdim=True)
    assert torch.equal(topk_ids.long(), ids) and topk_ids.dtype == torch.int32
    torch.testing.assert_close(topk_weights, want)
    close(output, layer(hidden_states, w1, w2, want, ids))
    close(torch_moe(hidden_states, w1, w2, topk_weights, topk_ids), layer(
        hidden_states, w1, w2, want, ids))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32])
def test_guide_expert_parallel(dtype):
    hidden_states, w1, w2, z = make()
    topk_weights, topk_ids = fused_topk(hidden_states, z, 2, True)
    expert_mask = torch.zeros(8, dtype=dtype)
    expert_mask[2:5] = True
    local = [-1, -1, 0, 1, 2, -1, -1, -1]
    output = fused_moe(hidden_states, w1[2:5], w2[2:5], topk_weights, topk_ids,
                       expert_mask=expert_mask)  # fmt: skip
    want = layer(hidden_states, w1[2:5], w2[2:5], topk_weights, topk_ids, local=local)
    close(output, want)


@fp8
def test_guide_shared_experts():
    from aiter.fused_moe_dp_shared_expert import fused_moe_dp_share_expert

    x, w1, w2, _ = make(m=7, e=2)
    s1, s2 = (w.float().abs().amax(-1, keepdim=True) / 448 for w in (w1, w2))
    q1, q2 = ((w.float() / s).to(torch.float8_e4m3fn) for w, s in ((w1, s1), (w2, s2)))
    buffer = torch.ones_like(x)
    for rank in range(3):
        out = fused_moe_dp_share_expert(x, q1, q2, quant_type=QuantType.per_Token, w1_scale=s1,
                                        w2_scale=s2, dp_size=3, dp_rank=rank,
                                        moe_buf=buffer)  # fmt: skip
        assert out is buffer
    ids = torch.arange(2).repeat(7, 1)
    want = 1 + layer(x, q1.double() * s1, q2.double() * s2, torch.ones(7, 2), ids)
    close(buffer, want, 0.06)


@fp8
def test_guide_block_scale():
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
    out = fused_moe(x, *q, weights, ids, w1_scale=s[0], w2_scale=s[1],
                    quant_type=QuantType.per_1x128, activation=ActivationType.Silu)  # fmt: skip
    close(out, layer(x, *d, weights, ids), 0.06)


@pytest.mark.parametrize("swizzled", [False, True])
@pytest.mark.parametrize("activation", [ActivationType.Silu, ActivationType.Swiglu])
def test_guide_mxfp4(swizzled, activation):
    from aiter.ops.quant import per_1x32_f4_quant

    x, w1, w2, z = make(h=128, i=96)
    weights, ids = fused_topk(x, z, 2, True)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    q, s, d = [], [], []
    for w in (w1, w2):
        codes, scale = per_1x32_f4_quant(w)
        nibbles = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).long()
        value = table[nibbles & 7] * torch.where(nibbles > 7, -1.0, 1.0)
        d.append(value.double() * 2.0 ** (scale.double() - 127).repeat_interleave(32, -1))
        assert (d[-1] - w.double()).norm() < 0.2 * w.double().norm()
        q.append(shuffle_weight(codes))
        s.append(shuffle_scale(scale) if swizzled else scale)
    out = fused_moe(x, *q, weights, ids, w1_scale=s[0], w2_scale=s[1],
                    quant_type=QuantType.per_1x32, activation=activation)  # fmt: skip
    if activation == ActivationType.Silu:
        close(out, layer(x, *d, weights, ids), 0.25)
    else:
        oai = layer(x, *d, weights, ids, lambda g: g * torch.sigmoid(1.702 * g), add=1, limit=7)
        close(out, oai)


def test_guide_e2e():
    from aiter.ops.triton.moe.moe_op_e2e import e2e_moe

    x, w1, w2, z = make()
    weights, ids = fused_topk(x, z, 2, True)
    want = layer(x, w1, w2, weights, ids)
    close(e2e_moe(x, w1, w2, weights, ids, ...), want)
    c = torch.empty(7, 2, 64, dtype=torch.bfloat16)
    e2e_moe(x, w1, w2, None, c, None, None, None, weights, None, ids, None, None, True, 2, False,
            False)  # fmt: skip
    close(c.float().sum(1), want)


def test_guide_routing():
    from aiter.ops.moe_op import topk_sigmoid, topk_softmax

    z = make()[3]
    weights, ids = topk_softmax(z, topk=2, renormalize=True)
    want, want_ids = z.softmax(-1).topk(2)
    assert torch.equal(ids.long(), want_ids)
    torch.testing.assert_close(weights, want / want.sum(-1, keepdim=True))
    weights, ids = topk_sigmoid(z, topk=1)
    want, want_ids = z.sigmoid().topk(1)
    assert torch.equal(ids.long(), want_ids)
    torch.testing.assert_close(weights, want)
    assert (int(ActivationType.Silu), int(ActivationType.Gelu)) == (0, 1)


# --- conventions beyond the guide ---


def test_topk_softmax_is_in_place():
    from aiter.ops.moe_op import topk_softmax

    z = torch.cat((make()[3], torch.randn(7, 1)), 1)
    weights, ids = torch.full((7, 12), 9.0), torch.full((7, 2), 9, dtype=torch.int32)
    source = torch.zeros(7, 2, dtype=torch.int32)
    assert topk_softmax(weights, ids, source, z, False, 1, "sigmoid") is None
    want, want_ids = z[:, :8].softmax(-1).topk(2)
    assert torch.equal(ids.long(), want_ids)
    torch.testing.assert_close(weights[:, :2], want)
    torch.testing.assert_close(weights[:, 2], z[:, 8].sigmoid())
    assert (weights[:, 3:] == 9).all() and source[4, 1] == 7 + 4


def test_biased_grouped_topk():
    from aiter.ops.topk import biased_grouped_topk, grouped_topk

    g = torch.Generator().manual_seed(0)
    z, bias = torch.randn(19, 32, generator=g), torch.randn(32, generator=g)
    weights, ids = torch.empty(19, 4), torch.empty(19, 4, dtype=torch.int32)
    for biased in (True, False):
        scores = z.sigmoid()
        choice = scores + bias if biased else scores
        grouped = choice.view(19, 8, 4)
        group = grouped.topk(2)[0].sum(-1) if biased else grouped.amax(-1)
        mask = torch.zeros(19, 8).scatter_(1, group.topk(3).indices, 1).bool()
        want_ids = choice.masked_fill(~mask.repeat_interleave(4, 1), -torch.inf).topk(4).indices
        want = scores.gather(1, want_ids)
        want = want / want.sum(-1, keepdim=True) * 2.5
        if biased:
            biased_grouped_topk(z, bias, weights, ids, 8, 3, True, 2.5)
        else:
            grouped_topk(z, weights, ids, 8, 3, True, False, 2.5)
        assert torch.equal(ids.long(), want_ids)
        torch.testing.assert_close(weights, want)


def test_topk_gating():
    from aiter.ops.topk import topk_gating

    g = torch.Generator().manual_seed(0)
    z, bias = torch.randn(9, 96, generator=g), torch.randn(96, generator=g)
    scores = F.softplus(z).sqrt()
    want_ids = (scores + bias).topk(6).indices
    want = scores.gather(1, want_ids)
    weights, ids = torch.empty(9, 6), torch.empty(9, 6, dtype=torch.int32)
    topk_gating(weights, ids, z, bias, True, 1.5)
    assert torch.equal(ids.long(), want_ids)
    torch.testing.assert_close(weights, want / want.sum(-1, keepdim=True) * 1.5)


@pytest.mark.parametrize("masked", [False, True])
def test_moe_sorting(masked):
    g = torch.Generator().manual_seed(3)
    z = torch.randn(13, 8, generator=g)
    weights, ids = fused_topk(z, z, 3, True)
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1], dtype=torch.int32) if masked else None
    live = torch.tensor([11], dtype=torch.int32)
    out = moe_sorting(ids, weights, 8, 64, torch.bfloat16, 4, mask, live, return_local_topk_ids=True)
    sorted_ids, sorted_weights, experts, valid, buffer, local = out
    want, want_weights, want_experts, n = [], [], [], 0
    for e in range(8):
        if masked and not mask[e]:
            continue
        t, s = torch.where(ids[:11] == e)
        rows = (s << 24 | t).tolist()
        fill = -len(rows) % 4
        want += rows + [3 << 24 | 11] * fill
        want_weights += weights[t, s].tolist() + [0.0] * fill
        want_experts += [n] * ((len(rows) + fill) // 4)
        n += 1
    assert valid.tolist() == [len(want), 11]
    assert sorted_ids[: len(want)].tolist() == want and sorted_ids.numel() == 13 * 3 + 8 * 4 - 3
    assert sorted_weights[: len(want)].tolist() == want_weights
    assert experts[: len(want_experts)].tolist() == want_experts
    assert buffer.shape == (13, 64) and (buffer == 0).all()
    if masked:
        assert (local[ids == 1] == -1).all() and (local[ids == 7] == 5).all()


def test_stage1_weights_gelu_and_ungated():
    x, w1, w2, z = make()
    weights, ids = fused_topk(x, z, 2, True)
    close(fused_moe(x, w1, w2, weights, ids, doweight_stage1=True),
          layer(x, w1, w2, weights, ids, stage1=True))  # fmt: skip
    close(fused_moe(x, w1, w2, weights, ids, activation=ActivationType.Gelu),
          layer(x, w1, w2, weights, ids, F.gelu))  # fmt: skip
    x, w1, w2, z = make(gated=False)
    close(fused_moe(x, w1, w2, weights, ids), layer(x, w1, w2, weights, ids))


def test_num_local_tokens():
    x, w1, w2, z = make()
    weights, ids = fused_topk(x, z, 2, True)
    x[5:], ids[5:] = float("nan"), 77
    out = fused_moe(x, w1, w2, weights, ids, num_local_tokens=torch.tensor([5]))
    close(out[:5], layer(x[:5], w1, w2, weights[:5], ids[:5]))


def test_int8_smooth_and_per_token():
    from aiter.fused_moe_bf16_asm import asm_moe
    from aiter.ops.quant import pertoken_quant

    x, w1, w2, z = make()
    weights, ids = fused_topk(x, z, 2, True)
    smooth1, smooth2 = torch.rand(8, 1, 64) + 0.5, torch.rand(8, 1, 48) + 0.5
    plain, smoothed = [], []
    for w, s in ((w1, smooth1), (w2, smooth2)):
        plain.append(pertoken_quant(w, quant_dtype=torch.int8))
        smoothed.append(pertoken_quant(w / s, quant_dtype=torch.int8))

    def truncated(v):
        scale = v.abs().max() / 127
        return (v / scale).trunc() * scale

    want = layer(x, *(q.double() * s for q, s in plain), weights, ids, quant=truncated)
    got = fused_moe(x, plain[0][0], plain[1][0], weights, ids, quant_type=QuantType.per_Token,
                    w1_scale=plain[0][1], w2_scale=plain[1][1])  # fmt: skip
    close(got, want)
    got = asm_moe(x, smoothed[0][0], smoothed[1][0], weights, ids, smoothed[0][1], smoothed[1][1],
                  smooth1, smooth2)  # fmt: skip
    close(got, layer(x, w1, w2, weights, ids), 0.06)


def test_family_b():
    from aiter import moe_sum
    from aiter.ops.triton.moe.moe_align_block_size import moe_align_block_size_triton
    from aiter.ops.triton.moe.moe_op import fused_moe as gemm
    from aiter.ops.triton.moe.moe_op_gelu import fused_moe_gelu
    from aiter.ops.triton.moe.moe_op_silu_fused import fused_moe_silu

    x, w1, w2, z = make(dtype=torch.float32)
    weights, ids = fused_topk(x, z, 2, True)
    sorted_ids = torch.full((14 + 8 * 15,), 14, dtype=torch.int32)
    experts, total = torch.zeros(9, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    moe_align_block_size_triton(ids, 8, 16, sorted_ids, experts, total)
    routing = (weights, ids, sorted_ids, experts, total)
    config = {"BLOCK_SIZE_M": 16}
    mid, out, y = torch.zeros(14, 48), torch.zeros(7, 2, 64), torch.zeros(7, 64)
    fused_moe_silu(x, w1, mid, None, None, None, *routing, False, 2, config=config)
    gemm(mid, w2, out, None, None, None, *routing, True, 1, config=config)
    moe_sum(out, y)
    close(y, layer(x, w1, w2, weights, ids), 1e-5)
    wide = torch.zeros(7, 2, 96)
    fused_moe_gelu(x, w1, wide, None, None, *routing, False, 2, config=config)
    want = F.gelu(torch.einsum("mskh,mh->msk", w1[ids.long()], x), approximate="tanh")
    torch.testing.assert_close(wide, want, rtol=1e-4, atol=1e-5)


def test_sigmoid_top1():
    from aiter.ops.triton.moe.moe_routing_sigmoid_top1_fused import routing_sigmoid_top1

    x, w = torch.randn(9, 16), torch.randn(16, 12)
    ids, weights = routing_sigmoid_top1(x, w, 1, True)
    want, want_ids = (x @ w).sigmoid().max(1)
    assert torch.equal(ids[:, 0].long(), want_ids) and (ids[:, 1] == 12).all()
    torch.testing.assert_close(weights[:, 0], want)
    assert (weights[:, 1] == 1).all()


def test_shuffles():
    """Weights keep their order; a scale at (r, c) goes where AITER's index formula says."""
    w = torch.arange(512.0).view(16, 32)
    marked = shuffle_weight(w)
    assert marked.is_shuffled and torch.equal(marked, w) and not hasattr(w, "is_shuffled")
    scale = torch.randint(0, 256, (300, 9), dtype=torch.uint8)
    flat = shuffle_scale(scale).reshape(-1)
    for x, y in ((0, 0), (31, 8), (17, 3), (299, 8), (100, 5)):
        at = (x // 32) * 32 * 16 + (y // 8) * 256 + (y % 4) * 64 + (x % 16) * 4
        at += ((y % 8) // 4) * 2 + (x % 32) // 16
        assert flat[at] == scale[x, y]


def test_what_is_absent_fails():
    with pytest.raises(ImportError):
        from aiter.fhmoe import fhmoe  # noqa: F401
    x, w1, w2, z = make()
    weights, ids = fused_topk(x, z, 2, True)
    with pytest.raises(cmoe.UnsupportedError, match="shared_w1"):
        fused_moe(x, w1, w2, weights, ids, shared_w1=w1)


def test_environment():
    code = ("from cmoe.compat import aiter; aiter.install(); import cmoe.runtime as r, os; "
            "assert r.ignore_tuned; assert os.environ['CMOE_TUNED'] == '/tmp/t.txt'")  # fmt: skip
    env = dict(os.environ, AITER_BYPASS_TUNE_CONFIG="1", AITER_CONFIG_FMOE="/tmp/t.txt")
    env.pop("CMOE_TUNED", None)
    subprocess.run([sys.executable, "-c", code], check=True, env=env,
                   cwd=Path(cmoe.__file__).parents[1])  # fmt: skip
    os.environ["AITER_KSPLIT"] = "4"
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            compat.install()
        assert "AITER_KSPLIT has no effect" in str(seen[0].message)
    finally:
        del os.environ["AITER_KSPLIT"]
