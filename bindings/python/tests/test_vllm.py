# SPDX-License-Identifier: MIT
"""Conformance of the experts classes with vLLM's modular kernel: first on a small model of it that
poisons every buffer, then, where vLLM can be imported, inside vLLM's own kernel."""

import enum
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, strategies as st  # noqa: E402

import cmoe  # noqa: E402
from cmoe.integrations import vllm as plugin  # noqa: E402
from cmoe.integrations.vllm import experts, keys  # noqa: E402
from test_torch import close, make  # noqa: E402

F = torch.nn.functional
pytestmark = pytest.mark.filterwarnings("ignore::cmoe.SlowPathWarning")
fp8 = pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no fp8")


class Routing(enum.IntEnum):
    Default = 0
    Renormalize = 1
    RenormalizeNaive = 4


def quant_config(**given):
    names = ("use_fp8_w8a8 use_int8_w8a8 use_int8_w8a16 use_int4_w4a16 ocp_mx_scheme "
             "per_act_token_quant block_shape a1_scale a2_scale w1_scale w2_scale w1_zp w2_zp w1_bias "
             "w2_bias gemm1_alpha gemm1_beta gemm1_clamp_limit weight_quant_dtype")  # fmt: skip
    return SimpleNamespace(**{**dict.fromkeys(names.split()), **given})


def moe_config(**given):
    return SimpleNamespace(**{
        "in_dtype": torch.bfloat16, "device": "cpu", "experts_per_token": 2,
        "routing_method": Routing.Renormalize, "swiglu_limit": None, "swiglu_alpha": None,
        "swiglu_beta": None, "hidden_dim_unpadded": None,
        "intermediate_size_per_partition_unpadded": None, **given})  # fmt: skip


class Base:
    """The constructor of vLLM's FusedMoEExperts."""

    def __init__(self, moe_config, quant_config, max_num_tokens=None, num_dispatchers=None):
        self.moe_config, self.quant_config = moe_config, quant_config
        self.max_num_tokens, self.num_dispatchers = max_num_tokens, num_dispatchers


class Standard(experts.Standard, Base):
    pass


class Batched(experts.Batched, Base):
    pass


class Monolithic(experts.MonolithicW4A8, Base):
    pass


def buffers(e, shapes, dtype):
    """vLLM's: the output lies in workspace 1-3, and everything is dirty."""
    first, second, out = shapes
    item = e.workspace_dtype(dtype)

    def dirty(n):
        return torch.full((n,), float("nan"), dtype=item)

    def count(shape):
        return torch.Size(shape).numel()

    common = dirty(max(count(first), count(out)))
    return common[: count(first)].view(first), dirty(count(second)).view(second), common[
        : count(out)].view(out)  # fmt: skip


def standard(e, x, w1, w2, weights, ids, activation="silu", expert_map=None, on_input=False,
             a1q_scale=None, dtype=None, total=None):  # fmt: skip
    """FusedMoEKernel.apply for one rank: prepare, buffers, apply; NoOP has nothing to reduce."""
    dtype = dtype or x.dtype
    if on_input:
        assert ids.shape[1] == 1
        x = (x * weights).to(x.dtype)
    shapes = e.workspace_shapes(x.shape[0], w1.shape[1], w2.shape[1], ids.shape[1],
                                total or w1.shape[0], w1.shape[0], None, activation)  # fmt: skip
    assert shapes[2] == (x.shape[0], w2.shape[1])
    first, second, out = buffers(e, shapes, dtype)
    e.apply(out, x, w1, w2, weights, ids, activation, total or w1.shape[0], expert_map, a1q_scale,
            None, first, second, None, on_input)  # fmt: skip
    return out


def formula(x, w1, w2, weights, ids, f=None, local=None):
    """fp64; ids without a local expert contribute nothing."""
    f = f or (lambda h: F.silu(h.chunk(2)[0]) * h.chunk(2)[1])
    y = torch.zeros(x.shape[0], w2.shape[1], dtype=torch.float64)
    for t in range(x.shape[0]):
        for s in range(ids.shape[1]):
            e = int(ids[t, s])
            e = e if local is None or e < 0 else int(local[e])
            if e >= 0:
                y[t] += w2[e].double() @ f(w1[e].double() @ x[t].double()) * weights[t, s].double()
    return y


