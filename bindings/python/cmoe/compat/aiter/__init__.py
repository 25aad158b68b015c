# SPDX-License-Identifier: MIT
"""AITER's MoE modules by name over cmoe: ``from cmoe.compat import aiter; aiter.install()``.

After install() imports such as ``from aiter.fused_moe import fused_moe`` find modules made of cmoe's
functions. Signatures and conventions are AITER's where they differ from cmoe's own; each function
says how. Two things hold everywhere: weight shuffles are the identity with a mark
(``is_shuffled``), since cmoe reads the logical layout; and sums over the k experts are fp32 in slot
order, where AITER adds up 16-bit values in any order.

Not provided: HERD, FHMoE, MegaMoE, bitmatrices. They are absent, so importing them fails.
"""

import os
import sys
import types
import warnings

from ... import runtime
from . import direct, fused, ops, quant, testing, triton_ops


def _modules():
    """Module name -> namespace."""
    sort = {"moe_sorting_fwd": ops.moe_sorting_fwd}
    route = ops.exports(
        "topk_gating topk_softplus biased_grouped_topk_hip biased_grouped_topk grouped_topk "
        "moe_fused_gate"
    )
    moe = ops.exports("topk_softmax topk_softmax_asm topk_sigmoid moe_sum moe_align_block_size")
    moe.update(direct.exports())
    quantise = quant.exports()
    shuffle = quant.shuffles()
    enums = {"ActivationType": fused.ActivationType, "QuantType": fused.QuantType}
    triton = "aiter.ops.triton"
    align = {"moe_align_block_size_triton": ops.moe_align_block_size_triton}
    sigmoid = {"routing_sigmoid_top1": triton_ops.routing_sigmoid_top1}
    return {
        "aiter": {**enums, **moe, **route, **quantise, **shuffle, "dtypes": quant.dtypes,
                  "get_gfx": lambda: "gfx950"},
        "aiter.fused_moe": {**fused.exports(), **enums, "moe_sorting": ops.moe_sorting},
        "aiter.fused_moe_bf16_asm": fused.asm_exports(),
        "aiter.fused_moe_dp_shared_expert": fused.shared_exports(),
        "aiter.ops": {},
        "aiter.ops.enum": enums,
        "aiter.ops.moe_op": moe,
        "aiter.ops.moe_sorting": sort,
        "aiter.ops.topk": route,
        "aiter.ops.quant": quantise,
        "aiter.ops.shuffle": shuffle,
        "aiter.utility": {},
        "aiter.utility.dtypes": vars(quant.dtypes),
        triton: {},
        f"{triton}.moe": {},
        f"{triton}.moe.moe_op": {"fused_moe": triton_ops.fused_moe},
        f"{triton}.moe.moe_op_silu_fused": {"fused_moe_silu": triton_ops.fused_moe_silu},
        f"{triton}.moe.moe_op_gelu": {"fused_moe_gelu": triton_ops.fused_moe_gelu},
        f"{triton}.moe.moe_op_e2e": {"e2e_moe": triton_ops.e2e_moe},
        f"{triton}.moe.moe_align_block_size": align,
        f"{triton}.moe.moe_routing_sigmoid_top1_fused": sigmoid,
        f"{triton}.utils": {},
        f"{triton}.utils.moe_common": {
            "torch_silu_and_mul_ref": triton_ops.torch_silu_and_mul_ref
        },
        "aiter.test_common": testing.exports(),
    }  # fmt: skip


def install(force=False):
    """Put the modules into sys.modules; a real aiter that is there stays unless ``force``."""
    present = sys.modules.get("aiter")
    if present is not None and not getattr(present, "__cmoe__", False) and not force:
        raise ImportError("another aiter is already imported; install(force=True) replaces it")
    made = {}
    for name, contents in _modules().items():
        module = types.ModuleType(name, f"{name} as cmoe.compat.aiter provides it.")
        module.__path__ = []
        module.__cmoe__ = True
        vars(module).update({k: v for k, v in contents.items() if not k.startswith("__")})
        made[name] = module
    for name, module in made.items():
        parent, _, child = name.rpartition(".")
        # A function may share its module's name (aiter.ops.triton.moe.*): the module wins.
        if parent:
            setattr(made[parent], child, module)
    sys.modules.update(made)
    _environment()


def uninstall():
    """Take the modules out again."""
    for name in _modules():
        if getattr(sys.modules.get(name), "__cmoe__", False):
            del sys.modules[name]


def _environment():
    """AITER's variables of the guide as cmoe's options.

    AITER_BYPASS_TUNE_CONFIG=1: plans ignore tuned times. AITER_CONFIG_FMOE: a file of tuned times in
    cmoe's format, as CMOE_TUNED. AITER_USE_NT, AITER_KSPLIT and AITER_ONLINE_TUNE select kernels that
    cmoe does not have, and have no effect.
    """
    runtime.ignore_tuned = os.environ.get("AITER_BYPASS_TUNE_CONFIG", "0") not in ("", "0")
    tuned = os.environ.get("AITER_CONFIG_FMOE")
    if tuned and tuned.endswith(".csv"):
        warnings.warn(f"AITER_CONFIG_FMOE={tuned}: AITER's kernel table means nothing to cmoe",
                      stacklevel=3)  # fmt: skip
    elif tuned:
        os.environ.setdefault("CMOE_TUNED", tuned)
    for name in ("AITER_USE_NT", "AITER_KSPLIT", "AITER_ONLINE_TUNE"):
        if os.environ.get(name, "0") not in ("", "0", "-1"):
            warnings.warn(f"{name} has no effect: the planner chooses kernels", stacklevel=3)
