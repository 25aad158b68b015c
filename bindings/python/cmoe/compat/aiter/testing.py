# SPDX-License-Identifier: MIT
"""aiter.test_common: what AITER's test scripts compare and time with, on any device."""

import functools
import time

import torch


def checkAllclose(a, b, rtol=1e-2, atol=1e-2, tol_err_ratio=0.05, msg="", printNum=8, printLog=True,
                  **_):  # fmt: skip
    """The share of elements outside the tolerance (0 when all are inside); it only reports."""
    outside = ~torch.isclose(a.float(), b.float(), rtol=rtol, atol=atol)
    share = outside.float().mean().item() if outside.numel() else 0.0
    if share and printLog:
        print(f"{msg} {share:.2%} of {outside.numel()} elements differ")
    return share


def run_perftest(func, *args, num_iters=101, num_warmup=2, **kwargs):
    """(result, microseconds a call)."""
    for name in ("testGraph", "num_rotate_args", "needTrace", "use_cuda_event"):
        kwargs.pop(name, None)
    for _ in range(num_warmup):
        func(*args, **kwargs)
    start = time.perf_counter()
    for _ in range(max(1, num_iters)):
        result = func(*args, **kwargs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, (time.perf_counter() - start) / max(1, num_iters) * 1e6


def perftest(num_iters=101, num_warmup=2, **options):
    """Decorator form of run_perftest."""

    def decorate(func):
        @functools.wraps(func)
        def timed(*args, **kwargs):
            return run_perftest(func, *args, num_iters=num_iters, num_warmup=num_warmup, **kwargs)

        return timed

    return decorate


def benchmark():
    """Decorator: the call's keyword arguments and its result in one dict."""

    def decorate(func):
        @functools.wraps(func)
        def row(*args, **kwargs):
            result = func(*args, **kwargs)
            return {**kwargs, **(result if isinstance(result, dict) else {"result": result})}

        return row

    return decorate


def exports():
    """aiter.test_common."""
    return {f.__name__: f for f in (checkAllclose, run_perftest, perftest, benchmark)}