@pytest.mark.parametrize("ids_type", [torch.int32, torch.int64])
def test_padding_rows(ids_type):
    """Rows of ids -1 may hold NaN, and come out as exact zeros."""
    x, w1, w2, _, weights, ids = make(9, dtype=torch.bfloat16)
    x[4:6], ids[4:6], weights[4:6] = float("nan"), -1, float("nan")
    out = standard(Standard(moe_config(), quant_config()), x, w1, w2, weights, ids.to(ids_type))
    assert (out[4:6] == 0).all()
    close(out, formula(x, w1, w2, weights, ids), 1e-2)


def test_expert_map():
    """Maps with repeats, gaps and experts of other ranks."""
    x, w1, w2, z, weights, ids = make(11, e=8, k=3, dtype=torch.bfloat16)
    local = torch.tensor([-1, 2, 0, -1, 1, 2, -1, 0], dtype=torch.int32)
    out = standard(Standard(moe_config(), quant_config()), x, w1[:3], w2[:3], weights, ids,
                   expert_map=local, total=8)  # fmt: skip
    close(out, formula(x, w1[:3], w2[:3], weights, ids, local=local), 1e-2)
    none = torch.full((8,), -1, dtype=torch.int32)
    assert (standard(Standard(moe_config(), quant_config()), x, w1[:3], w2[:3], weights, ids,
                     expert_map=none, total=8) == 0).all()  # fmt: skip


@given(t=st.integers(1, 20), e=st.integers(1, 9), k=st.integers(1, 4), local=st.integers(1, 5),
       seed=st.integers(0, 999), data=st.data())  # fmt: skip
def test_any_map_and_any_ids(t, e, k, local, seed, data):
    """Ids that are negative, too large or twice in a row, and arbitrary maps."""
    x, w1, w2, *_ = make(t, local, 1, 16, 8, torch.float32, seed)
    numbers = st.lists(st.integers(-2, e + 1), min_size=t * k, max_size=t * k)
    ids = torch.tensor(data.draw(numbers)).view(t, k)
    table = torch.tensor(data.draw(st.lists(st.integers(-1, local - 1), min_size=max(e, k),
                                            max_size=max(e, k))), dtype=torch.int32)  # fmt: skip
    weights = torch.rand(t, k, generator=torch.Generator().manual_seed(seed))
    kernel = Standard(moe_config(in_dtype=torch.float32), quant_config())
    out = standard(kernel, x, w1, w2, weights, ids, expert_map=table, total=table.numel())
    known = torch.where((ids >= 0) & (ids < table.numel()), ids, -1)
    want = formula(x, w1, w2, weights, known, local=table)
    torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-5)


def test_router_weight_on_input():
    x, w1, w2, _, weights, ids = make(7, k=1, dtype=torch.bfloat16)
    out = standard(Standard(moe_config(), quant_config()), x, w1, w2, weights, ids, on_input=True)
    scaled = (x * weights).to(x.dtype)
    close(out, formula(scaled, w1, w2, torch.ones_like(weights), ids), 1e-2)


def test_activations():
    x, w1, w2, _, weights, ids = make(5, dtype=torch.float32)
    e = Standard(moe_config(in_dtype=torch.float32, swiglu_limit=1.5), quant_config())

    def oai(h, limit=1.5):
        g, u = h[::2].clamp(max=limit), h[1::2].clamp(-limit, limit)
        return g * torch.sigmoid(1.702 * g) * (u + 1)

    close(standard(e, x, w1, w2, weights, ids, "swigluoai"), formula(x, w1, w2, weights, ids, oai), 1e-5)
    e = Standard(moe_config(in_dtype=torch.float32), quant_config())
    close(standard(e, x, w1[:, :48], w2, weights, ids, "relu2_no_mul"),
          formula(x, w1[:, :48], w2, weights, ids, lambda h: F.relu(h) ** 2), 1e-5)  # fmt: skip
    for name in ("silu", "gelu", "gelu_tanh", "swigluoai_uninterleave", "situ", "silu_no_mul"):
        assert Standard._supports_activation(SimpleNamespace(value=name))
    assert not Standard._supports_activation("swiglustep")


