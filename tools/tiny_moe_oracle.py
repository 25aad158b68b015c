#!/usr/bin/env python3
"""Write the reference outputs of a tiny-moe checkpoint, as transformers computes them.

    tools/tiny_moe_oracle.py --model models/tiny-moe

Reads config.json, model.safetensors, prompts.txt and heldout.txt of the folder
and writes beside them (little-endian, C order, .npy version 1.0, all float32):

    logits-{0,1,2}.npy            [bytes of the prompt, vocab] bf16 weights, float32 arithmetic
    logits-bf16-{0,1,2}.npy       the same with bf16 arithmetic
    hidden.npy                    [64, hidden] inputs of layer 2's MoE block for the first 64
                                  bytes of heldout.txt, from the bf16 run: each a bf16 value
    hidden_layer2_router_logits.npy  [64, experts] of that layer on these inputs, float32 arithmetic
    hidden_layer2_mlp_out.npy     [64, hidden] output of that MoE block, float32 arithmetic

Everything runs on the CPU with eager attention and eager experts.  The MoE
block's output is checked against a second computation written in numpy here.
Needs PyTorch, transformers 5.x, safetensors and numpy.
"""

import argparse
import os

import numpy as np
import torch
from safetensors import safe_open
from transformers import Qwen3MoeForCausalLM

LAYER = 2
TOKENS = 64


def load(folder, dtype):
    """The checkpoint in the given type, eager throughout; fails on any name mismatch."""
    model, info = Qwen3MoeForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager",
        experts_implementation="eager", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info.get(kind), (kind, info[kind])
    return model.eval()


def write(folder, name, array):
    array = np.ascontiguousarray(array, dtype="<f4")
    with open(os.path.join(folder, name), "wb") as f:
        np.lib.format.write_array(f, array, version=(1, 0))
    print(f"{name}: {array.dtype} {list(array.shape)}", flush=True)


def moe_block(folder, layer, x, top_k):
    """The sparse MoE block in numpy float64, straight from the checkpoint's tensors."""
    with safe_open(os.path.join(folder, "model.safetensors"), "pt") as f:
        def tensor(name):
            return f.get_tensor(f"model.layers.{layer}.mlp.{name}.weight").double().numpy()
        logits = x @ tensor("gate").T
        count = logits.shape[1]
        experts = [[tensor(f"experts.{e}.{p}_proj") for p in ("gate", "up", "down")] for e in range(count)]
    out = np.zeros_like(x)
    for t, row in enumerate(logits):
        prob = np.exp(row - row.max())
        prob /= prob.sum()
        chosen = np.argsort(-prob, kind="stable")[:top_k]
        for e in chosen:
            gate, up, down = experts[e]
            g = gate @ x[t]
            out[t] += prob[e] / prob[chosen].sum() * (down @ (g / (1 + np.exp(-g)) * (up @ x[t])))
    return logits, out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of the checkpoint")
    folder = parser.parse_args().model
    with open(os.path.join(folder, "prompts.txt"), "rb") as f:
        prompts = f.read().splitlines()
    with open(os.path.join(folder, "heldout.txt"), "rb") as f:
        heldout = f.read(TOKENS)

    full, half = load(folder, torch.float32), load(folder, torch.bfloat16)
    top_k = full.config.num_experts_per_tok
    assert full.config.norm_topk_prob
    with torch.no_grad():
        for i, prompt in enumerate(prompts):
            ids = torch.tensor([list(prompt)])
            a, b = full(ids).logits[0].numpy(), half(ids).logits[0].float().numpy()
            write(folder, f"logits-{i}.npy", a)
            write(folder, f"logits-bf16-{i}.npy", b)
            print(f"  bf16 against float32: largest difference {np.abs(a - b).max():.4f}, "
                  f"relative (root mean square) {np.linalg.norm(a - b) / np.linalg.norm(a):.5f}, "
                  f"same most likely byte at {int((a.argmax(1) == b.argmax(1)).sum())} of {len(a)}")

        seen = []
        hook = half.model.layers[LAYER].mlp.register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0].detach().clone()))
        half(torch.tensor([list(heldout)]))
        hook.remove()
        x = seen[0].reshape(TOKENS, -1)
        assert x.dtype == torch.bfloat16
        x = x.float()
        block = full.model.layers[LAYER].mlp
        out = block(x.unsqueeze(0))
        out = (out[0] if isinstance(out, tuple) else out).reshape(TOKENS, -1).numpy()
        logits = (x @ block.gate.weight.T).numpy()
    reference, expected = moe_block(folder, LAYER, x.double().numpy(), top_k)
    print(f"MoE block against numpy float64: router logits within {np.abs(logits - reference).max():.2e}, "
          f"output within {np.abs(out - expected).max():.2e} (largest output {np.abs(expected).max():.3f})")
    assert np.abs(logits - reference).max() < 1e-4 * max(1, np.abs(reference).max())
    assert np.abs(out - expected).max() < 1e-4 * max(1, np.abs(expected).max())
    ranked = -np.sort(-logits, axis=1)
    gap = (ranked[:, top_k - 1] - ranked[:, top_k]).min()
    print(f"smallest gap between the last chosen and the first unchosen router logit: {gap:.2e}")
    write(folder, "hidden.npy", x.numpy())
    write(folder, f"hidden_layer{LAYER}_router_logits.npy", logits)
    write(folder, f"hidden_layer{LAYER}_mlp_out.npy", out)


if __name__ == "__main__":
    main()
