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
from .names import modules as _modules


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
