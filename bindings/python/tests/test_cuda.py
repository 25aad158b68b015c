# SPDX-License-Identifier: MIT
"""The same layers on an NVIDIA GPU: current stream, CUDA graphs, wrong devices, transformers."""

import time

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)

import cmoe  # noqa: E402
import cmoe.torch  # noqa: E402
from test_torch import close, experts, make  # noqa: E402


def on_gpu(*tensors):
    return [t.cuda() for t in tensors]


@pytest.mark.parametrize("dtype, relative", [
    (torch.float32, 1e-5), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)])  # fmt: skip
@pytest.mark.parametrize("t", [1, 6, 300])
def test_layer(dtype, relative, t):
    x, w1, w2, z, weights, ids = make(t, dtype=dtype)
    want = experts(x, w1, w2, weights, ids)
    x, w1, w2, z, weights, ids = on_gpu(x, w1, w2, z, weights, ids)
    layer = cmoe.Layer(w1, w2, topk=2, router="softmax")
    for y in (layer(x, z), layer(x, topk_ids=ids, topk_weights=weights),
              torch.ops.cmoe.moe(x, w1, w2, weights, ids.int())):  # fmt: skip
        assert y.device == x.device
        close(y.cpu(), want, relative)


@pytest.mark.parametrize("scheme", ["fp8-block", "int8-w8a8", "int4-w4a16", "mxfp4-w4a16"])
def test_schemes(scheme):
    x, w1, w2, _, weights, ids = make(9, h=128, i=128)
    want = experts(x, w1, w2, weights, ids)
    x, w1, w2, weights, ids = on_gpu(x, w1, w2, weights, ids)
    close(cmoe.Layer(w1, w2, scheme=scheme)(x, topk_ids=ids, topk_weights=weights).cpu(), want, 0.25)


def test_streams_and_graphs():
    x, w1, w2, _, weights, ids = on_gpu(*make(5, dtype=torch.bfloat16))
    module = cmoe.torch.Experts(w1, w2)
    want = module(x, ids, weights)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        y = module(x, ids, weights)
    side.synchronize()
    assert torch.equal(y, want) and want.abs().max() > 0
    graph, static = torch.cuda.CUDAGraph(), x.clone()
    with torch.cuda.graph(graph):
        y = module(static, ids, weights)
    static.mul_(-2)
    graph.replay()
    torch.testing.assert_close(y, module(-2 * x, ids, weights))


def test_route_and_sort():
    z = torch.randn(33, 16)
    want, want_ids = z.softmax(-1).topk(4)
    weights, ids = cmoe.route(z.cuda(), 4)
    assert torch.equal(ids.cpu().long(), want_ids)
    torch.testing.assert_close(weights.cpu(), want)
    a, b = cmoe.sort(ids, 16, "index"), cmoe.sort(ids.cpu(), 16, "index")
    assert torch.equal(a.ids.cpu(), b.ids) and torch.equal(a.experts.cpu(), b.experts)


def test_wrong_devices_are_named():
    x, w1, w2, _, weights, ids = make()
    layer = cmoe.Layer(w1.cuda(), w2.cuda())
    with pytest.raises(cmoe.InvalidError, match="on cpu, but this layer is on cuda:0"):
        layer(x.cuda(), topk_ids=ids, topk_weights=weights.cuda())
    with pytest.raises(cmoe.InvalidError, match="w1 is on cuda:0, but w2 on cpu"):
        cmoe.Layer(w1.cuda(), w2)


@pytest.mark.parametrize("scheme, form", [("fp8-token", "e4m3/token"), ("fp8-block", "e4m3/g128"),
                                          ("mxfp4-w4a4", "e2m1/mx32")])  # fmt: skip
def test_quantized_activations(scheme, form):
    x, w1, w2, _, weights, ids = make(9, h=128, i=128)
    q = cmoe.quantize(x, form, activations=True)
    host = cmoe.Layer(w1, w2, scheme=scheme)(q.data, topk_ids=ids, topk_weights=weights,
                                             x_scale=q.scale)  # fmt: skip
    x, w1, w2, weights, ids, codes, scale = on_gpu(x, w1, w2, weights, ids, q.data, q.scale)
    layer = cmoe.Layer(w1, w2, scheme=scheme)
    got = layer(codes, topk_ids=ids, topk_weights=weights, x_scale=scale)
    close(got.cpu(), host.double(), 2e-2)


