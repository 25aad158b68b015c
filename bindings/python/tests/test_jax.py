# SPDX-License-Identifier: MIT
"""cmoe.jax: the C handlers inside jitted programs; the oracle is fp64 NumPy."""

import subprocess
import sys
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
jax = pytest.importorskip("jax")
pytest.importorskip("jax.ffi")
jnp = jax.numpy

import cmoe.jax  # noqa: E402
import oracles  # noqa: E402
from test_layer import make  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::cmoe.SlowPathWarning")


def devices():
    found = [jax.devices("cpu")[0]]
    try:
        found += jax.devices("cuda")[:1]
    except RuntimeError:
        pass
    return found


@pytest.fixture(params=devices(), ids=lambda d: d.platform)
def put(request):
    with jax.default_device(request.param):
        yield lambda *arrays: [jax.device_put(a, request.param) for a in arrays]


@pytest.mark.parametrize("dtype, relative", [("float32", 1e-5), ("float16", 3e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("t", [1, 7, 40])
def test_routed_by_the_caller(put, dtype, relative, t):
    x, w1, w2, _, weights, ids = make(t)
    want = oracles.experts(x, w1, w2, weights, ids)
    x, w1, w2 = (jnp.asarray(a, dtype) for a in put(x, w1, w2))
    weights, ids = put(weights, ids)
    layer = cmoe.jax.Layer(*put(w1, w2))

    @jax.jit
    def program(x, ids, weights):
        return 2 * layer(x, topk_ids=ids, topk_weights=weights)

    for _ in range(3):  # results lie in memory that XLA has used before
        y = program(x, ids, weights)
        assert y.dtype == x.dtype
        oracles.close(np.asarray(y, np.float64) / 2, want, relative)
    oracles.close(np.asarray(layer(x, topk_ids=ids, topk_weights=weights), np.float64), want, relative)


def test_router(put):
    x, w1, w2, z, _, _ = make(9)
    p = oracles.softmax(z.astype(np.float64))
    ids = oracles.top(p, 2)
    weights = np.take_along_axis(p, ids, -1)
    weights /= weights.sum(-1, keepdims=True)
    layer = cmoe.jax.Layer(*put(w1, w2), topk=2, router="qwen3")
    got = jax.jit(layer)(*put(x, z))
    oracles.close(np.asarray(got), oracles.experts(x, w1, w2, weights, ids), 1e-5)


def test_padding_ids_and_expert_map(put):
    x, w1, w2, _, weights, ids = make(9)
    ids[2] = -1
    local = np.array([-1, 1, 0, -1, 2, -1, -1, 2], np.int32)
    layer = cmoe.jax.Layer(*put(w1[:3], w2[:3]), expert_map=put(local)[0])
    got = jax.jit(lambda *a: layer(a[0], topk_ids=a[1], topk_weights=a[2]))(*put(x, ids, weights))
    mapped = np.where(ids >= 0, local[ids], -1)
    oracles.close(np.asarray(got), oracles.experts(x, w1[:3], w2[:3], weights, mapped), 1e-5)
    assert (np.asarray(got)[2] == 0).all()


@pytest.fixture
def on_cpu():
    with jax.default_device(jax.devices("cpu")[0]):
        yield


def test_schemes(on_cpu):
    x, w1, w2, _, weights, ids = make(6, h=128, i=128)
    want = oracles.experts(x, w1, w2, weights, ids)
    for scheme in ("fp8-block:f32", "int4-w4a16:f32", "mxfp4-w4a16:f32"):
        layer = cmoe.jax.Layer(w1, w2, scheme=scheme)
        got = jax.jit(lambda *a: layer(a[0], topk_ids=a[1], topk_weights=a[2]))(x, ids, weights)
        oracles.close(np.asarray(got), want, 0.25)


def test_transformations(on_cpu):
    x, w1, w2, _, weights, ids = make(4)
    layer = cmoe.jax.Layer(w1, w2)

    def call(x, weights):
        return layer(x, topk_ids=jnp.asarray(ids), topk_weights=weights)

    both = jax.vmap(call)(jnp.stack((x, 3 * x)), jnp.stack((weights, weights)))
    for n, scale in enumerate((1, 3)):
        oracles.close(np.asarray(both[n]), oracles.experts(scale * x, w1, w2, weights, ids), 1e-5)

    def body(carry, _):
        return carry + call(carry, weights), None

    deep = jax.jit(lambda x: jax.lax.scan(body, x, None, length=2)[0])(jnp.asarray(x))
    once = x + oracles.experts(x, w1, w2, weights, ids)
    oracles.close(np.asarray(deep), once + oracles.experts(once, w1, w2, weights, ids), 1e-5)
    with pytest.raises(ValueError, match="differentiated"):
        jax.grad(lambda x: call(x, weights).sum())(jnp.asarray(x))


def test_errors(monkeypatch, on_cpu):
    x, w1, w2, z, weights, ids = make(4)
    layer = cmoe.jax.Layer(w1, w2)
    with pytest.raises(cmoe.InvalidError, match=r"x has shape \[4, 63\]"):
        layer(x[:, :63], topk_ids=ids, topk_weights=weights)
    with pytest.raises(cmoe.InvalidError, match="made with topk="):
        layer(x, z)
    for device in devices()[1:]:
        with pytest.raises(Exception, match="another kind of device"):
            layer(*(jax.device_put(a, device) for a in (x,)), topk_ids=jax.device_put(ids, device),
                  topk_weights=jax.device_put(weights, device)).block_until_ready()  # fmt: skip
    monkeypatch.setattr(cmoe.jax, "_session", 12345)
    with pytest.raises(Exception, match="compiled in another process"):
        layer(x, topk_ids=ids, topk_weights=weights)[0].block_until_ready()


PAIRS = {
    "xla_version": ("XLA_FFI_Api_Version", {"major": "major_version", "minor": "minor_version"}),
    "xla_metadata": ("XLA_FFI_Metadata", {"version": "api_version", "traits": "traits"}),
    "xla_metadata_extension": ("XLA_FFI_Metadata_Extension", {"metadata": "metadata"}),
    "xla_error_args": ("XLA_FFI_Error_Create_Args", {"message": "message", "code": "errc"}),
    "xla_stream_args": ("XLA_FFI_Stream_Get_Args", {"context": "ctx", "stream": "stream"}),
    "xla_api": ("XLA_FFI_Api", {"version": "api_version", "error_create": "XLA_FFI_Error_Create",
                                "stream_get": "XLA_FFI_Stream_Get"}),
    "xla_buffer": ("XLA_FFI_Buffer", {"type": "dtype", "data": "data", "rank": "rank", "dims": "dims"}),
    "xla_list": ("XLA_FFI_Args", {"size": "size", "types": "types", "items": "args"}),
    "xla_array": ("XLA_FFI_Array", {"type": "dtype", "size": "size", "data": "data"}),
    "xla_text": ("XLA_FFI_ByteSpan", {"text": "ptr", "len": "len"}),
    "xla_attributes": ("XLA_FFI_Attrs", {"size": "size", "names": "names", "items": "attrs"}),
    "xla_call": ("XLA_FFI_CallFrame", {"api": "api", "context": "ctx", "args": "args",
                                       "results": "rets", "attributes": "attrs"}),
}  # fmt: skip
NUMBERS = {
    "XLA_S32": "XLA_FFI_DataType_S32", "XLA_S64": "XLA_FFI_DataType_S64",
    "XLA_BF16": "XLA_FFI_DataType_BF16", "XLA_E4M3": "XLA_FFI_DataType_F8E4M3FN",
    "XLA_INVALID_ARGUMENT": "XLA_FFI_Error_Code_INVALID_ARGUMENT",
    "XLA_INTERNAL": "XLA_FFI_Error_Code_INTERNAL", "XLA_ATTRIBUTE_ARRAY": "XLA_FFI_AttrType_ARRAY",
    "XLA_EXTENSION_METADATA": "XLA_FFI_Extension_Metadata",
    "XLA_TRAIT_COMMAND_BUFFER": "XLA_FFI_HANDLER_TRAITS_COMMAND_BUFFER_COMPATIBLE",
}  # fmt: skip


def test_declarations_fit_jaxlibs_header(tmp_path):
    """Our declarations of the interface against the ones that jaxlib brings."""
    root = Path(__file__).resolve().parents[3]
    include = Path(jax.ffi.include_dir())
    lines = ["#include <stdbool.h>", "#include <xla/ffi/api/c_api.h>", '#include "ffi.h"']
    for mine, (theirs, fields) in PAIRS.items():
        for a, b in fields.items():
            lines.append(f'_Static_assert(offsetof(struct {mine}, {a}) == offsetof({theirs}, {b}), '
                         f'"{mine}.{a}");')  # fmt: skip
    lines += [f'_Static_assert((int){a} == (int){b}, "{a}");' for a, b in NUMBERS.items()]
    source = tmp_path / "check.c"
    source.write_text("\n".join(lines) + "\nint main(void) { return 0; }\n")
    done = subprocess.run(["cc", "-std=c11", "-fsyntax-only", f"-I{include}",
                           f"-I{root / 'bindings' / 'xla'}", source],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(lines) > 40


def test_a_layer_outlives_its_name():
    """A compiled program keeps the layers that it was traced with."""
    code = """if True:
        import gc, jax, numpy as np, cmoe.jax
        jax.config.update("jax_default_device", jax.devices("cpu")[0])
        w1, w2 = np.ones((2, 8, 4), np.float32), np.ones((2, 4, 4), np.float32)
        x, w = np.ones((3, 4), np.float32), np.ones((3, 1), np.float32)
        ids = np.zeros((3, 1), np.int32)
        f = jax.jit(lambda x: cmoe.jax.Layer(w1, w2)(x, topk_ids=ids, topk_weights=w))
        first = np.asarray(f(x)); gc.collect()
        assert (np.asarray(f(x)) == first).all() and abs(first[0, 0] - 62.84) < 0.1, first
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(cmoe.__file__).parents[1])
