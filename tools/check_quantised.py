#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Decode what cmoe quantize wrote with compressed-tensors, and compare it with the original weights.

  tools/check_quantised.py ORIGINAL QUANTISED

Needs torch, safetensors and compressed-tensors. Prints the relative error of the experts; fails when
a tensor cannot be decoded or when the error is far from what the format has."""
import json
import pathlib
import sys

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig
from safetensors import safe_open

# Root mean square error of a weight, relative, above which something is wrong.
LIMITS = {8: 0.05, 4: 0.2}


def load(folder):
    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as f:
            tensors.update({name: f.get_tensor(name) for name in f.keys()})
    return tensors


def main():
    original, quantised = load(sys.argv[1]), load(sys.argv[2])
    config = json.loads((pathlib.Path(sys.argv[2]) / "config.json").read_text())["quantization_config"]
    group = QuantizationConfig.model_validate(config).config_groups["group_0"]
    assert isinstance(group.weights, QuantizationArgs)
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    index = json.loads((pathlib.Path(sys.argv[2]) / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(quantised)
    error = total = 0.0
    count = 0
    for name, want in original.items():
        if ".experts." not in name:
            assert torch.equal(quantised[name], want), name
            continue
        module = name.removesuffix(".weight")
        state = {k[len(module) + 1:]: v for k, v in quantised.items() if k.startswith(module + ".")}
        got = compressor.decompress(state, group)["weight"].double()
        error += float(((got - want.double()) ** 2).sum())
        total += float((want.double() ** 2).sum())
        count += 1
    relative = (error / total) ** 0.5
    print(f"{config['format']}: {count} matrices, relative error {relative:.4f}")
    assert 0 < relative < LIMITS[group.weights.num_bits]


main()
