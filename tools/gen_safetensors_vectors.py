#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write tests/vectors/safetensors with Hugging Face's own library: what cmoe must read.

Run in an environment that has safetensors, numpy and ml_dtypes:
python3 tools/gen_safetensors_vectors.py
"""
import json
import pathlib

import ml_dtypes
import numpy as np
from safetensors import TensorSpec, serialize_file
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "vectors" / "safetensors"
TYPES = {
    "bool": "?", "u8": "u1", "i8": "i1", "u16": "u2", "i16": "i2", "f16": "f2", "i32": "i4",
    "u32": "u4", "f32": "f4", "f64": "f8", "i64": "i8", "u64": "u8",
    "bf16": ml_dtypes.bfloat16,
}
HIDDEN, INTER, EXPERTS = 8, 4, 2


def save_types():
    """Every element type of the NumPy bindings, a scalar, empty tensors, metadata, odd names."""
    tensors = {name: np.arange(6).reshape(2, 3).astype(dtype) for name, dtype in TYPES.items()}
    tensors["scalar"] = np.array(3.5, dtype="f4")
    tensors["empty"] = np.zeros((0, 5), dtype="f4")
    tensors["bytes"] = np.arange(3, dtype="u1")
    tensors['name "with" \\ and \n and é'] = np.ones(1, dtype="f4")
    save_file(tensors, OUT / "types.safetensors", metadata={"format": "np", "note": "ünïcode"})
    save_file({}, OUT / "none.safetensors")


def save_small_floats():
    """Types that only the raw writer has."""
    codes = np.arange(8, dtype="u1")
    specs = {name: TensorSpec(dtype=dtype, shape=shape, data_ptr=codes.ctypes.data, data_len=8)
             for name, dtype, shape in (("e4m3", "float8_e4m3fn", [2, 4]),
                                        ("e5m2", "float8_e5m2", [8]),
                                        ("e8m0", "float8_e8m0fnu", [8]))}
    serialize_file(specs, str(OUT / "float8.safetensors"))


def expert_tensors(layer):
    """A Qwen3-MoE layer whose element value is 1000 * expert + 100 * matrix + a counter / 4."""
    prefix = f"model.layers.{layer}.mlp."
    tensors = {prefix + "gate.weight":
               (np.arange(EXPERTS * HIDDEN) / 4).reshape(EXPERTS, HIDDEN)}
    for expert in range(EXPERTS):
        for matrix, (name, shape) in enumerate((("gate_proj", (INTER, HIDDEN)),
                                                ("up_proj", (INTER, HIDDEN)),
                                                ("down_proj", (HIDDEN, INTER)))):
            values = 1000 * expert + 100 * matrix + np.arange(INTER * HIDDEN) / 4
            tensors[f"{prefix}experts.{expert}.{name}.weight"] = values.reshape(shape)
    return {name: value.astype("f4") for name, value in tensors.items()}


def save_model():
    """A checkpoint in two shards with its index and config.json, as from_pretrained takes it."""
    folder = OUT / "qwen3_moe"
    folder.mkdir(exist_ok=True)
    index = {}
    for layer in range(2):
        shard = f"model-{layer + 1:05d}-of-00002.safetensors"
        tensors = expert_tensors(layer)
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, shard))
    size = 4 * 2 * (EXPERTS * HIDDEN + 3 * EXPERTS * INTER * HIDDEN)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": index}, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "decoder_sparse_step": 1,
        "head_dim": 4, "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": 24,
        "mlp_only_layers": [], "moe_intermediate_size": INTER, "norm_topk_prob": True,
        "num_attention_heads": 2, "num_experts": EXPERTS, "num_experts_per_tok": 2,
        "num_hidden_layers": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "tie_word_embeddings": False, "torch_dtype": "float32",
        "vocab_size": 32}, indent=2) + "\n")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    save_types()
    save_small_floats()
    save_model()


main()