def test_results_of_16_bits_are_allowed():
    assert "reduced" in experts.options("silu", moe_config(), quant_config()).split()


def test_batch_invariance(monkeypatch):
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    x, w1, w2, _, weights, ids = make(64, dtype=torch.bfloat16)
    e = Standard(moe_config(), quant_config())
    whole = standard(e, x, w1, w2, weights, ids)
    one = standard(e, x[7:8].clone(), w1, w2, weights[7:8], ids[7:8])
    assert torch.equal(whole[7:8], one) and one.abs().max() > 0


def test_no_tokens():
    x, w1, w2, _, weights, ids = make(0, dtype=torch.bfloat16)
    out = torch.empty_like(x)
    Standard(moe_config(), quant_config()).apply(
        out, x, w1, w2, weights, ids, "silu", 8, None, None, None, None, None, None, False)  # fmt: skip


def quantized(w, scale_shape):
    amax = w.float().abs().amax(-1, keepdim=True) if scale_shape == "channel" else (
        w.float().abs().amax((1, 2), keepdim=True))  # fmt: skip
    scale = amax / 448
    return (w.float() / scale).to(torch.float8_e4m3fn), scale


@fp8
def test_fp8_inputs_quantized_by_the_host():
    """Per token and channel: the same from bf16 rows and from codes with a1q_scale."""
    x, w1, w2, _, weights, ids = make(6, dtype=torch.bfloat16)
    (q1, s1), (q2, s2) = quantized(w1, "channel"), quantized(w2, "channel")
    q = quant_config(use_fp8_w8a8=True, per_act_token_quant=True, w1_scale=s1, w2_scale=s2,
                     weight_quant_dtype=torch.float8_e4m3fn)  # fmt: skip
    e = Standard(moe_config(), q)
    out = standard(e, x, q1, q2, weights, ids)
    close(out, formula(x, q1.float() * s1, q2.float() * s2, weights, ids), 0.06)
    xs = x.float().abs().amax(1, keepdim=True) / 448
    codes = (x.float() / xs).to(torch.float8_e4m3fn)
    again = standard(e, codes, q1, q2, weights, ids, a1q_scale=xs, dtype=torch.bfloat16)
    close(again, out.double(), 1e-2)


@pytest.mark.parametrize("quantised", [False, pytest.param(True, marks=fp8)])
def test_batched(quantised):
    g = torch.Generator().manual_seed(3)
    _, w1, w2, *_ = make(1, e=4, dtype=torch.bfloat16)
    x = torch.randn(4, 6, 64, generator=g).bfloat16()
    counts = torch.tensor([6, 0, 1, 3], dtype=torch.int32)
    for n in range(4):
        x[n, counts[n] :] = float("nan")
    config, args, scale = quant_config(), (w1, w2), None
    wide = (w1, w2)
    if quantised:
        (q1, s1), (q2, s2) = quantized(w1, "channel"), quantized(w2, "channel")
        config = quant_config(use_fp8_w8a8=True, per_act_token_quant=True, w1_scale=s1, w2_scale=s2,
                              weight_quant_dtype=torch.float8_e4m3fn)  # fmt: skip
        args, wide = (q1, q2), (q1.float() * s1, q2.float() * s2)
    e = Batched(moe_config(), config, max_num_tokens=3, num_dispatchers=2)
    live = x
    if quantised:
        scale = x.float().abs().amax(2, keepdim=True) / 448
        live = (x.float() / scale).to(torch.float8_e4m3fn)
    shapes = e.workspace_shapes(6, w1.shape[1], 64, 2, 4, 4, None, "silu")
    assert shapes[2] == (4, 6, 64)
    first, second, out = buffers(e, shapes, torch.bfloat16)
    meta = SimpleNamespace(expert_num_tokens=counts)
    e.apply(out, live, *args, None, torch.zeros(3, 2), "silu", 4, None, scale, None, first, second,
            meta, False)  # fmt: skip
    for n, rows in enumerate(counts.tolist()):
        if rows:
            ids = torch.full((rows, 1), n)
            close(out[n, :rows], formula(x[n, :rows], *wide, torch.ones(rows, 1), ids),
                  0.06 if quantised else 1e-2)  # fmt: skip
        assert out[n, rows:].isnan().all()


