# SPDX-License-Identifier: MIT
"""Printed snippets run as they are: every ```python block of the texts in the folder CMOE_GUIDE.

The texts belong to other projects and are not part of this repository; the calls they make are tested
with values in test_compat_aiter.py. Here a block runs over tensors of the names that it uses. Blocks
that are no complete Python (a lone ``return``, a function of comments) are skipped as such.
"""

import os
import re
import runpy
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from test_compat_aiter import F, close, compat, layer, make  # noqa: E402

FOLDER = os.environ.get("CMOE_GUIDE")
BLOCKS = []
for path in sorted(Path(FOLDER).glob("*")) if FOLDER else ():
    found = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
    BLOCKS += [(f"{path.name[:3]}-{n}", code) for n, code in enumerate(found)]
pytestmark = pytest.mark.filterwarnings("ignore::cmoe.SlowPathWarning")


def names():
    """What the blocks take for granted."""
    from aiter import ActivationType, QuantType
    from aiter.fused_moe import fused_moe, fused_topk
    from aiter.ops.quant import per_1x32_f4_quant

    x, w1, w2, z = make(h=128, i=128)
    weights, ids = fused_topk(x, z, 2, True)
    made = dict(torch=torch, hidden_states=x, gating_output=z, w1=w1, w2=w2, topk_weights=weights,
                topk_ids=ids, device="cpu", global_num_experts=8, local_start=0, local_end=8,
                world_size=1, rank=0, output_buffer=torch.zeros_like(x), fused_moe=fused_moe,
                ActivationType=ActivationType, QuantType=QuantType, router_weight=torch.randn(8, 128),
                softmax=lambda v: v.float().softmax(-1), topk=torch.topk)  # fmt: skip
    if hasattr(torch, "float8_e4m3fn"):
        for n, w in (("1", w1.float()), ("2", w2.float())):
            e, r, c = w.shape
            scale = w.view(e, r // 128, 128, c // 128, 128).abs().amax((2, 4)) / 448
            wide = scale.repeat_interleave(128, 1).repeat_interleave(128, 2)
            made[f"w{n}_fp8"], made[f"fc{n}_block_scale"] = (w / wide).to(torch.float8_e4m3fn), scale
    for n, w in (("1", w1), ("2", w2)):
        made[f"w{n}_mxfp4"], made[f"fc{n}_e8m0_scale"] = per_1x32_f4_quant(w.float())
    made["router_weight"] = made["router_weight"].to(x.dtype)
    return made


@pytest.mark.skipif(not BLOCKS, reason="CMOE_GUIDE names no folder of texts")
@pytest.mark.parametrize("name, code", BLOCKS, ids=[n for n, _ in BLOCKS])
def test_block(name, code, tmp_path, monkeypatch):
    compat.install()
    try:
        compile(code, name, "exec")
    except SyntaxError as error:
        pytest.skip(f"{name} is no complete Python: {error.msg}, line {error.lineno}")
    for module in re.findall(r"^import (\w+)", code, re.M):
        pytest.importorskip(module)
    given = names()
    if "fp8" in code and "w1_fp8" not in given:
        pytest.skip("this torch has no fp8")
    file = tmp_path / "block.py"
    file.write_text(code, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [str(file)])
    if "triton" in code and "import triton" not in code:  # continues the block before it
        triton = pytest.importorskip("triton")
        given["triton"] = triton
    left = runpy.run_path(str(file), init_globals={**given, "pytest": pytest})
    output = left.get("output")
    if output is not None:
        x, w1, w2 = (given[n] for n in ("hidden_states", "w1", "w2"))
        weights, ids = left["topk_weights"], left.get("topk_indices", left["topk_ids"])
        if "share_expert" in code:
            ids = torch.arange(8).repeat(x.shape[0], 1)
            weights = torch.ones(ids.shape)
        relative = 0.4 if "fp4" in code else 0.1
        close(output, layer(x, w1, w2, weights, ids), relative)


def test_kernel_names_and_grids():
    """What printed Triton kernels import: names for a specialisation, tiles in groups of rows."""
    from aiter.ops.triton.utils._triton.kernel_repr import make_kernel_repr
    from aiter.ops.triton.utils._triton.pid_preprocessing import pid_grid, remap_xcd

    spec = type("S", (), {"constants": {"BLOCK_SIZE_M": 64, "EVEN_K": True}})
    assert make_kernel_repr("_k", ["BLOCK_SIZE_M", "EVEN_K"])(spec) == "_k_BLOCK_SIZE_M_64_EVEN_K_True"
    tiles = [pid_grid(remap_xcd(p, 15), 5, 3, 2) for p in range(15)]
    assert sorted(tiles) == [(m, n) for m in range(5) for n in range(3)]
    assert tiles[:4] == [(0, 0), (1, 0), (0, 1), (1, 1)] and tiles[12:] == [(4, 0), (4, 1), (4, 2)]


def test_activation_operators():
    from aiter.ops.activation import gelu_and_mul_bias, silu_and_mul, swiglu_and_mul

    g = torch.Generator().manual_seed(0)
    x, bias = torch.randn(5, 16, generator=g) * 3, torch.randn(4, 16, generator=g)
    out = torch.empty(5, 8)
    silu_and_mul(out, x, 1.5)
    gate, up = x.chunk(2, -1)
    torch.testing.assert_close(out, F.silu(gate.clamp(max=1.5)) * up.clamp(-1.5, 1.5))
    swiglu_and_mul(out, x)
    gate = gate.clamp(max=7)
    torch.testing.assert_close(out, gate * (1.702 * gate).sigmoid() * (up.clamp(-7, 7) + 1))
    ids = torch.tensor([3, -1, 0, 0, 2], dtype=torch.int32)
    gelu_and_mul_bias(out, x, ids, bias)
    gate, up = (x + bias[ids.long()]).chunk(2, -1)
    want = F.gelu(gate) * up
    want[1] = 0
    torch.testing.assert_close(out, want)
