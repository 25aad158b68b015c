# SPDX-License-Identifier: MIT
"""cmoe.compat.vllm and .sglang against torch arithmetic with the hosts' conventions."""

import pytest

torch = pytest.importorskip("torch")

import cmoe  # noqa: E402
from cmoe.compat import sglang, vllm  # noqa: E402

F = torch.nn.functional
fp8 = pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no fp8")


def make(m=9, e=8, k=2, h=64, i=48, dtype=torch.float32):
    g = torch.Generator().manual_seed(m + e)
    x, z = torch.randn(m, h, generator=g), torch.randn(m, e, generator=g)
    w1 = torch.randn(e, 2 * i, h, generator=g) / h**0.5
    w2 = torch.randn(e, h, i, generator=g) / i**0.5
    return x.to(dtype), w1.to(dtype), w2.to(dtype), z


def torch_experts(x, w1, w2, weights, ids, expert_map=None, on_gemm1=False, b1=None, b2=None):
    """Slot by slot in fp64."""
    x, w1, w2, weights = x.double(), w1.double(), w2.double(), weights.double()
    y = torch.zeros(x.shape[0], w2.shape[1], dtype=torch.float64)
    for t in range(x.shape[0]):
        for s in range(ids.shape[1]):
            e = int(ids[t, s])
            if expert_map is not None and 0 <= e < len(expert_map):
                e = int(expert_map[e])
            if not 0 <= e < w1.shape[0]:
                continue
            h = w1[e] @ x[t] + (0 if b1 is None else b1[e])
            gate, up = (h * weights[t, s] if on_gemm1 else h).chunk(2)
            z = w2[e] @ (F.silu(gate) * up) + (0 if b2 is None else b2[e])
            y[t] += z if on_gemm1 else z * weights[t, s]
    return y