def mxfp4(w):
    q = cmoe.quantize(w.float(), "e2m1/mx32")
    return q.data, q.scale.view(torch.uint8), cmoe.dequantize(q, "e2m1/mx32")


@fp8
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("on_input", [False, True])
def test_monolithic_w4a8(renormalize, on_input):
    """8 rows of which 7 are real; the padding row's NaN reaches nobody. Oracle: AITER's steps."""
    g = torch.Generator().manual_seed(0)
    m, e, k, h, i = 8, 8, 4, 128, 64
    x = torch.randn(m, h, generator=g).bfloat16()
    z = torch.randn(m, e, generator=g).bfloat16()
    x[7], z[7] = float("nan"), float("inf")
    w1, w2 = torch.randn(e, 2 * i, h, generator=g) / 11, torch.randn(e, h, i, generator=g) / 8
    b1, b2 = torch.randn(e, 2 * i, generator=g) / 4, torch.randn(e, h, generator=g) / 4
    (q1, s1, d1), (q2, s2, d2) = mxfp4(w1), mxfp4(w2)
    a1, a2 = torch.full((e,), 0.01), torch.tensor(0.02)
    method = Routing.Renormalize if renormalize else Routing.Default
    config = moe_config(experts_per_token=k, routing_method=method)
    q = quant_config(w1_scale=s1, w2_scale=s2, a1_scale=a1, a2_scale=a2, w1_bias=b1, w2_bias=b2)
    got = Monolithic(config, q).apply(x, q1, q2, z, "swigluoai", e, None, None, on_input)

    def static(v, s):
        return (v / s).clamp(-448, 448).float().to(torch.float8_e4m3fn).double() * s.double()

    want = torch.zeros(m, h, dtype=torch.float64)
    scores = z.double() if renormalize else z.double().softmax(-1)
    weights, ids = scores[:7].topk(k)
    weights = weights.softmax(-1) if renormalize else weights
    for t in range(7):
        for s in range(k):
            n, r = int(ids[t, s]), weights[t, s]
            v = d1[n].double() @ static(x[t].double(), a1[0]) + b1[n].double()
            gate, up = v[::2].clamp(max=7), v[1::2].clamp(-7, 7)
            mid = gate * torch.sigmoid(1.702 * gate) * (up + 1) * (r if on_input else 1)
            v = d2[n].double() @ static(mid, a2) + b2[n].double()
            want[t] += v if on_input else v * r
    assert got.dtype == torch.bfloat16
    close(got[:7], want[:7], 0.02)


def key(dtype, group, static, scale=torch.float32, symmetric=True):
    return SimpleNamespace(dtype=dtype, scale2=None, symmetric=symmetric, scale=SimpleNamespace(
        dtype=scale, static=static, group_shape=group))  # fmt: skip


@fp8
def test_quantisation_keys():
    e4m3, u8 = torch.float8_e4m3fn, torch.uint8
    block, g128 = key(e4m3, (128, 128), True), key(e4m3, (1, 128), False)
    tensor, token = key(e4m3, (-1, -1), True), key(e4m3, (1, -1), False)
    mx = key(u8, (1, 32), True, u8)
    assert keys.words_of_keys(None, None) == ""
    assert keys.words_of_keys(block, g128) == "x=e4m3/g128 w=e4m3/b128 mid=e4m3/g128"
    assert keys.words_of_keys(mx, None) == "w=e2m1/mx32"
    assert Standard._supports_quant_scheme(tensor, key(e4m3, (-1, -1), False))
    assert Standard._supports_quant_scheme(tensor, token)
    assert Monolithic._supports_quant_scheme(mx, tensor)
    for bad in ((block, token), (block, None), (tensor, key(torch.int8, (1, -1), False)),
                (key(torch.int8, (-1, 1), True, symmetric=False), token)):  # fmt: skip
        assert not Standard._supports_quant_scheme(*bad)
    assert not Monolithic._supports_quant_scheme(mx, None)
    assert not Monolithic._supports_routing_method(Routing.Default, mx, tensor)
    assert Monolithic._supports_routing_method(Routing.RenormalizeNaive, mx, tensor)


