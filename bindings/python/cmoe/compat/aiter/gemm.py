# SPDX-License-Identifier: MIT
"""AITER's family C: moe_gemm_*, one grouped GEMM over rows sorted by expert.

w [E, K, N] (4-bit types [E, K/2, N]), gate in even columns and up in odd ones. Rows of x are gathered
by token, or sorted already; with scatter_indx the k rows of a token are summed in slot order. Order:
scales, bias, swiglu, gammas, static quantisation. Source: aiter/ops/triton/moe/moe_op_gemm_*.py,
reduce.py.
"""

import torch

from ... import tensors
from ...errors import InvalidError
from ...functions import quantize
from ..common import grouped_gemm


def _swiglu(h, alpha, limit, residual):
    gate, up = h[..., ::2], h[..., 1::2]
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1 if residual else up)


def reduce_grouped(x, indx, out=None, apply_swiglu=False, alpha=1.0, limit=1.0, reduction_n=1,
                   out_dtype=None, swiglu_add_residual=True, residual=None):  # fmt: skip
    """[M, N]: row m is the fp32 sum, in slot order, of x[indx[m]] where indx [M, k] is not -1."""
    rows = indx.long().view(-1, indx.shape[-1])
    picked = x.float()[rows.clamp(min=0)] * (rows >= 0)[..., None]
    y = picked.sum(1)
    if apply_swiglu:
        y = _swiglu(y, alpha, limit, swiglu_add_residual)
    if residual is not None:
        y = y + residual.float()
    y = y.to(out_dtype or x.dtype)
    return y if out is None else out.copy_(y)


def _experts_of_rows(data, device):
    hist = data.expt_hist.long().to(device)
    return torch.repeat_interleave(torch.arange(hist.numel(), device=device), hist)


