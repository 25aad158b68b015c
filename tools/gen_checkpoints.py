#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write tests/vectors/checkpoints: a tiny checkpoint of every family and scheme, made by the code of
those who defined it, and what that code computes of the layer's routed experts.

  tools/gen_checkpoints.py [--gptq FOLDER] [--awq FOLDER] [NAME ...]

Needs torch, transformers (>= 5), safetensors, compressed-tensors and gguf. The packing of GPTQ and
AWQ is taken from unpacked source distributions of gptqmodel and autoawq (pip download --no-deps);
without their folders those checkpoints are left as they are. Nothing here imports or calls cmoe."""
import argparse
import json
import pathlib
import shutil
import sys

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from checkpoints import families, gguf_models, schemes  # noqa: E402

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "vectors" / "checkpoints"
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def save_arrays(folder, x, y):
    np.save(folder / "x.npy", x.numpy().astype("<f4"))
    np.save(folder / "y.npy", y.numpy().astype("<f4"))
    assert y.abs().mean() > 1e-3 and torch.isfinite(y).all(), folder


def start(name):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def family(name, kind, **changes):
    """As save_pretrained writes it."""
    folder = start(name)
    model, layer, _ = families.build(kind, **changes)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    x = families.inputs(model.config.hidden_size)
    save_arrays(folder, x, families.run(model, layer, x))


def fused(name):
    """The in-memory names and shapes of transformers 5: one tensor for all experts."""
    folder = start(name)
    model, layer, _ = families.build("qwen3_moe", hidden_size=48, moe_intermediate_size=40)
    model.config.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors",
              metadata={"format": "pt"})
    x = families.inputs(model.config.hidden_size)
    save_arrays(folder, x, families.run(model, layer, x))


def llama4_whole(name):
    """The language model inside the one that also sees: nested configuration, longer names."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration
    folder = start(name)
    inner, layer, dtype = families.build("llama4")
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
              "image_size": 28, "patch_size": 14, "vision_output_dim": 16, "projector_input_dim": 16,
              "projector_output_dim": 16}
    config = Llama4Config(text_config=inner.config.to_dict(), vision_config=vision)
    model = Llama4ForConditionalGeneration(config)
    model.language_model.load_state_dict(inner.state_dict())
    model.to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    x = families.inputs(inner.config.hidden_size)
    save_arrays(folder, x, families.run(inner, layer, x))


def gpt_oss_mxfp4(name):
    """Random codes and scales, decoded by transformers."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors
    folder = start(name)
    model, layer, _ = families.build("gpt_oss")
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    generator = torch.Generator().manual_seed(5)
    experts = families.block_of(model, layer).experts
    for part in ("gate_up_proj", "down_proj"):
        key = f"model.layers.{layer}.mlp.experts.{part}"
        count, inner, outer = state.pop(key).shape
        blocks = torch.randint(0, 256, (count, outer, inner // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(121, 126, (count, outer, inner // 32), dtype=torch.uint8, generator=generator)
        decoded = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        assert decoded.shape == (count, inner, outer)
        setattr(experts, part, torch.nn.Parameter(decoded))
        state[key + "_blocks"], state[key + "_scales"] = blocks, scales
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.quantization_config = {"quant_method": "mxfp4"}
    model.config.save_pretrained(folder)
    x = families.inputs(model.config.hidden_size)
    save_arrays(folder, x, families.run(model, layer, x))


def quantised(name, kind, quantise, config, routed_only=False, attention=False, **changes):
    """The model's own checkpoint with every expert matrix replaced by what `quantise` makes of it;
    routed_only leaves out what is not in the layer's routed part, to keep the file small; attention
    quantises its projections, too, and q_proj.npy has the first layer's decoded."""
    folder = start(name)
    model, layer, _ = families.build(kind, **changes)
    from transformers.core_model_loading import revert_weight_conversion
    saved = revert_weight_conversion(model, model.state_dict())
    state, decoded = {}, {}
    for key, value in saved.items():
        if routed_only and ".mlp.gate." not in key and ".mlp.experts." not in key:
            continue
        if ".experts." not in key and not (attention and ".self_attn." in key and "_proj." in key):
            state[key] = value.contiguous()
            continue
        module = key.removesuffix(".weight")
        tensors, decoded[module] = quantise(value.float())
        state.update({f"{module}.{suffix}": t.contiguous() for suffix, t in tensors.items()})
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    text = json.loads(path.read_text())
    text["quantization_config"] = config
    path.write_text(json.dumps(text, indent=2, sort_keys=True) + "\n")
    if attention:
        np.save(folder / "q_proj.npy", decoded["model.layers.0.self_attn.q_proj"].float().numpy())
    experts = families.block_of(model.float(), layer).experts
    prefix = f"model.layers.{layer}.mlp.experts"
    for e in range(experts.num_experts):
        gate, up, down = (decoded[f"{prefix}.{e}.{p}"] for p in PROJECTIONS)
        experts.gate_up_proj.data[e] = torch.cat([gate, up])
        experts.down_proj.data[e] = down
    x = families.inputs(model.config.hidden_size)
    save_arrays(folder, x, families.run(model, layer, x))


