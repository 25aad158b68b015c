# SPDX-License-Identifier: MIT
"""Quantised linear layers by the code of those who defined the formats: compressed-tensors, the fp8
integration and mxfp4 decoder of transformers, GPTQModel's and AutoAWQ's packing.

A scheme is a function from a float32 weight [out, in] to (tensors by suffix, the weight that its
library decodes from them, float32)."""
import importlib
import sys
import types
from unittest import mock

import torch
from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
from compressed_tensors.compressors.mxfp8.base import MXFP8QuantizationCompressor
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam


def ranges(w, args):
    """Smallest and largest value of every scope of a scale."""
    rows, cols = w.shape
    if args.strategy in ("group", "tensor_group"):
        w = w.reshape(rows, cols // args.group_size, args.group_size)
    elif args.strategy == "block":
        high, wide = args.block_structure
        pad = torch.nn.functional.pad(w, (0, -cols % wide, 0, -rows % high))
        w = pad.reshape(pad.shape[0] // high, high, -1, wide).transpose(1, 2).flatten(-2)
    elif args.strategy == "tensor":
        w = w.reshape(1, -1)
    keep = args.strategy in ("channel", "tensor")
    return w.amin(-1, keepdim=keep), w.amax(-1, keepdim=keep)


def compressed(compressor, scale_dtype=torch.float32, mx=False, **arguments):
    def quantise(w):
        args = QuantizationArgs(**arguments)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        state = {"weight": w}
        extra = {}
        if args.strategy == "tensor_group":
            extra["global_scale"] = (448.0 * 6.0 / w.abs().max()).reshape(1)
            state["weight_global_scale"] = extra["global_scale"]
        scale, zero = calculate_qparams(*ranges(w, args), args, **extra)
        if args.strategy == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        if mx:
            scale = torch.exp2(torch.ceil(torch.log2(scale.float())))
        state["weight_scale"] = scale.to(scale_dtype)
        state["weight_zero_point"] = zero
        stored = compressor.compress(state, scheme)
        if args.strategy == "tensor_group":  # its decompress rounds to bf16: the same steps in float32
            codes = unpack_fp4_from_uint8(stored["weight_packed"], *w.shape, dtype=torch.float32)
            return stored, dequantize(x_q=codes, scale=stored["weight_scale"].float(), args=args,
                                      global_scale=extra["global_scale"], dtype=torch.float32)
        wide = {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in stored.items()}
        decoded = compressor.decompress(wide, scheme)["weight"]
        return stored, decoded.float()

    return quantise


def int4(**arguments):
    return {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True, **arguments}


def fp8(**arguments):
    return {"num_bits": 8, "type": "float", "symmetric": True, **arguments}


COMPRESSED = {
    "int4": ("pack-quantized", compressed(PackedQuantizationCompressor, torch.bfloat16, **int4())),
    "int4-zp": ("pack-quantized", compressed(PackedQuantizationCompressor, **int4(symmetric=False))),
    "int4-channel": ("pack-quantized", compressed(PackedQuantizationCompressor,
                                                  **int4(strategy="channel", group_size=None))),
    "int8-packed": ("pack-quantized", compressed(PackedQuantizationCompressor, **int4(num_bits=8))),
    "int8": ("int-quantized", compressed(NaiveQuantizationCompressor, **int4(
        num_bits=8, strategy="channel", group_size=None))),
    "fp8-channel": ("float-quantized", compressed(NaiveQuantizationCompressor, **fp8(strategy="channel"))),
    "fp8-tensor": ("float-quantized", compressed(NaiveQuantizationCompressor, **fp8(strategy="tensor"))),
    "fp8-block": ("float-quantized", compressed(NaiveQuantizationCompressor, **fp8(
        strategy="block", block_structure=[128, 128]))),
    "mxfp8": ("mxfp8-quantized", compressed(MXFP8QuantizationCompressor, **fp8(
        strategy="group", group_size=32), mx=True)),
    "mxfp4": ("mxfp4-pack-quantized", compressed(MXFP4PackedCompressor, **fp8(
        num_bits=4, strategy="group", group_size=32), mx=True)),
    "nvfp4": ("nvfp4-pack-quantized", compressed(NVFP4PackedCompressor, **fp8(
        num_bits=4, strategy="tensor_group", group_size=16))),
}


def input_scale(scheme, a):
    """The static scale of activations `a` beside a weight in this scheme, by its tensor's suffix."""
    if scheme == "nvfp4":
        return {"input_global_scale": generate_gparam(a.amin().reshape(1), a.amax().reshape(1)).float()}
    args = QuantizationArgs(**fp8(strategy="tensor", dynamic=False))
    scale, _ = calculate_qparams(a.amin().reshape(1), a.amax().reshape(1), args)
    return {"input_scale": scale.float().reshape(1)}


def deepseek_fp8(w):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize
    settings = types.SimpleNamespace(weight_block_size=[128, 128], scale_fmt=None)
    quantizer = types.SimpleNamespace(quantization_config=settings)
    out = Fp8Quantize(quantizer)._quantize_one("x.weight", w)
    stored = {k[2:]: v for k, v in out.items()}
    decoded = Fp8Dequantize(quantizer)._dequantize_one(stored["weight"], stored["weight_scale_inv"],
                                                       torch.float32)
    return stored, decoded


def package(name, folder, real):
    """`name` as a package whose modules are stand-ins, except those listed in `real`."""
    class Finder:
        def find_spec(self, full, path=None, target=None):
            if not full.startswith(name + ".") or any(r == full or r.startswith(full + ".") for r in real):
                return None
            return importlib.machinery.ModuleSpec(full, self)

        def create_module(self, spec):
            stand_in = mock.MagicMock()
            stand_in.__path__ = []
            stand_in.__spec__ = spec
            return stand_in

        def exec_module(self, module):
            pass

    sys.meta_path.insert(0, Finder())
    for part in [name] + [r for r in real if any(q.startswith(r + ".") for q in real)]:
        module = types.ModuleType(part)
        module.__path__ = [f"{folder}/{part.replace('.', '/')}"]
        sys.modules[part] = module


def gptq(folder, bits=4, group=32, offset=0, order=False):
    """GPTQModel's packing. offset 1: the first checkpoint format, which stores zero points less one.
    order: columns belong to groups in a shuffled order, as after activation ordering."""
    if "gptqmodel" not in sys.modules:
        package("gptqmodel", folder, ["gptqmodel.nn_modules", "gptqmodel.nn_modules.qlinear",
                                      "gptqmodel.utils", "gptqmodel.utils.planar_packing"])
    lib = importlib.import_module("gptqmodel.nn_modules.qlinear")

    def quantise(w):
        rows, cols = w.shape
        g_idx = torch.arange(cols, dtype=torch.int32) // group
        if order:
            g_idx = g_idx[torch.randperm(cols, generator=torch.Generator().manual_seed(rows))]
        top = 2 ** bits - 1
        scales = torch.empty(rows, cols // group)
        zeros = torch.empty(rows, cols // group)
        for g in range(cols // group):
            part = w[:, g_idx == g]
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            scales[:, g] = ((high - low) / top).half().float()
            zeros[:, g] = torch.round(-low / scales[:, g]).clamp(0, top)
        q = lib.PackableQuantLinear.__new__(lib.PackableQuantLinear)
        torch.nn.Module.__init__(q)
        q.bits, q.maxq, q.planar, q.in_features, q.out_features = bits, top, False, cols, rows
        q.pack_dtype, q.pack_dtype_bits, q.pack_factor = torch.int32, 32, 32 // bits
        import numpy as np
        q.pack_np_dtype, q.pack_np_math_dtype = np.int32, np.uint32
        q.enable_wf_unsqueeze, q.dequant_dtype, q.g_idx = True, torch.int32, None
        linear = torch.nn.Linear(cols, rows, bias=False)
        linear.weight.data = w.clone()
        del q.g_idx
        q.pack_original(linear, scales, zeros, g_idx)
        q.wf_unsqueeze_zero = torch.arange(0, 32, bits, dtype=torch.int32).reshape(1, 1, -1)
        q.wf_unsqueeze_neg_one = torch.arange(0, 32, bits, dtype=torch.int32).reshape(1, -1, 1)
        stored = {"qweight": q.qweight, "scales": q.scales, "qzeros": q.qzeros, "g_idx": q.g_idx}
        q.scales = q.scales.float()
        decoded = q.dequantize_weight().T.contiguous()
        if offset:
            ones = sum(1 << i for i in range(0, 32, bits))
            stored["qzeros"] = ((q.qzeros.long() - ones) & 0xffffffff).to(torch.uint32).view(torch.int32)
        return stored, decoded.float()

    return quantise


def awq(folder, group=32):
    if "awq" not in sys.modules:
        package("awq", folder, ["awq.modules", "awq.modules.linear", "awq.modules.linear.gemm", "awq.utils",
                                "awq.utils.module", "awq.utils.packing_utils"])
    gemm = importlib.import_module("awq.modules.linear.gemm")
    gemm.get_best_device = lambda: "cpu"
    packing = importlib.import_module("awq.utils.packing_utils")

    def quantise(w):
        rows, cols = w.shape
        part = w.reshape(rows, cols // group, group)
        low, high = part.amin(-1).clamp(max=0), part.amax(-1).clamp(min=0)
        scales = ((high - low) / 15).half().float()
        zeros = torch.round(-low / scales).clamp(0, 15)
        linear = torch.nn.Linear(cols, rows, bias=False)
        index = torch.arange(cols) // group
        codes = torch.round(w / scales[:, index] + zeros[:, index]).clamp(0, 15)
        linear.weight.data = (codes - zeros[:, index]) * scales[:, index]
        q = gemm.WQLinear_GEMM.from_linear(linear, 4, group, scales=scales.T.contiguous(),
                                           zeros=zeros.T.contiguous())
        stored = {"qweight": q.qweight, "qzeros": q.qzeros, "scales": q.scales}
        decoded = packing.dequantize_gemm(q.qweight, q.qzeros, q.scales.float(), 4, group)
        return stored, decoded.T.contiguous().float()

    return quantise
