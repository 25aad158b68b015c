# SPDX-License-Identifier: MIT
"""AITER's activations and quantisations, by its values. Source: aiter/ops/enum.py."""

import enum


class ActivationType(enum.IntEnum):
    """AITER's activations, with its values."""

    No = -1
    Silu = 0
    Gelu = 1
    Swiglu = 2
    Situv2 = 3

    def __str__(self):
        return f"ActivationType.{self.name}"


class QuantType(enum.IntEnum):
    """AITER's quantisations, with its values."""

    No = 0
    per_Tensor = 1
    per_Token = 2
    per_1x32 = 3
    per_1x128 = 4
    per_128x128 = 5
    per_256x128 = 6
    per_1024x128 = 7

    def __str__(self):
        return f"QuantType.{self.name}"


ACTS = {ActivationType.No: "identity", ActivationType.Silu: "silu", ActivationType.Gelu: "gelu",
         ActivationType.Swiglu: "swiglu-oai", ActivationType.Situv2: "situv2"}  # fmt: skip