def static_inputs(name, scheme):
    """The same with static scales of each matrix's input: what compressed-tensors makes of the ranges
    of random activations. scales.npy has the largest scale of x and of mid."""
    fmt, quantise = schemes.COMPRESSED[scheme]
    generator = torch.Generator().manual_seed(7)

    def with_input(w):
        tensors, decoded = quantise(w)
        a = torch.randn(40, w.shape[1], generator=generator) * torch.rand(1, generator=generator) * 9
        return {**tensors, **schemes.input_scale(scheme, a)}, decoded

    quantised(name, "qwen3_moe", with_input,
              {"quant_method": "compressed-tensors", "format": fmt, "quantization_status": "compressed"})
    largest = [0.0, 0.0]
    with safe_open(OUT / name / "model.safetensors", "pt") as f:
        for key in f.keys():
            if "layers.0.mlp.experts." not in key or ".input_" not in key:
                continue
            value = f.get_tensor(key)
            scale = (1 / value if key.endswith("input_global_scale") else value).item()
            part = int("down_proj" in key)
            largest[part] = max(largest[part], scale)
    np.save(OUT / name / "scales.npy", np.array(largest, np.float32))


def jobs(args):
    for kind in families.MODELS:
        yield kind, family, (kind,)
    yield "deepseek_v2-greedy", lambda n: family(n, "deepseek_v2", topk_method="greedy", n_group=None,
                                                 topk_group=None, routed_scaling_factor=1.0), ()
    yield "qwen3_moe-fused", fused, ()
    yield "llama4-whole", llama4_whole, ()
    yield "gpt_oss-mxfp4", gpt_oss_mxfp4, ()
    for scheme, (fmt, quantise) in schemes.COMPRESSED.items():
        changes = {"hidden_size": 144, "moe_intermediate_size": 136, "num_experts": 2} if scheme == "fp8-block" else {}
        config = {"quant_method": "compressed-tensors", "format": fmt, "quantization_status": "compressed"}
        yield (f"qwen3_moe-{scheme}",
               lambda n, q=quantise, c=config, h=changes: quantised(n, "qwen3_moe", q, c, **h), ())
    yield "qwen3_moe-fp8-static", static_inputs, ("fp8-tensor",)
    yield "qwen3_moe-nvfp4-static", static_inputs, ("nvfp4",)
    yield "deepseek_v3-fp8", lambda n: quantised(
        n, "deepseek_v3", schemes.deepseek_fp8,
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
        hidden_size=128, moe_intermediate_size=128, n_routed_experts=3, num_experts_per_tok=2, n_group=1,
        topk_group=1, n_shared_experts=1, intermediate_size=32, routed_only=True), ()
    yield "qwen3_moe-fp8-attention", lambda n: quantised(
        n, "qwen3_moe", schemes.COMPRESSED["fp8-channel"][1],
        {"quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed"},
        attention=True), ()
    if args.gptq:
        for scheme, options, fmt in (("gptq-v1", {"offset": 1}, "gptq"), ("gptq-v2", {}, "gptq_v2"),
                                     ("gptq-order", {"offset": 1, "order": True}, "gptq"),
                                     ("gptq-8bit", {"bits": 8, "offset": 1}, "gptq")):
            config = {"quant_method": "gptq", "bits": options.get("bits", 4), "group_size": 32,
                      "desc_act": "order" in options, "sym": False, "checkpoint_format": fmt}
            yield (f"qwen3_moe-{scheme}", lambda n, o=options, c=config: quantised(
                n, "qwen3_moe", schemes.gptq(args.gptq, **o), c), ())
    if args.awq:
        config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
        yield "qwen3_moe-awq", lambda n: quantised(n, "qwen3_moe", schemes.awq(args.awq), config), ()
    for name, write in gguf_models.MODELS.items():
        yield name, lambda n, w=write: w(start(n), save_arrays), ()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gptq", help="unpacked source distribution of gptqmodel")
    parser.add_argument("--awq", help="unpacked source distribution of autoawq")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    for name, write, extra in jobs(args):
        if not args.names or name in args.names:
            write(name, *extra)
            print(name, sum(f.stat().st_size for f in (OUT / name).iterdir()))


main()