def close(got, want, relative):
    assert want.norm() > 0 and got.shape == want.shape
    assert (got.double() - want).norm() <= relative * want.norm()


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [False, True])
def test_fused_topk(scoring, renormalize):
    x, _, _, z = make()
    scores = z.softmax(-1) if scoring == "softmax" else z.sigmoid()
    want, ids = scores.topk(2)
    if renormalize:
        want = want / want.sum(-1, keepdim=True)
    weights, got, source = vllm.fused_topk(x, z, 2, renormalize, scoring_func=scoring)
    assert torch.equal(got.long(), ids) and got.dtype == torch.int32
    torch.testing.assert_close(weights, want)
    assert source[3, 1] == 1 * 9 + 3
    assert vllm.fused_topk(x, z, 2, renormalize, torch.int64)[1].dtype == torch.int64


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_grouped_topk(scoring, biased, scale):
    m, e, groups, kept, k = 33, 16, 4, 2, 3
    x, _, _, z = make(m, e)
    bias = torch.randn(e, generator=torch.Generator().manual_seed(1)) if biased else None
    scores = z.softmax(-1) if scoring == "softmax" else z.sigmoid()
    choice = scores + bias if biased else scores
    grouped = choice.view(m, groups, -1)
    group = grouped.topk(2)[0].sum(-1) if biased else grouped.max(-1).values
    mask = torch.zeros(m, groups).scatter_(1, group.topk(kept).indices, 1).bool()
    ids = choice.masked_fill(~mask.repeat_interleave(e // groups, 1), -torch.inf).topk(k).indices
    want = scores.gather(1, ids)
    want = want / want.sum(-1, keepdim=True) * scale
    weights, got = vllm.grouped_topk(x, z, k, True, groups, kept, scoring, scale, bias)
    assert torch.equal(got.long(), ids)
    torch.testing.assert_close(weights, want)


@pytest.mark.parametrize("dtype, relative", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_fused_experts_with_padding_map_and_inplace(dtype, relative):
    x, w1, w2, z = make(dtype=dtype)
    weights, ids = z.softmax(-1).topk(2)
    ids[3] = -1
    ids[5, 1] = -1
    expert_map = torch.tensor([-1, 2, -1, 0, 1, -1, 3, -1], dtype=torch.int32)
    want = torch_experts(x, w1, w2, weights, ids)
    got = vllm.fused_experts(x, w1, w2, weights, ids.int())
    close(got, want, relative)
    assert (got[3] == 0).all()
    want_mapped = torch_experts(x, w1[:4], w2[:4], weights, ids, expert_map)
    close(vllm.fused_experts(x, w1[:4], w2[:4], weights, ids, global_num_experts=8,
                             expert_map=expert_map), want_mapped, relative)  # fmt: skip
    y = vllm.fused_experts(x, w1, w2, weights, ids, inplace=True)
    assert y is x
    close(x, want, relative)


def test_results_of_16_bits_are_allowed(monkeypatch):
    """As vLLM's own kernel has GEMM2's: the layer may choose kernels that need it."""
    layers, original = [], cmoe.Layer.__call__
    monkeypatch.setattr(cmoe.Layer, "__call__",
                        lambda self, *a, **k: layers.append(repr(self)) or original(self, *a, **k))  # fmt: skip
    x, w1, w2, z = make(dtype=torch.bfloat16)
    weights, ids, _ = vllm.fused_topk(x, z, 2, True)
    vllm.fused_experts(x, w1, w2, weights, ids)
    assert len(layers) == 1 and " reduced" in layers[0]


def test_ids_beyond_the_experts_do_not_poison():
    x, w1, w2, z = make()
    weights, ids = z.softmax(-1).topk(2)
    x[4] = float("nan")
    ids[4] = -1
    y = vllm.fused_experts(x, w1, w2, weights, ids)
    assert (y[4] == 0).all() and torch.isfinite(y).all()


def test_router_weight_on_input():
    x, w1, w2, z = make(k=1)
    weights, ids = z.sigmoid().topk(1)
    want = torch_experts(x, w1, w2, weights, ids, on_gemm1=True)
    close(vllm.fused_experts(x, w1, w2, weights, ids, apply_router_weight_on_input=True), want, 1e-6)


def test_biases():
    x, w1, w2, z = make()
    b1, b2 = torch.randn(8, 96), torch.randn(8, 64)
    weights, ids = z.softmax(-1).topk(2)
    got = vllm.fused_experts(x, w1, w2, weights, ids, w1_bias=b1, w2_bias=b2)
    close(got, torch_experts(x, w1, w2, weights, ids, b1=b1.double(), b2=b2.double()), 1e-6)


@fp8
@pytest.mark.parametrize("kind", ["tensor", "channel", "block"])
@pytest.mark.filterwarnings("ignore::cmoe.SlowPathWarning")
def test_fp8_w8a8(kind):
    x, w1, w2, z = make(h=256, i=128, dtype=torch.bfloat16)
    weights, ids = z.softmax(-1).topk(2)
    quantised, scales, values = [], [], []
    for w in (w1.float(), w2.float()):
        e, n, h = w.shape
        if kind == "tensor":
            s = w.abs().amax((1, 2)) / 448
            wide = s[:, None, None]
        elif kind == "channel":
            s = w.abs().amax(2, keepdim=True) / 448
            wide = s
        else:
            s = w.view(e, n // 128, 128, h // 128, 128).abs().amax((2, 4)) / 448
            wide = s.repeat_interleave(128, 1).repeat_interleave(128, 2)
        q = (w / wide).to(torch.float8_e4m3fn)
        quantised.append(q), scales.append(s), values.append(q.double() * wide.double())
    got = vllm.fused_experts(
        x, *quantised, weights, ids, use_fp8_w8a8=True, w1_scale=scales[0], w2_scale=scales[1],
        per_channel_quant=kind == "channel", block_shape=[128, 128] if kind == "block" else None,
    )  # fmt: skip
    close(got, torch_experts(x, *values, weights, ids), 0.06)


@pytest.mark.parametrize("zp", [False, True])
@pytest.mark.filterwarnings("ignore::cmoe.SlowPathWarning")
def test_int4_w4a16_packing(zp):
    """uint8 [E, N, K/2], low nibble even k; zero points [E, N/2, K/g], low nibble even n."""
    g = torch.Generator().manual_seed(2)
    x, _, _, z = make(h=128)
    weights, ids = z.softmax(-1).topk(2)
    args, values, packed = {}, [], []
    for n, (rows, cols) in enumerate(((128, 128), (128, 64)), 1):
        q = torch.randint(0, 16, (8, rows, cols), generator=g, dtype=torch.uint8)
        zero = torch.randint(0, 16, (8, rows, cols // 32), generator=g, dtype=torch.uint8)
        s = torch.rand(8, rows, cols // 32, generator=g) / 40
        offset = zero if zp else torch.full_like(zero, 8)
        offset, wide = (a.double().repeat_interleave(32, 2) for a in (offset, s))
        values.append((q.double() - offset) * wide)
        packed.append(q[..., ::2] | q[..., 1::2] << 4)
        args[f"w{n}_scale"] = s
        if zp:
            args[f"w{n}_zp"] = zero[:, ::2] | zero[:, 1::2] << 4
    got = vllm.fused_experts(x, *packed, weights, ids, use_int4_w4a16=True, block_shape=[0, 32],
                             **args)  # fmt: skip
    close(got, torch_experts(x, *values, weights, ids), 1e-5)


@pytest.mark.parametrize("mapped", [False, True])
def test_moe_align_block_size(mapped):
    g = torch.Generator().manual_seed(5)
    ids = torch.randint(-1, 6, (11, 2), generator=g, dtype=torch.int32)
    expert_map = torch.tensor([1, -1, 0, -1, 2, -1], dtype=torch.int32) if mapped else None
    got, experts, total = vllm.moe_align_block_size(ids, 4, 6, expert_map)
    want, want_experts = [], []
    for e in range(6):
        rows = (ids.reshape(-1) == e).nonzero().flatten().tolist()
        rows += [22] * (-len(rows) % 4)
        want += rows
        want_experts += [int(expert_map[e]) if mapped else e] * (len(rows) // 4)
    assert got.shape == (22 + 6 * 3,)
    assert total.tolist() == [len(want)] and got.tolist() == want + [22] * (len(got) - len(want))
    assert experts[: len(want_experts)].tolist() == want_experts
    if mapped:
        _, kept, n = vllm.moe_align_block_size(ids, 4, 6, expert_map, ignore_invalid_experts=True)
        assert kept[: n // 4].tolist() == [e for e in want_experts if e >= 0]


def test_two_kernels_and_moe_sum_make_a_layer():
    """The unfused path: align, GEMM, activation, GEMM with weights, sum."""
    x, w1, w2, z = make()
    weights, ids = z.softmax(-1).topk(2)
    sorted_ids, experts, total = vllm.moe_align_block_size(ids, 4, 8)
    c1, c3 = torch.full((9, 2, 96), 7.0), torch.full((9, 2, 64), 7.0)
    common = (sorted_ids, experts, total)
    vllm.invoke_fused_moe_kernel(x, w1, c1, None, None, None, weights, *common, False, 2,
                                 {"BLOCK_SIZE_M": 4})  # fmt: skip
    gate, up = c1.view(18, 96).chunk(2, -1)
    vllm.invoke_fused_moe_kernel(F.silu(gate) * up, w2, c3, None, None, None, weights, *common, True,
                                 1, {"BLOCK_SIZE_M": 4})  # fmt: skip
    y = torch.empty(9, 64)
    vllm.moe_sum(c3, y)
    close(y, torch_experts(x, w1, w2, weights, ids), 1e-6)


def test_fused_moe():
    x, w1, w2, z = make()
    weights, ids = z.softmax(-1).topk(2)
    close(vllm.fused_moe(x, w1, w2, z, 2, False), torch_experts(x, w1, w2, weights, ids), 1e-6)


def test_sglang():
    x, w1, w2, z = make()
    weights, ids = sglang.fused_topk(x, z, 2, True)
    want = torch_experts(x, w1, w2, weights, ids)
    close(sglang.fused_experts(x, w1, w2, (weights, ids, z)), want, 1e-6)
    close(sglang.fused_moe(x, w1, w2, (weights, ids), routed_scaling_factor=2.5), 2.5 * want, 1e-6)
    apart = sglang.fused_experts(x, w1, w2, (weights, ids), no_combine=True)
    assert apart.shape == (9, 2, 64)
    close(apart.sum(1), want, 1e-6)