def _moe_gemm(x, w, words, x_scale, w_scale, *, bias=None, routing_data=None, gather_indx=None,
              scatter_indx=None, gammas=None, out_dtype=torch.bfloat16, swiglu=None,
              quant_static_scale=None, out_mx_quant=False, residual=None):  # fmt: skip
    if routing_data is None:
        raise InvalidError("moe_gemm needs routing_data: it says whose rows are whose")
    owner = _experts_of_rows(routing_data, x.device)
    k = routing_data.n_expts_act
    if gather_indx is not None:
        tokens = gather_indx.long() // k
        per_row = x_scale is not None and x_scale.shape[:1] == x.shape[:1] and x_scale.numel() > 1
        x = x.view(torch.uint8)[tokens].view(x.dtype) if x.element_size() == 1 else x[tokens]
        x_scale = x_scale[tokens] if per_row else x_scale
    rows = x.shape[0]
    if owner.numel() != rows:
        raise InvalidError(f"{rows} rows, but the routing data have {owner.numel()}")
    order = torch.arange(rows, dtype=torch.int32, device=x.device)
    count = torch.tensor([rows], dtype=torch.int32, device=x.device)
    h = grouped_gemm(x.contiguous(), w.transpose(1, 2), words, order, owner.int(), count, 1, block_m=1,
                     a_scale=x_scale, b_scale=w_scale)  # fmt: skip
    if bias is not None:
        h = h + bias[owner].float()
    if swiglu is not None:
        h = _swiglu(h, *swiglu)
    if gammas is not None:
        h = h * gammas.reshape(-1, 1).float()
    if quant_static_scale is not None:
        return (h / quant_static_scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    if out_mx_quant:
        q = quantize(h, "e4m3/mx32", activations=True)
        return q.data, q.scale.view(torch.uint8)
    if scatter_indx is None:
        return h.to(out_dtype)
    return reduce_grouped(h, scatter_indx.view(-1, k), out_dtype=out_dtype, residual=residual)


def _options(given):
    """The arguments that all of them share; hints for AMD's kernels are dropped."""
    kept = ("bias", "routing_data", "gather_indx", "scatter_indx", "gammas", "quant_static_scale",
            "out_mx_quant", "residual")  # fmt: skip
    made = {name: given[name] for name in kept if name in given}
    made["out_dtype"] = given.get("out_dtype") or torch.bfloat16
    if given["apply_swiglu"]:
        made["swiglu"] = (given["alpha"], given["limit"], given["swiglu_add_residual"])
    return made


def _fp8(t):
    name = tensors.torch_dtype_name(t.dtype)
    return "e4m3" if name == "u8" else name


def _one_each(scale, experts):
    return scale.reshape(-1).float().expand(experts).contiguous()


def _mx(scale):
    """[E, K/32, N] -> [E, N, K/32]."""
    return scale.view(torch.uint8).transpose(1, 2).contiguous()


def _x8(x, x_scales, x_static_scale):
    """(word, scales) of fp8 rows: MX, or one static scale."""
    if x_scales is not None and x_scales.element_size() == 1:
        return f"x={_fp8(x)}/mx32", x_scales.view(torch.uint8)
    scale = x_static_scale if x_scales is None else x_scales
    one = torch.ones(1, device=x.device) if scale is None else scale.reshape(1).float()
    return f"x={_fp8(x)}/tensor", one


def moe_gemm_a8w8(x, w, x_scales=None, w_scales=None, x_static_scale=None, w_static_scale=None,
                  quant_static_scale=None, bias=None, routing_data=None, gather_indx=None,
                  scatter_indx=None, gammas=None, swizzle_mx_scale=None, out_dtype=torch.bfloat16,
                  apply_swiglu=False, alpha=1.0, limit=1.0, swiglu_add_residual=True,
                  unpadded_N=None, unpadded_K=None):  # fmt: skip
    """fp8 x fp8; each side MX (e8m0 [M, K/32], [E, K/32, N]) or with one static scale."""
    options = _options(locals())
    word, scale = _x8(x, x_scales, x_static_scale)
    if w_scales is not None:
        return _moe_gemm(x, w, f"{word} w={_fp8(w)}/mx32", scale, _mx(w_scales), **options)
    one = torch.ones(1, device=x.device) if w_static_scale is None else w_static_scale
    return _moe_gemm(x, w, f"{word} w={_fp8(w)}/tensor", scale, _one_each(one, w.shape[0]), **options)


def moe_gemm_a8w8_blockscale(x, w, x_block_scales=None, w_block_scales=None, x_static_scale=None,
                             w_static_scale=None, quant_static_scale=None, bias=None,
                             routing_data=None, gather_indx=None, scatter_indx=None, gammas=None,
                             out_dtype=torch.bfloat16, apply_swiglu=False, alpha=1.0, limit=None,
                             swiglu_add_residual=True, unpadded_N=None, unpadded_K=None,
                             per_row_x_scale=False):  # fmt: skip
    """fp8 x fp8 with x scales [M/128 or M, K/128] and w scales [E, K/128, N/128], or static ones."""
    options = _options(locals())
    word, scale = _x8(x, None, x_static_scale)
    if x_block_scales is not None:
        word, scale = f"x={_fp8(x)}/g128", x_block_scales
        if not per_row_x_scale:
            scale = scale.repeat_interleave(128, 0)[: x.shape[0]]
    if w_block_scales is not None:
        grid = w_block_scales.transpose(1, 2).contiguous()
        return _moe_gemm(x, w, f"{word} w={_fp8(w)}/b128", scale, grid, **options)
    one = torch.ones(1, device=x.device) if w_static_scale is None else w_static_scale
    return _moe_gemm(x, w, f"{word} w={_fp8(w)}/tensor", scale, _one_each(one, w.shape[0]), **options)


def moe_gemm_a4w4(x, w, x_scales, w_scales, bias=None, routing_data=None, gather_indx=None,
                  scatter_indx=None, gammas=None, swizzle_mx_scale=None, preshuffle_weights=False,
                  out_dtype=torch.bfloat16, apply_swiglu=False, alpha=1.0, limit=1.0,
                  swiglu_add_residual=True, unpadded_N=None, unpadded_K=None,
                  backend=None):  # fmt: skip
    """MXFP4 x MXFP4: x [M, K/2], scales [M, K/32]."""
    return _moe_gemm(x.view(torch.uint8), w.view(torch.uint8), "x=e2m1/mx32 w=e2m1/mx32",
                     x_scales.view(torch.uint8), _mx(w_scales), **_options(locals()))  # fmt: skip


def moe_gemm_a8w4(x, w, x_scales, w_scales, x_static_scale=None, quant_static_scale=None, bias=None,
                  routing_data=None, gather_indx=None, scatter_indx=None, gammas=None,
                  swizzle_mx_scale=None, out_dtype=torch.bfloat16, apply_swiglu=False, alpha=1.0,
                  limit=1.0, swiglu_add_residual=True, preshuffled=False, unpadded_N=None,
                  unpadded_K=None, out_mx_quant=False, residual=None, backend=None):  # fmt: skip
    """fp8 (static or MX) x MXFP4; out_mx_quant returns (fp8, e8m0); residual is added in the sum."""
    word, scale = _x8(x, x_scales, x_static_scale)
    return _moe_gemm(x, w.view(torch.uint8), f"{word} w=e2m1/mx32", scale, _mx(w_scales),
                     **_options(locals()))  # fmt: skip


def moe_gemm_a16w4(x, w, x_scales, w_scales, x_static_scale=None, quant_static_scale=None, bias=None,
                   routing_data=None, gather_indx=None, scatter_indx=None, gammas=None,
                   swizzle_mx_scale=None, out_dtype=torch.bfloat16, apply_swiglu=False, alpha=1.0,
                   limit=1.0, swiglu_add_residual=True, unpadded_N=None, unpadded_K=None,
                   backend=None):  # fmt: skip
    """16 bits x MXFP4."""
    if x_scales is not None or x_static_scale is not None:
        raise InvalidError("moe_gemm_a16w4: 16-bit rows have no scales")
    name = tensors.torch_dtype_name(x.dtype)
    return _moe_gemm(x, w.view(torch.uint8), f"x={name} in={name} w=e2m1/mx32", None, _mx(w_scales),
                     **_options(locals()))  # fmt: skip


def moe_gemm_int8_smoothquant(x, w, x_scale, w_scale, bias=None, routing_data=None, gather_indx=None,
                              scatter_indx=None, gammas=None, preshuffled=False,
                              out_dtype=torch.bfloat16, apply_activation=False,
                              swiglu_add_residual=False, alpha=1.0, limit=1.0):  # fmt: skip
    """int8 x int8 with x_scale [M] and w_scale [E, N]."""
    apply_swiglu = apply_activation  # noqa: F841  (read by _options)
    return _moe_gemm(x, w, "x=i8/token w=i8/channel", x_scale.reshape(-1), w_scale,
                     **_options(locals()))  # fmt: skip


def fused_moe_int8_smoothquant(hidden_states, w13, w2, w13_scale, w2_scale, gating_output, topk,
                               renormalize, dtype=torch.bfloat16):  # fmt: skip
    """[M, H]: softmax top-k, int8 rows, w13 [E, H, 2I] with gate in even columns, silu, w2 [E, I, H]."""
    from .quant_moe import smoothquant_quantize
    from .routing import _sorted
    from ...functions import route

    weights, ids = route(gating_output, topk, f"softmax {'renorm' if renormalize else ''}")
    data, gather, scatter = _sorted(weights, ids, gating_output.shape[1])
    ones = torch.ones(hidden_states.shape[1], device=hidden_states.device)
    codes, scale = smoothquant_quantize(hidden_states, ones)
    mid = moe_gemm_int8_smoothquant(codes, w13, scale, w13_scale, None, data, gather,
                                    out_dtype=dtype, apply_activation=True, limit=None)  # fmt: skip
    codes, scale = smoothquant_quantize(mid, torch.ones(mid.shape[1], device=mid.device))
    return moe_gemm_int8_smoothquant(codes, w2, scale, w2_scale, None, data, None, scatter,
                                     data.gate_scal, out_dtype=dtype)  # fmt: skip


def moe_gemm_torch(x, w, bias, routing_data, gather_indx, scatter_indx, gammas, apply_swiglu=False,
                   alpha=1.0, limit=1.0, add_residual=True):  # fmt: skip
    """The same in torch's fp32, for floats x [M, K] and w [E, K, N]."""
    owner, k = _experts_of_rows(routing_data, x.device), routing_data.n_expts_act
    rows = x if gather_indx is None else x[gather_indx.long() // k]
    h = torch.einsum("rk,rkn->rn", rows.float(), w.float()[owner])
    h = h if bias is None else h + bias[owner].float()
    h = _swiglu(h, alpha, limit, add_residual) if apply_swiglu else h
    h = h if gammas is None else h * gammas.reshape(-1, 1).float()
    return h if scatter_indx is None else h[scatter_indx.long().view(-1, k)].sum(1)


def modules():
    """Module name behind aiter.ops.triton.moe. -> its functions."""
    names = (moe_gemm_a8w8, moe_gemm_a8w8_blockscale, moe_gemm_a4w4, moe_gemm_a8w4, moe_gemm_a16w4,
             moe_gemm_int8_smoothquant)  # fmt: skip
    made = {"moe_op_" + f.__name__[4:]: {f.__name__: f, "moe_gemm_torch": moe_gemm_torch}
            for f in names}  # fmt: skip
    int8 = made["moe_op_gemm_int8_smoothquant"]
    int8["fused_moe_int8_smoothquant"] = fused_moe_int8_smoothquant
    int8["moe_gemm_smoothquant_torch"] = moe_gemm_torch
    int8["preshuffle_weights"] = lambda w: w
    return {**made, "reduce": {"reduce_grouped": reduce_grouped}}
