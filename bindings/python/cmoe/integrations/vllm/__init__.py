# SPDX-License-Identifier: MIT
"""Experts classes for vLLM's modular MoE kernel, and the plugin that puts them first.

``CmoeExperts`` (Standard activation format), ``CmoeBatchedExperts`` (BatchedExperts) and
``CmoeW4A8ExpertsMonolithic`` (router and experts, MXFP4 weights, static fp8 activations) are made on
first use, because they derive from vLLM's base classes. A kernel is built from them as from any other:
``mk.FusedMoEKernel(prepare_finalize, CmoeExperts(moe_config, quant_config))``.

The entry point ``vllm.general_plugins: cmoe`` calls :func:`register` in every vLLM process. It does
nothing unless CMOE_VLLM=1; then vLLM asks cmoe's classes before its own wherever weights stay in the
checkpoint's layout: the Triton and CPU backends of unquantised, fp8 and int8 layers.
"""

import functools
import importlib
import os
import warnings

CLASSES = ("CmoeExperts", "CmoeBatchedExperts", "CmoeW4A8ExpertsMonolithic")
_ORACLES = ("unquantized", "fp8", "int8")
_BACKENDS = ("TRITON", "BATCHED_TRITON", "CPU")
_PACKAGE = "vllm.model_executor.layers.fused_moe.oracle."


def __getattr__(name):
    if name in CLASSES:
        return getattr(importlib.import_module(f"{__name__}.classes"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register(force=False):
    """Put cmoe's classes in front of vLLM's in its oracles; returns the names of the oracles.

    Does nothing without CMOE_VLLM=1 unless ``force``. May be called any number of times.
    """
    if not force and os.environ.get("CMOE_VLLM", "0") in ("", "0"):
        return []
    done = []
    for name in _ORACLES:
        try:
            oracle = importlib.import_module(_PACKAGE + name)
            theirs = oracle.backend_to_kernel_cls
        except (ImportError, AttributeError) as error:
            warnings.warn(f"this vLLM has no MoE oracle {name!r} that cmoe knows: {error}",
                          stacklevel=2)  # fmt: skip
            continue
        if not hasattr(theirs, "cmoe_wraps"):
            oracle.backend_to_kernel_cls = _first(theirs)
        done.append(name)
    return done


def _first(theirs):
    @functools.wraps(theirs)
    def backend_to_kernel_cls(backend):
        classes = list(theirs(backend))
        if backend.name in _BACKENDS:
            from .classes import CmoeBatchedExperts, CmoeExperts

            classes[:0] = [CmoeExperts, CmoeBatchedExperts]
        return classes

    backend_to_kernel_cls.cmoe_wraps = theirs
    return backend_to_kernel_cls
