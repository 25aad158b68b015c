# SPDX-License-Identifier: MIT
"""GGUF files written by the gguf package, run by transformers from what that package decodes."""
import gguf
import numpy as np
import torch

from . import families

QUANTISED = {"f16": gguf.GGMLQuantizationType.F16, "bf16": gguf.GGMLQuantizationType.BF16,
             "q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0,
             "mxfp4": gguf.GGMLQuantizationType.MXFP4}


def add(writer, name, tensor, kind):
    """Write a tensor as `kind` and return it decoded again."""
    codes = gguf.quants.quantize(tensor.float().numpy(), kind)
    writer.add_tensor(name, codes, raw_dtype=kind)
    return torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(codes, kind))).reshape(tensor.shape)


def header(folder, architecture, config, experts, inter):
    writer = gguf.GGUFWriter(folder / "model.gguf", architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(config.vocab_size)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(inter)
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    return writer


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def split_experts(kind, architecture, scheme, settings, merged, folder, save):
    """Families whose experts are gate, up and down without biases; merged: gate and up in one tensor."""
    model, layer, _ = families.build(kind)
    model = model.float()
    config, block = model.config, families.block_of(model, layer)
    experts, gate = block.experts, block.router if kind == "llama4" else block.gate
    first, second = (w.data.transpose(1, 2).contiguous() if kind == "llama4" else w.data
                     for w in (experts.gate_up_proj, experts.down_proj))
    count, double, _ = first.shape
    inter = double // 2
    writer = header(folder, architecture, config, count, inter)
    settings(writer, config)
    gate.weight.data = add(writer, f"blk.{layer}.ffn_gate_inp.weight", gate.weight.data,
                           gguf.GGMLQuantizationType.F32)
    if hasattr(gate, "e_score_correction_bias"):
        add(writer, f"blk.{layer}.exp_probs_b.bias", gate.e_score_correction_bias.data,
            gguf.GGMLQuantizationType.F32)
    parts = {"gate_up": first} if merged else {"gate": first[:, :inter], "up": first[:, inter:]}
    first = torch.cat([add(writer, f"blk.{layer}.ffn_{n}_exps.weight", p.contiguous(), QUANTISED[scheme])
                       for n, p in parts.items()], 1)
    second = add(writer, f"blk.{layer}.ffn_down_exps.weight", second, QUANTISED[scheme])
    finish(writer)
    experts.gate_up_proj.data, experts.down_proj.data = (
        w.transpose(1, 2).contiguous() if kind == "llama4" else w for w in (first, second))
    x = families.inputs(config.hidden_size)
    save(folder, x, families.run(model, layer, x))


def gpt_oss(folder, save):
    """Biases and MXFP4; gate and up rows lie apart, which transformers interleaves."""
    model, layer, _ = families.build("gpt_oss")
    model = model.float()
    config, block = model.config, families.block_of(model, layer)
    experts = block.experts
    writer = header(folder, "gpt-oss", config, config.num_local_experts, config.intermediate_size)
    plain = gguf.GGMLQuantizationType.F32
    block.router.weight.data = add(writer, f"blk.{layer}.ffn_gate_inp.weight", block.router.weight.data, plain)
    add(writer, f"blk.{layer}.ffn_gate_inp.bias", block.router.bias.data, plain)
    both, bias = experts.gate_up_proj.data.transpose(1, 2), experts.gate_up_proj_bias.data
    decoded = torch.empty(both.shape)
    for i, name in enumerate(("ffn_gate_exps", "ffn_up_exps")):
        decoded[:, i::2] = add(writer, f"blk.{layer}.{name}.weight", both[:, i::2].contiguous(), QUANTISED["mxfp4"])
        add(writer, f"blk.{layer}.{name}.bias", bias[:, i::2].contiguous(), plain)
    down = add(writer, f"blk.{layer}.ffn_down_exps.weight", experts.down_proj.data.transpose(1, 2).contiguous(),
               QUANTISED["mxfp4"])
    add(writer, f"blk.{layer}.ffn_down_exps.bias", experts.down_proj_bias.data, plain)
    finish(writer)
    experts.gate_up_proj.data = decoded.transpose(1, 2).contiguous()
    experts.down_proj.data = down.transpose(1, 2).contiguous()
    x = families.inputs(config.hidden_size)
    save(folder, x, families.run(model, layer, x))


def deepseek(writer, config):
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_group_count(config.n_group)
    writer.add_expert_group_used_count(config.topk_group)


def deepseek_2(writer, config):
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    writer.add_expert_group_count(config.n_group)
    writer.add_expert_group_used_count(config.topk_group)


def llama_4(writer, config):
    writer.add_interleave_moe_layer_step(config.interleave_moe_layer_step)


def glm(writer, config):
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def nothing(writer, config):
    pass


def _split(kind, architecture, scheme, settings=nothing, merged=False):
    return lambda folder, save: split_experts(kind, architecture, scheme, settings, merged, folder, save)


MODELS = {f"gguf-{s}": _split("qwen3_moe", "qwen3moe", s) for s in QUANTISED}
MODELS["gguf-deepseek2"] = _split("deepseek_v3", "deepseek2", "bf16", deepseek)
MODELS["gguf-glm4moe"] = _split("glm4_moe", "glm4moe", "f16", glm)
MODELS["gguf-llama"] = _split("mixtral", "llama", "f16")
MODELS["gguf-qwen2moe"] = _split("qwen2_moe", "qwen2moe", "bf16")
MODELS["gguf-olmoe"] = _split("olmoe", "olmoe", "bf16")
MODELS["gguf-deepseek2-v2"] = _split("deepseek_v2", "deepseek2", "bf16", deepseek_2)
MODELS["gguf-llama4"] = _split("llama4", "llama4", "f16", llama_4)
MODELS["gguf-qwen35moe"] = _split("qwen3_5_moe", "qwen35moe", "bf16")
MODELS["gguf-merged"] = _split("qwen3_moe", "qwen3moe", "q8_0", merged=True)
MODELS["gguf-gpt-oss"] = gpt_oss