def test_vllm_experts():
    """Standard and batched format, in the host's workspace and inside a CUDA graph."""
    from test_vllm import Batched, SimpleNamespace, Standard, buffers, moe_config, quant_config

    x, w1, w2, _, weights, ids = make(9, dtype=torch.bfloat16)
    ids[3], x[3] = -1, float("nan")
    want = experts(x[:3], w1, w2, weights[:3], ids[:3])
    x, w1, w2, weights, ids = on_gpu(x, w1, w2, weights, ids)
    e = Standard(moe_config(device="cuda"), quant_config())
    shapes = e.workspace_shapes(9, 96, 64, 2, 8, 8, None, "silu")
    first, second, out = (t.cuda() for t in buffers(e, shapes, torch.bfloat16))

    def apply():
        e.apply(out, x, w1, w2, weights, ids, "silu", 8, None, None, None, first, second, None, False)

    apply()
    close(out[:3].cpu(), want, 2e-2)
    assert (out[3] == 0).all()
    before, graph = out.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        apply()
    out.zero_()
    graph.replay()
    assert torch.equal(out, before)
    e = Batched(moe_config(device="cuda"), quant_config(), max_num_tokens=5, num_dispatchers=1)
    shapes = e.workspace_shapes(5, 96, 64, 1, 8, 8, None, "silu")
    first, second, out = (t.cuda() for t in buffers(e, shapes, torch.bfloat16))
    rows = torch.randn(8, 5, 64).bfloat16()
    counts = torch.tensor([5, 0, 1, 2, 0, 3, 5, 4], dtype=torch.int32)
    e.apply(out, rows.cuda(), w1, w2, None, torch.zeros(1, 1), "silu", 8, None, None, None, first,
            second, SimpleNamespace(expert_num_tokens=counts.cuda()), False)  # fmt: skip
    for n, live in enumerate(counts.tolist()):
        one = torch.full((live, 1), n)
        if live:
            close(out[n, :live].cpu(), experts(rows[n, :live], w1.cpu(), w2.cpu(),
                                               torch.ones(live, 1), one), 2e-2)  # fmt: skip


def test_aiter_on_gpu():
    from test_compat_aiter import fused_moe, fused_topk, moe_sorting

    from aiter.ops.moe_op import ck_moe_stage1, ck_moe_stage2
    from aiter.ops.triton.moe import quant_moe
    from aiter.ops.triton.moe.moe_op_gemm_a16w4 import moe_gemm_a16w4, moe_gemm_torch
    from aiter.ops.triton.moe.moe_routing.routing import routing

    x, w1, w2, z, _, _ = make(9, dtype=torch.bfloat16)
    weights, ids = fused_topk(x, z, 2, True)
    want = experts(x, w1, w2, weights, ids)
    x, w1, w2, z, weights, ids = on_gpu(x, w1, w2, z, weights, ids)
    close(fused_moe(x, w1, w2, weights, ids).cpu(), want, 2e-2)
    order = moe_sorting(ids, weights, 8, 64, torch.bfloat16)
    mid = torch.empty(9, 2, 48, dtype=x.dtype, device=x.device)
    ck_moe_stage1(x, w1, w2, order[0], order[2], order[3], mid, 2)
    ck_moe_stage2(mid, w1, w2, order[0], order[2], order[3], order[4], 2, sorted_weights=order[1])
    close(order[4].cpu(), want, 2e-2)
    data, gather, scatter = routing(z, 2)
    w = (torch.randn(8, 64, 96) / 8).float()
    q, s = quant_moe.downcast_to_mxfp(w, torch.uint8, 1)
    wide = quant_moe.upcast_from_mxfp(q, s, torch.float32, 1).cuda()
    got = moe_gemm_a16w4(x, q.cuda(), None, s.cuda(), routing_data=data, gather_indx=gather,
                         scatter_indx=scatter, gammas=data.gate_scal)  # fmt: skip
    close(got.cpu(), moe_gemm_torch(x, wide, None, data, gather, scatter, data.gate_scal).cpu().double(),
          2e-2)  # fmt: skip


def test_generation(capsys):
    pytest.importorskip("transformers", minversion="5.0")
    from cmoe.integrations import transformers as integration
    from test_transformers import build

    integration.register()
    model = build("Qwen3Moe", torch.bfloat16, hidden_size=1024, moe_intermediate_size=512,
                  num_hidden_layers=4, num_experts=32, num_experts_per_tok=8, head_dim=64,
                  num_attention_heads=16).cuda()  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.25 if p.ndim > 1 else 1)  # for a width 16 times that of the other tests
    ids, text, took = torch.arange(3, 27)[None].cuda(), {}, {}
    for name in ("eager", "cmoe"):
        model.set_experts_implementation(name)
        for _ in range(3):
            torch.cuda.synchronize()
            start = time.perf_counter()
            text[name] = model.generate(ids, max_new_tokens=32, do_sample=False)
            torch.cuda.synchronize()
            took[name] = time.perf_counter() - start
    with capsys.disabled():
        print({k: f"{v * 1e3:.0f} ms" for k, v in took.items()})
    with torch.no_grad():
        logits = {}
        for name in ("eager", "cmoe"):
            model.set_experts_implementation(name)
            logits[name] = model(ids).logits.float()
    assert (logits["cmoe"] - logits["eager"]).norm() < 0.05 * logits["eager"].norm()
    assert text["cmoe"].shape == text["eager"].shape
