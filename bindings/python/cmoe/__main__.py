# SPDX-License-Identifier: MIT
"""python -m cmoe info | check | bench"""

import argparse
import os
import sys
import time

from . import check, info
from .errors import Error
from .problem import Problem


def bench(args):
    """Time Layer calls on random weights: median of a few runs, in microseconds."""
    import numpy

    from . import Layer

    p = Problem(args.problem)
    e, k, h, i = p.c.experts, p.c.topk, p.c.hidden, p.c.inter
    rng = numpy.random.default_rng(1)
    w1, w2 = (rng.standard_normal(s, numpy.float32) / 16 for s in ((e, 2 * i, h), (e, h, i)))
    layer = Layer(w1, w2, topk=k, scheme=args.scheme, router="qwen3", device=args.device)
    print(f"{layer!r}\n{'tokens':>7} {'us':>10}  path")
    for tokens in args.tokens:
        x = rng.standard_normal((tokens, h), numpy.float32)
        logits = rng.standard_normal((tokens, e), numpy.float32)
        times = []
        for _ in range(args.runs + 2):
            start = time.perf_counter()
            layer(x, logits)
            times.append(time.perf_counter() - start)
        median = sorted(times[2:])[args.runs // 2] * 1e6
        plan = next(p for p in layer._plans.values() if p.problem.c.max_tokens >= tokens)
        print(f"{tokens:7} {median:10.1f}  {plan.path(tokens)}")


def main(argv=None):
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m cmoe", description="cmoe from Python")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="version, library, CPU, backends")
    c = commands.add_parser("check", help="compare every scheme with the specification")
    c.add_argument("--device")
    b = commands.add_parser("bench", help="time layer calls")
    b.add_argument("problem", nargs="?", default="e=8 k=2 h=512 i=256")
    b.add_argument("--scheme")
    b.add_argument("--device")
    b.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 256])
    b.add_argument("--runs", type=int, default=9)
    args = parser.parse_args(argv)
    try:
        if args.command == "info":
            for key, value in info().items():
                if isinstance(value, dict):
                    value = "; ".join(f"{k}: {v}" for k, v in value.items())
                print(f"{key:10} {', '.join(value) if isinstance(value, list) else value}")
        elif args.command == "check":
            result = check(args.device, verbose=True)
            if result["unsupported"]:
                print("no kernel on this device: " + ", ".join(result["unsupported"]))
            print(f"{len(result['ok'])} schemes agree with the specification")
        else:
            bench(args)
    except Error as error:
        print(f"cmoe: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # a reader such as head has gone: nothing more can be told, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
