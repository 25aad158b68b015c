# SPDX-License-Identifier: MIT
"""Golden outputs of Hugging Face transformers' own routers and sparse MoE blocks, run in f64.

Each family's module gets the generator's weights by its own parameter names; the problem string
beside it says the same layer in cmoe's terms."""
import importlib
from types import SimpleNamespace

import numpy as np
import torch
import transformers

from golden import inputs, layer, router
from golden.problem import Problem

SIZE = "h=72 i=40 scheme=f32"
# name, module path, block class, router attribute, problem, extra config.
FAMILIES = [
    ("mixtral", "mixtral", "MixtralSparseMoeBlock", "gate", "t=7 e=8 k=2 router=mixtral", {}),
    ("qwen2-moe", "qwen2_moe", "Qwen2MoeSparseMoeBlock", "gate",
     "t=7 e=12 k=4 router=qwen2-moe shared=1 shsigmoid", {"norm_topk_prob": False}),
    ("qwen3", "qwen3_moe", "Qwen3MoeSparseMoeBlock", "gate", "t=7 e=16 k=4 router=qwen3",
     {"norm_topk_prob": True}),
    ("olmoe", "olmoe", "OlmoeSparseMoeBlock", "gate", "t=7 e=16 k=4 router=olmoe",
     {"norm_topk_prob": False}),
    ("deepseek-v2-lite", "deepseek_v2", "DeepseekV2Moe", "gate",
     "t=7 e=16 k=4 shared=1 router=deepseek-v2-lite", {"topk_method": "greedy"}),
    ("deepseek-v2", "deepseek_v2", "DeepseekV2Moe", "gate",
     "t=7 e=16 k=4 shared=1 router=deepseek-v2", {"topk_method": "group_limited_greedy"}),
    ("deepseek-v3", "deepseek_v3", "DeepseekV3MoE", "gate",
     "t=7 e=32 k=6 shared=1 router=deepseek-v3", {"norm_topk_prob": True}),
    ("deepseek-v4", "deepseek_v4", "DeepseekV4SparseMoeBlock", "gate",
     "t=7 e=16 k=4 shared=1 router=deepseek-v4 scale=1.5 limit=1.5", {}),
    ("deepseek-v4-hash", "deepseek_v4", "DeepseekV4SparseMoeBlock", "gate",
     "t=7 e=16 k=4 shared=1 route=sqrtsoftplus hash renorm eps=1e-20 scale=1.5 limit=1.5", {}),
    ("glm4", "glm4_moe", "Glm4MoeMoE", "gate", "t=7 e=16 k=4 shared=1 router=glm4",
     {"norm_topk_prob": True}),
    ("kimi-k2", "deepseek_v3", "DeepseekV3MoE", "gate", "t=7 e=16 k=4 shared=1 router=kimi-k2",
     {"norm_topk_prob": True}),
    ("minimax-m2", "minimax_m2", "MiniMaxM2SparseMoeBlock", "gate",
     "t=7 e=16 k=4 router=minimax-m2", {}),
    ("gpt-oss", "gpt_oss", "GptOssMLP", "router",
     "t=7 e=8 k=4 router=gpt-oss gate=interleaved b1 b2 act=swiglu-oai", {}),
    ("llama4", "llama4", "Llama4TextMoe", "router",
     "t=7 e=8 k=1 shared=1 router=llama4 won=input", {}),
]


def config(p, extra):
    groups = p["groups"] if p["groups"][0] else (1, 1)
    return SimpleNamespace(**{
        "_experts_implementation": "eager", "hidden_act": "silu", "mlp_bias": False,
        "hidden_size": p["h"], "intermediate_size": p["i"], "moe_intermediate_size": p["i"],
        "shared_expert_intermediate_size": p["i"], "num_experts": p["e"],
        "num_local_experts": p["e"], "n_routed_experts": p["e"], "num_experts_per_tok": p["k"],
        "n_shared_experts": 1, "n_group": groups[0], "topk_group": groups[1],
        "routed_scaling_factor": p["scale"], "norm_topk_prob": "renorm" in p.flags,
        "router_jitter_noise": 0.0, "scoring_func": "sqrtsoftplus", "swiglu_limit": p["limit"],
        "mlp_layer_types": ["hash_moe" if "hash" in p.flags else "moe"],
        "vocab_size": router.VOCAB, **extra})


def put(parameter, value):
    value = torch.as_tensor(np.ascontiguousarray(value), dtype=torch.float64)
    assert parameter.shape == value.shape, (parameter.shape, value.shape)
    with torch.no_grad():
        parameter.copy_(value)


