# SPDX-License-Identifier: MIT
"""torch.ops.cmoe and Layer on torch tensors; the oracle is torch's own arithmetic."""

import pytest

torch = pytest.importorskip("torch")

import cmoe  # noqa: E402

modern = hasattr(torch.library, "register_fake")
operators = pytest.mark.skipif(not modern, reason="operators need torch 2.4")
if modern:
    import cmoe.torch


def moe(x, w1, w2, weights, ids, **options):
    """The operator; on torch without register_fake the function."""
    if modern:
        return torch.ops.cmoe.moe(x, w1, w2, weights, ids, **options)
    return cmoe.moe(x, w1, w2, topk_weights=weights, topk_ids=ids, **options)


F = torch.nn.functional


def make(t=6, e=8, k=2, h=64, i=48, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, z = torch.randn(t, h, generator=g), torch.randn(t, e, generator=g)
    w1 = torch.randn(e, 2 * i, h, generator=g) / h**0.5
    w2 = torch.randn(e, h, i, generator=g) / i**0.5
    weights, ids = z.softmax(-1).topk(k)
    return x.to(dtype), w1.to(dtype), w2.to(dtype), z, weights, ids


def experts(x, w1, w2, weights, ids):
    """In torch's fp64, expert by expert."""
    x, w1, w2 = x.double(), w1.double(), w2.double()
    y = torch.zeros_like(x)
    for e in range(w1.shape[0]):
        t, s = torch.where(ids == e)
        gate, up = F.linear(x[t], w1[e]).chunk(2, -1)
        y.index_add_(0, t, F.linear(F.silu(gate) * up, w2[e]) * weights[t, s, None].double())
    return y


def close(got, want, relative):
    assert want.norm() > 0 and got.shape == want.shape
    assert (got.double() - want).norm() <= relative * want.norm()


@pytest.mark.parametrize("dtype, relative", [
    (torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])  # fmt: skip
@pytest.mark.parametrize("t", [0, 1, 6, 300])
def test_moe(dtype, relative, t):
    x, w1, w2, _, weights, ids = make(t, dtype=dtype)
    y = moe(x, w1, w2, weights, ids)
    assert y.dtype == dtype
    if t:
        close(y, experts(x, w1, w2, weights, ids), relative)


@operators
def test_moe_routed_and_route():
    x, w1, w2, z, weights, ids = make()
    y = torch.ops.cmoe.moe_routed(x, w1, w2, z, 2, "qwen3")
    close(y, experts(x, w1, w2, weights / weights.sum(-1, keepdim=True), ids), 1e-6)
    got_weights, got_ids = torch.ops.cmoe.route(z, 2, "softmax")
    assert torch.equal(got_ids.long(), ids)
    torch.testing.assert_close(got_weights, weights)


def test_layouts():
    """Sliced, transposed and expanded inputs, int32 and int64 ids, bf16 routing weights."""
    x, w1, w2, _, weights, ids = make()
    want = experts(x, w1, w2, weights, ids)
    wide = torch.zeros(6, 100)
    wide[:, 20:84] = x
    padded = torch.zeros(8, 96, 80)
    padded[..., :64] = w1
    calls = [
        (wide[:, 20:84], w1, w2, weights, ids.int()),
        (x.t().contiguous().t(), padded[..., :64], w2, weights, ids),
        (x, w1.mT.contiguous().mT, w2.mT.contiguous().mT, weights.t().contiguous().t(), ids),
    ]
    for call in calls:
        close(moe(*call), want, 1e-6)
    same = x[:1].expand(6, -1)
    close(moe(same, w1, w2, weights, ids), experts(same, w1, w2, weights, ids), 1e-6)


def test_ids_of_nobody_count_as_zero():
    x, w1, w2, _, weights, ids = make()
    ids[0, 0], ids[2], ids[4, 1] = -1, 99, 8
    want = experts(x, w1, w2, weights, ids)
    y = moe(x, w1, w2, weights, ids)
    assert (y[2] == 0).all()
    close(y, want, 1e-6)


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no fp8")
def test_fp8_weights_keep_their_type():
    x, w1, w2, _, weights, ids = make(h=128, i=128, dtype=torch.bfloat16)
    s1, s2 = (w.float().abs().amax(-1) / 448 for w in (w1, w2))
    q1, q2 = ((w.float() / s[..., None]).to(torch.float8_e4m3fn) for w, s in ((w1, s1), (w2, s2)))
    d1, d2 = q1.double() * s1[..., None], q2.double() * s2[..., None]
    y = moe(x, q1, q2, weights, ids, w1_scale=s1, w2_scale=s2, scheme="fp8-w8a16")
    close(y, experts(x, d1, d2, weights, ids), 1e-2)


def test_weights_changed_in_place_count():
    x, w1, w2, _, weights, ids = make()
    moe(x, w1, w2, weights, ids)
    w2.mul_(3)
    close(moe(x, w1, w2, weights, ids), experts(x, w1, w2, weights, ids), 1e-6)


@operators
def test_gradient_is_refused():
    x, w1, w2, _, weights, ids = make()
    y = torch.ops.cmoe.moe(x.requires_grad_(), w1, w2, weights, ids)
    with pytest.raises(RuntimeError, match="for inference and have no gradient"):
        y.sum().backward()
    with torch.no_grad():
        assert not torch.ops.cmoe.moe(x, w1, w2, weights, ids).requires_grad


def test_errors_reach_the_caller():
    x, w1, w2, _, weights, ids = make()
    with pytest.raises(cmoe.InvalidError, match=r"expected \[tokens, 64\]"):
        moe(x[:, :60], w1, w2, weights, ids)
    with pytest.raises(cmoe.InvalidError, match="on meta, but this layer is on cpu"):
        cmoe.Layer(w1, w2)(x.to("meta"), topk_ids=ids, topk_weights=weights)


@operators
@pytest.mark.parametrize("op", ["moe_routed", "route", "layer"])
def test_opcheck(op):
    x, w1, w2, z, weights, ids = make()
    module = cmoe.torch.Experts(w1, w2)
    args = {"moe_routed": (x, w1, w2, z, 2, "qwen3"),
            "route": (z, 2, "softmax"), "layer": (x, module.handle, weights, ids)}[op]  # fmt: skip
    torch.library.opcheck(getattr(torch.ops.cmoe, op), args, test_utils=(
        "test_schema", "test_faketensor", "test_autograd_registration"))  # fmt: skip


@operators
@pytest.mark.parametrize("options", [{}, {"act": "gelu"}])
def test_fake_functions_of_overloads(options):
    """opcheck takes no operator with overloads."""
    x, w1, w2, _, weights, ids = make(dtype=torch.bfloat16)
    op = torch.ops.cmoe.moe.options if options else torch.ops.cmoe.moe.default
    y = op(x, w1, w2, weights, ids, **options)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = op(*(mode.from_tensor(t) for t in (x, w1, w2, weights, ids)), **options)
    assert (fake.shape, fake.dtype, fake.stride()) == (y.shape, y.dtype, y.stride())
    assert y.norm() > 0


@operators
def test_moe_again():
    """Calls of shapes seen before take a short way: other values, layouts, types and gradients."""
    x, w1, w2, _, weights, ids = make(1, dtype=torch.bfloat16)
    for n in range(3):
        close(torch.ops.cmoe.moe(x * n + x, w1, w2, weights, ids),
              experts(x * n + x, w1, w2, weights, ids), 1e-2)  # fmt: skip
    wide = torch.zeros(1, 2, 2)
    wide[..., 0] = weights
    close(torch.ops.cmoe.moe(x, w1, w2, wide[..., 0], ids), experts(x, w1, w2, weights, ids), 1e-2)
    close(torch.ops.cmoe.moe(x, w1, w2, weights.double(), ids), experts(x, w1, w2, weights, ids), 1e-2)
    close(torch.ops.cmoe.moe(x, w1, w2, weights, ids.int()), experts(x, w1, w2, weights, ids), 1e-2)
    w1.mul_(2)  # in place: the same memory, other values
    close(torch.ops.cmoe.moe(x, w1, w2, weights, ids), experts(x, w1, w2, weights, ids), 1e-2)
    y = torch.ops.cmoe.moe(x, w1, w2, weights.requires_grad_(), ids)
    with pytest.raises(RuntimeError, match="for inference"):
        y.sum().backward()


@operators
def test_compile_fullgraph():
    x, w1, w2, z, _, _ = make()
    module = cmoe.torch.Experts(w1, w2)

    def model(x, z):
        weights, ids = torch.ops.cmoe.route(z, 2, "qwen3")
        return module(x * 2, ids, weights) + torch.ops.cmoe.moe(x, w1, w2, weights, ids)

    with torch.no_grad():
        want = model(x, z)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
        torch.testing.assert_close(compiled(x, z), want)
        torch.testing.assert_close(compiled(x[:3], z[:3]), want[:3])
    assert want.abs().max() > 0.1


@operators
def test_module_keeps_any_leading_shape():
    x, w1, w2, _, weights, ids = make()
    module = cmoe.torch.Experts(w1, w2, scheme="int8-w8a16")
    y = module(x.view(2, 3, 64), ids, weights)
    assert y.shape == (2, 3, 64)
    close(y.view(6, 64), experts(x, w1, w2, weights, ids), 0.02)
