# SPDX-License-Identifier: MIT
"""Tiny models of every family, built, saved and run by transformers."""
import torch
import transformers
from transformers import AutoModelForCausalLM

COMMON = {"vocab_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
          "max_position_embeddings": 64, "tie_word_embeddings": False}
MLA = {"q_lora_rank": None, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}

# name: configuration class, its arguments, type of the saved tensors, layer with experts
MODELS = {
    "mixtral": ("MixtralConfig", {"hidden_size": 48, "intermediate_size": 64, "num_local_experts": 6,
                                  "num_experts_per_tok": 2}, torch.float16, 0),
    "qwen2_moe": ("Qwen2MoeConfig", {"hidden_size": 48, "moe_intermediate_size": 40, "num_experts": 6,
                                     "num_experts_per_tok": 3, "intermediate_size": 64,
                                     "shared_expert_intermediate_size": 56}, torch.bfloat16, 0),
    "qwen3_moe": ("Qwen3MoeConfig", {"hidden_size": 64, "moe_intermediate_size": 64, "num_experts": 4,
                                     "num_experts_per_tok": 2, "intermediate_size": 64, "head_dim": 16,
                                     "norm_topk_prob": True}, torch.bfloat16, 0),
    "qwen3_5_moe": ("Qwen3_5MoeTextConfig", {"hidden_size": 48, "moe_intermediate_size": 32, "num_experts": 6,
                                             "num_experts_per_tok": 2, "head_dim": 16,
                                             "shared_expert_intermediate_size": 32,
                                             "layer_types": ["full_attention"]}, torch.bfloat16, 0),
    "olmoe": ("OlmoeConfig", {"hidden_size": 40, "intermediate_size": 48, "num_experts": 8,
                              "num_experts_per_tok": 3}, torch.bfloat16, 0),
    "deepseek_v2": ("DeepseekV2Config", {**MLA, "hidden_size": 48, "moe_intermediate_size": 40,
                                         "intermediate_size": 64, "n_routed_experts": 8, "n_shared_experts": 2,
                                         "num_experts_per_tok": 3, "topk_method": "group_limited_greedy",
                                         "n_group": 4, "topk_group": 2, "routed_scaling_factor": 4.0,
                                         "num_hidden_layers": 2, "first_k_dense_replace": 1},
                    torch.bfloat16, 1),
    "deepseek_v3": ("DeepseekV3Config", {**MLA, "hidden_size": 48, "moe_intermediate_size": 40,
                                         "intermediate_size": 64, "n_routed_experts": 8, "n_shared_experts": 1,
                                         "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
                                         "routed_scaling_factor": 2.5, "num_hidden_layers": 2,
                                         "first_k_dense_replace": 1, "num_mtp_layers": 0}, torch.bfloat16, 1),
    "glm4_moe": ("Glm4MoeConfig", {"hidden_size": 48, "moe_intermediate_size": 40, "intermediate_size": 64,
                                   "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3,
                                   "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.5,
                                   "num_hidden_layers": 2, "first_k_dense_replace": 1, "head_dim": 16},
                 torch.bfloat16, 1),
    "gpt_oss": ("GptOssConfig", {"hidden_size": 64, "intermediate_size": 32, "num_local_experts": 4,
                                 "num_experts_per_tok": 2, "head_dim": 16,
                                 "layer_types": ["full_attention"]}, torch.bfloat16, 0),
    "llama4": ("Llama4TextConfig", {"hidden_size": 48, "intermediate_size": 40, "intermediate_size_mlp": 64,
                                    "num_local_experts": 6, "num_experts_per_tok": 1, "head_dim": 16,
                                    "num_hidden_layers": 2, "interleave_moe_layer_step": 2,
                                    "layer_types": ["full_attention"] * 2}, torch.bfloat16, 1),
}


class Nothing(torch.nn.Module):
    """Stands in for shared experts: what is compared is the routed part."""

    def forward(self, x):
        return torch.zeros_like(x)


def build(name, **changes):
    """The model, its layer with experts, and the type it is saved in."""
    config_class, arguments, dtype, layer = MODELS[name]
    torch.manual_seed(7)
    config = getattr(transformers, config_class)(**{**COMMON, **arguments, **changes})
    config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for key, tensor in list(model.named_parameters()) + list(model.named_buffers()):
            if "experts" in key or "block_sparse_moe" in key or "shared_expert" in key:
                tensor.normal_(0, 0.15)
            elif key.endswith(("mlp.gate.weight", "router.weight")):
                tensor.normal_(0, 0.4)
            elif key.endswith(("e_score_correction_bias", "router.bias")):
                tensor.normal_(0, 0.1)
        model = model.to(dtype)
    return model, layer, dtype


def block_of(model, layer):
    """The layer's mixture of experts."""
    module = model.model.layers[layer]
    for name in ("mlp", "feed_forward", "block_sparse_moe"):
        if hasattr(module, name):
            return getattr(module, name)
    raise KeyError(layer)


def inputs(hidden, tokens=12):
    return torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def run(model, layer, x):
    """What transformers computes of the routed experts, in float32 from the saved values."""
    block = block_of(model.float(), layer)
    for name in ("shared_expert", "shared_experts"):
        if hasattr(block, name):
            setattr(block, name, Nothing())
    y = block(x[None])
    return (y[0] if isinstance(y, tuple) else y).reshape(x.shape)
