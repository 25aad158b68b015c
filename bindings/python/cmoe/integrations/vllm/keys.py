# SPDX-License-Identifier: MIT
"""vLLM's quantisation keys as words of a problem.

A key has a type, a scale (its type, whether it is static, the group's rows and columns, -1 for all),
perhaps a second scale, and symmetry: vllm/model_executor/layers/quantization/utils/quant_utils.py.
"""


def _part(key):
    """(kind, scaling, static) of a key, or None where cmoe has no such format."""
    if key.scale2 is not None or not key.symmetric:
        return None
    kind = {"torch.float8_e4m3fn": "e4m3", "torch.float8_e4m3fnuz": "e4m3fnuz",
            "torch.int8": "i8", "torch.uint8": "e2m1", "torch.float4_e2m1fn_x2": "e2m1"}.get(
        str(key.dtype))  # fmt: skip
    group = (key.scale.group_shape[0], key.scale.group_shape[1])
    mx = str(key.scale.dtype) in ("torch.uint8", "torch.float8_e8m0fnu")
    scaling = {(-1, -1): "tensor", (1, -1): "token", (-1, 1): "channel", (128, 128): "b128",
               (1, 128): "g128", (1, 32): "mx32" if mx else "g32"}.get(group)  # fmt: skip
    if kind is None or scaling is None or (kind == "e2m1") != (scaling == "mx32" and kind == "e2m1"):
        return None
    return kind, scaling, key.scale.static


def words_of_keys(weight_key, activation_key):
    """Words "x=... w=... mid=..."; "" for unquantised; None: not supported."""
    if weight_key is None:
        return "" if activation_key is None else None
    w = _part(weight_key)
    x = None if activation_key is None else _part(activation_key)
    if w is None or (activation_key is not None and x is None) or not w[2]:
        return None
    pair = (w[0], w[1], x and x[0], x and x[1])
    fp8 = pair[0] in ("e4m3", "e4m3fnuz") and pair[2] == pair[0]
    known = (
        (fp8 and (pair[1], pair[3]) in (("tensor", "tensor"), ("channel", "token"),
                                        ("b128", "g128"), ("tensor", "token")))
        or pair in (("i8", "channel", "i8", "token"), ("i8", "tensor", "i8", "tensor"))
        or pair[:2] == ("e2m1", "mx32") and pair[2:] in (
            (None, None), ("e2m1", "mx32"), ("e4m3", "tensor"))
    )  # fmt: skip
    if not known:
        return None
    static = ":static" if x and x[2] else ""
    if static and x[1] != "tensor":
        return None
    formats = "" if x is None else f"x={x[0]}/{x[1]}{static} "
    after = "" if x is None else f" mid={x[0]}/{x[1]}{static}"
    return f"{formats}w={w[0]}/{w[1]}{after}"
