"""tiny-moe's architecture, a form of it that trains fast, and its checkpoint (used by train_tiny_moe.py).

For training, every expert is computed for every token and the router's weights
(zero for the experts not chosen) mask the result: at this size that is one pair
of dense matrix products, faster than gathering tokens per expert, and its
gradients are those of the sparse layer.
"""

import json
import math
import os
import re

WINDOW = 512  # context of the models

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "decoder_sparse_step": 1,
    "eos_token_id": None,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 264,
    "max_position_embeddings": WINDOW,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "pad_token_id": None,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "router_aux_loss_coef": 0.01,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 256,
}


def build_model(kind, dropout):
    """A trainable model: kind is "moe" or "dense".  Same blocks but for the MLP."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    cfg = CONFIG
    hidden, heads, kv_heads = cfg["hidden_size"], cfg["num_attention_heads"], cfg["num_key_value_heads"]
    head_dim, eps = cfg["head_dim"], cfg["rms_norm_eps"]
    experts, top_k, inter = cfg["num_experts"], cfg["num_experts_per_tok"], cfg["moe_intermediate_size"]

    class Norm(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(size))

        def forward(self, x):
            y = x.float()
            y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
            return self.weight * y.to(x.dtype)

    class Drop(nn.Module):
        """Dropout whose rate is a buffer, so that one compiled graph serves all rates."""

        def __init__(self):
            super().__init__()
            self.register_buffer("rate", torch.tensor(float(dropout)), persistent=False)

        def forward(self, x):
            if not self.training:
                return x
            keep = (torch.rand_like(x, dtype=torch.float32) >= self.rate).to(x.dtype)
            return x * keep * (1.0 / (1.0 - self.rate)).to(x.dtype)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj = nn.Linear(hidden, heads * head_dim, bias=False)
            self.k_proj = nn.Linear(hidden, kv_heads * head_dim, bias=False)
            self.v_proj = nn.Linear(hidden, kv_heads * head_dim, bias=False)
            self.o_proj = nn.Linear(heads * head_dim, hidden, bias=False)
            self.q_norm, self.k_norm = Norm(head_dim), Norm(head_dim)

        def forward(self, x, cos, sin):
            b, t, _ = x.shape

            def rope(y):
                first, second = y.chunk(2, dim=-1)
                return y * cos + torch.cat((-second, first), -1) * sin

            q = rope(self.q_norm(self.q_proj(x).view(b, t, heads, head_dim)).transpose(1, 2))
            k = rope(self.k_norm(self.k_proj(x).view(b, t, kv_heads, head_dim)).transpose(1, 2))
            v = self.v_proj(x).view(b, t, kv_heads, head_dim).transpose(1, 2)
            k = k.to(v.dtype).repeat_interleave(heads // kv_heads, dim=1)
            v = v.repeat_interleave(heads // kv_heads, dim=1)
            y = F.scaled_dot_product_attention(q.to(v.dtype), k, v, is_causal=True)
            return self.o_proj(y.transpose(1, 2).reshape(b, t, heads * head_dim))

    class DenseMlp(nn.Module):
        def __init__(self):
            super().__init__()
            size = cfg["intermediate_size"]
            self.gate_proj = nn.Linear(hidden, size, bias=False)
            self.up_proj = nn.Linear(hidden, size, bias=False)
            self.down_proj = nn.Linear(size, hidden, bias=False)

        def forward(self, x):
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)), None, None

    class MoeMlp(nn.Module):
        """Experts side by side in one wide MLP; expert e owns rows e*inter..(e+1)*inter."""

        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(hidden, experts, bias=False)
            self.gate_proj = nn.Linear(hidden, experts * inter, bias=False)
            self.up_proj = nn.Linear(hidden, experts * inter, bias=False)
            self.down_proj = nn.Linear(experts * inter, hidden, bias=False)

        def forward(self, x):
            shape = x.shape[:-1]
            prob = torch.softmax(self.gate(x).float(), -1)
            value, index = torch.topk(prob, top_k, dim=-1)
            value = value / value.sum(-1, keepdim=True)
            weight = torch.zeros_like(prob).scatter(-1, index, value)
            act = F.silu(self.gate_proj(x)) * self.up_proj(x)
            act = act.view(*shape, experts, inter) * weight.to(act.dtype).unsqueeze(-1)
            out = self.down_proj(act.view(*shape, experts * inter))
            share = (weight > 0).float().flatten(0, -2).mean(0) / top_k
            balance = experts * (share.detach() * prob.flatten(0, -2).mean(0)).sum()
            return out, balance, share

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.input_layernorm = Norm(hidden)
            self.self_attn = Attention()
            self.post_attention_layernorm = Norm(hidden)
            self.mlp = MoeMlp() if kind == "moe" else DenseMlp()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens = nn.Embedding(cfg["vocab_size"], hidden)
            self.layers = nn.ModuleList(Layer() for _ in range(cfg["num_hidden_layers"]))
            self.norm = Norm(hidden)
            self.lm_head = nn.Linear(hidden, cfg["vocab_size"], bias=False)
            self.drop = Drop()
            freq = cfg["rope_theta"] ** (-torch.arange(0, head_dim, 2).float() / head_dim)
            angle = torch.outer(torch.arange(WINDOW).float(), freq)
            angle = torch.cat((angle, angle), -1)
            self.register_buffer("cos", angle.cos(), persistent=False)
            self.register_buffer("sin", angle.sin(), persistent=False)
            for module in self.modules():
                if isinstance(module, (nn.Linear, nn.Embedding)):
                    nn.init.normal_(module.weight, std=cfg["initializer_range"])
            for layer in self.layers:
                for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
                    nn.init.normal_(module.weight,
                                    std=cfg["initializer_range"] / math.sqrt(2 * len(self.layers)))

        def forward(self, ids):
            x = self.drop(self.embed_tokens(ids))
            cos, sin = self.cos[:ids.shape[1]], self.sin[:ids.shape[1]]
            balances, shares = [], []
            for layer in self.layers:
                x = x + self.drop(layer.self_attn(layer.input_layernorm(x), cos, sin))
                y, balance, share = layer.mlp(layer.post_attention_layernorm(x))
                x = x + self.drop(y)
                if balance is not None:
                    balances.append(balance)
                    shares.append(share)
            logits = self.lm_head(self.norm(x))
            balance = torch.stack(balances).mean() if balances else None
            return logits, balance, torch.stack(shares) if shares else None

        def loss(self, ids):
            """Loss to minimise, and its part that is the cross-entropy (nats/byte)."""
            logits, balance, _ = self(ids[:, :-1])
            entropy = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
            return (entropy if balance is None
                    else entropy + cfg["router_aux_loss_coef"] * balance), entropy

    return Model()


def checkpoint(model):
    """The model's weights in bf16, under the names of Qwen3-MoE checkpoints."""
    import torch

    inter, out = CONFIG["moe_intermediate_size"], {}
    for name, value in model.state_dict().items():
        value = value.detach().to("cpu", torch.bfloat16)
        parts = re.fullmatch(r"(layers\.\d+\.mlp)\.(gate|up|down)_proj\.weight", name)
        if parts:
            for e in range(CONFIG["num_experts"]):
                rows = slice(e * inter, (e + 1) * inter)
                piece = value[:, rows] if parts.group(2) == "down" else value[rows]
                out[f"model.{parts.group(1)}.experts.{e}.{parts.group(2)}_proj.weight"] = piece.contiguous()
        else:
            out[name if name.startswith("lm_head") else "model." + name] = value.contiguous()
    return out


def parameter_counts(kind):
    """Total and active (used for one token) parameters."""
    total = sum(p.numel() for p in build_model(kind, 0.0).parameters())
    if kind == "dense":
        return total, total
    expert = 3 * CONFIG["hidden_size"] * CONFIG["moe_intermediate_size"]
    idle = CONFIG["num_experts"] - CONFIG["num_experts_per_tok"]
    return total, total - CONFIG["num_hidden_layers"] * idle * expert


def save(model, folder):
    from safetensors.torch import save_file

    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="ascii") as f:
        f.write(json.dumps(CONFIG, indent=2) + "\n")
    save_file(checkpoint(model), os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
