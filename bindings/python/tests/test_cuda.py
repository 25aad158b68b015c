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


def test_generation(capsys):
    pytest.importorskip("transformers", minversion="5.0")
    from cmoe.integrations import transformers as integration
    from test_transformers import build

    integration.register()
    model = build("Qwen3Moe", torch.bfloat16).cuda()
    ids, text, took = torch.arange(3, 27)[None].cuda(), {}, {}
    for name in ("eager", "cmoe"):
        model.set_experts_implementation(name)
        for _ in range(2):
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
    assert (logits["cmoe"] - logits["eager"]).norm() < 0.03 * logits["eager"].norm()
    assert text["cmoe"].shape == text["eager"].shape