def test_plugin_is_opt_in(monkeypatch):
    monkeypatch.delenv("CMOE_VLLM", raising=False)
    assert plugin.register() == []
    with pytest.raises(AttributeError, match="Nothing"):
        plugin.Nothing  # noqa: B018


# --- inside vLLM ---


@pytest.fixture(scope="module")
def vllm():
    return pytest.importorskip("vllm.model_executor.layers.fused_moe.modular_kernel")


def vllm_config(dtype=torch.bfloat16, **given):
    from vllm.model_executor.layers.fused_moe import config
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation

    return config.FusedMoEConfig(**{
        "num_experts": 8, "experts_per_token": 2, "hidden_dim": 64, "intermediate_size": 48,
        "num_local_experts": 8, "num_logical_experts": 8, "activation": MoEActivation.SILU,
        "device": "cpu", "routing_method": config.RoutingMethodType.Renormalize, "in_dtype": dtype,
        "moe_parallel_config": config.FusedMoEParallelConfig.make_no_parallel(), **given})  # fmt: skip


def test_in_vllms_kernel(vllm, monkeypatch):
    """cmoe's class in vLLM's own FusedMoEKernel, with its prepare and finalize."""
    from vllm.model_executor.layers.fused_moe.config import FUSED_MOE_UNQUANTIZED_CONFIG
    from vllm.model_executor.layers.fused_moe.prepare_finalize import no_dp_ep

    monkeypatch.setattr(vllm.current_platform, "is_cpu", lambda: True)  # no workspace manager
    x, w1, w2, _, weights, ids = make(9, dtype=torch.bfloat16)
    x[3], ids[3] = float("nan"), -1
    prepare = next(c for n, c in vars(no_dp_ep).items() if n.endswith("Modular") and "NoDPEP" in n)
    kernel = vllm.FusedMoEKernel(
        prepare(), plugin.CmoeExperts(vllm_config(), FUSED_MOE_UNQUANTIZED_CONFIG))  # fmt: skip
    out = kernel.apply(x, w1, w2, weights, ids.int(), vllm_config().activation, 8, None, False)
    close(out, formula(x, w1, w2, weights, ids), 1e-2)


def test_vllms_questions(vllm):
    """is_supported_config with vLLM's own keys."""
    from vllm.model_executor.layers.quantization.utils import quant_utils as k

    form = vllm.FusedMoEActivationFormat
    for cls, fmt in ((plugin.CmoeExperts, form.Standard), (plugin.CmoeBatchedExperts,
                                                           form.BatchedExperts)):  # fmt: skip
        for pair in ((None, None), (k.kFp8Static128BlockSym, k.kFp8Dynamic128Sym),
                     (k.kFp8StaticChannelSym, k.kFp8DynamicTokenSym),
                     (k.kFp8StaticTensorSym, k.kFp8StaticTensorSym),
                     (k.kInt8StaticChannelSym, k.kInt8DynamicTokenSym)):  # fmt: skip
            assert cls.is_supported_config(cls, vllm_config(), *pair, fmt) == (True, None), pair
    mono = plugin.CmoeW4A8ExpertsMonolithic
    assert mono._supports_quant_scheme(k.kMxfp4Static, k.kFp8StaticTensorSym)
    assert mono.is_monolithic() and not plugin.CmoeExperts.is_monolithic()
    for cls in (plugin.CmoeExperts, plugin.CmoeBatchedExperts, mono):
        assert not cls.__abstractmethods__


def test_vllms_oracles_ask_cmoe_first(vllm):
    oracle = pytest.importorskip("vllm.model_executor.layers.fused_moe.oracle.unquantized")
    before = oracle.backend_to_kernel_cls
    try:
        assert "unquantized" in plugin.register(force=True)
        plugin.register(force=True)
        found = oracle.backend_to_kernel_cls(oracle.UnquantizedMoeBackend.BATCHED_TRITON)
        assert [c.__name__ for c in found[:2]] == ["CmoeExperts", "CmoeBatchedExperts"]
        assert not any(c.__name__.startswith("Cmoe") for c in found[2:])
    finally:
        oracle.backend_to_kernel_cls = before