def load(block, gate, p, seed, name):
    """Give every parameter its values; fail if one is left over."""
    w, e = layer.Weights(p, seed), p["e"]
    rows = p["e"] + (1 if "shsigmoid" in p.flags else 0)
    wr = inputs.grid(seed, "wr", (rows, p["h"]), 1 / 256)
    transposed = name in ("gpt-oss", "llama4")
    turn = (lambda a: a.transpose(0, 2, 1)) if transposed else (lambda a: a)
    put(block.experts.gate_up_proj, turn(w.w1[:e]))
    put(block.experts.down_proj, turn(w.w2[:e]))
    put(gate.weight, wr[:e])
    done = {"experts.gate_up_proj", "experts.down_proj"}
    if name == "gpt-oss":
        put(block.experts.gate_up_proj_bias, w.b1)
        put(block.experts.down_proj_bias, w.b2)
        put(gate.bias, inputs.grid(seed, "br", (e,), 1 / 64))
        done |= {"experts.gate_up_proj_bias", "experts.down_proj_bias", "router.bias"}
    shared = getattr(block, "shared_experts", getattr(block, "shared_expert", None))
    if shared is not None:
        i = p["i"]
        put(shared.gate_proj.weight, w.w1[e, :i])
        put(shared.up_proj.weight, w.w1[e, i:])
        put(shared.down_proj.weight, w.w2[e])
    if "shsigmoid" in p.flags:
        put(block.shared_expert_gate.weight, wr[e:])
    for owner in (block, gate):
        if hasattr(owner, "e_score_correction_bias"):
            put(owner.e_score_correction_bias, inputs.route_bias(seed, e))
    left = {n for n, _ in block.named_parameters() if "shared" not in n} - done
    assert left in ({"gate.weight"}, {"router.weight"}), left


def routing(block, gate, p, x, tokens, name):
    """ids and weights [T, k] of the module's router, ordered by id."""
    if name == "llama4":
        scores, _ = gate(x)
        w, ids = scores.topk(p["k"], dim=1)
    elif name == "minimax-m2":
        _, w, ids = gate(x, block.e_score_correction_bias)
    elif "hash" in p.flags:
        _, w, ids = gate(x, tokens)
    else:
        _, w, ids = gate(x)
    order = ids.argsort(dim=1, stable=True)
    return ids.gather(1, order).numpy(), w.gather(1, order).double().numpy()


def check(p, seed, ids, w, y, biased):
    """The generator's own router and experts must agree with the module: two oracles, one truth."""
    own_ids, own_w = router.route(p, seed, router.logits_from_x(p, seed, bias=biased), wild=False)
    k, order = p["k"], np.argsort(own_ids[:, : p["k"]], axis=1, kind="stable")
    same = (np.take_along_axis(own_ids[:, :k], order, 1) == ids).all()
    own_k = np.take_along_axis(own_w[:, :k], order, 1)
    own = layer.experts(p, seed, own_ids, own_w)
    return same, np.abs(own_k - w).max() / np.abs(w).max(), np.abs(own - y).max() / np.abs(y).max()


def run(name, module, block_class, attribute, text, extra, seed):
    words = f"{text} {SIZE} rx"
    p = Problem(words)
    models = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    make = getattr(models, block_class)
    args = (config(p, extra), 0) if module == "deepseek_v4" else (config(p, extra),)
    block = make(*args).double().eval()
    gate = getattr(block, attribute)
    load(block, gate, p, seed, name)
    x = torch.from_numpy(inputs.rows(seed, "x", (p["t"], p["h"]))).double()
    tokens = None
    if "hash" in p.flags:
        table, rows = router.hash_inputs(p, seed, wild=False)
        gate.tid2eid.copy_(torch.from_numpy(table.astype(np.int64)))
        tokens = torch.from_numpy(rows)
    with torch.no_grad():
        ids, w = routing(block, gate, p, x, tokens, name)
        y = block(x[None], tokens) if tokens is not None else block(x[None])
    y = (y[0] if isinstance(y, tuple) else y).reshape(p["t"], p["h"]).numpy()
    return words, ids, w, y, check(p, seed, ids, w, y, name == "gpt-oss")


def main(out):
    torch.set_num_threads(4)
    lines, ys, all_ids, all_w = [], [], [], []
    for n, (name, *rest) in enumerate(FAMILIES):
        words, ids, w, y, (same, dw, dy) = run(name, *rest, 9000 + n)
        print(f"{name:18} ids {'equal' if same else 'DIFFER'}  weights {dw:.1e}  y {dy:.1e}")
        mode = "br" if name == "gpt-oss" else "nobr"
        at = sum(a.size for a in ys), sum(a.size for a in all_ids)
        lines.append(f"hf-layer hf-{name} {9000 + n} {at[0]} {y.size} {mode} | {words}")
        lines.append(f"hf-router hf-{name}-router {9000 + n} {at[1]} {ids.size} {mode} | {words}")
        ys.append(y.astype(np.float32).reshape(-1))
        all_ids.append(ids.astype(np.int32).reshape(-1))
        all_w.append(w.astype(np.float32).reshape(-1))
    np.save(f"{out}/hf.npy", np.concatenate(ys))
    np.save(f"{out}/hf_ids.npy", np.concatenate(all_ids))
    np.save(f"{out}/hf_weights.npy", np.concatenate(all_w))
    with open(f"{out}/hf.txt", "w") as f:
        f.write(f"# Outputs of transformers {transformers.__version__} (torch {torch.__version__}),"
                " written by tools/gen_golden.py hf.\n# Lines as in manifest.txt; hf-layer: hf.npy;"
                " hf-router: routed slots by ascending id, hf_ids.npy and hf_weights.npy.\n")
        f.write("\n".join(lines) + "\n")
