# SPDX-License-Identifier: MIT
"""A layer on rows that already lie by expert: x [E, capacity, H], counts [E].

This is vLLM's BatchedExperts format, what DeepEP's low-latency dispatch and pplx hand over. Routing
weights play no part: whoever combines the rows applies them.
"""


from . import problem as problems, tensors
from .errors import InvalidError
from .runtime import Plan, new_tensors
from .weights import is_float


def batched(layer, x, counts, *, out=None, x_scale=None, x_global=None, mid_scale=None,
            workspace=None):  # fmt: skip
    """[E, capacity, H]: every row of x through the expert it lies under.

    :param layer: a :class:`cmoe.Layer` without expert_map; E is its local experts.
    :param x: [E, capacity, H] contiguous, f32, f16, bf16 or codes of the scheme's activations with
        ``x_scale`` [E, capacity, ...].
    :param counts: int32 [E]: rows past an expert's count are not read, and not written in ``out``.
    """
    v, n = tensors.contiguous(tensors.view(x, "x")), tensors.integers(counts, "counts")
    base = layer.problem
    codes = v.dtype not in tensors.FLOATS and v.dtype != "u16"
    local = base.local_experts
    columns = layer._columns(v) if codes else base.c.hidden
    if len(v.shape) != 3 or (v.shape[0], v.shape[2]) != (local, columns):
        raise InvalidError(f"x has shape {list(v.shape)}; expected [{local}, capacity, {columns}]")
    capacity = v.shape[1]
    dtype = problems.DTYPES[base.c.in_] if codes else tensors.float_name(v, "x")
    tensors.expect(n, "counts", local)
    layer._same_device(v, n)
    shape = (local, capacity, base.c.hidden)
    if out is None:
        out = tensors.empty(v, shape, dtype if codes else v.dtype)
    y = tensors.view(out, "out")
    if tuple(y.shape) != shape or not y.contiguous:
        raise InvalidError(f"out has shape {list(y.shape)}; expected contiguous {list(shape)}")
    if capacity == 0:
        return out
    plan = _plan(layer, capacity, dtype, tensors.float_name(y, "out"), codes)
    t = new_tensors(capacity)
    t.x, t.y, t.expert_offsets = v.ptr, y.ptr, n.ptr
    rows = tensors.View(v.ptr, v.dtype, (local * capacity, columns), (columns, 1), v.device, v, v.kind)
    keep = [rows]
    if codes:
        keep += layer._codes_scales(t, rows, x_scale, x_global)
    keep += layer._extras(t, None, None if codes else x_scale, mid_scale, None, None, None)
    plan.run(t, v, workspace)
    return out


def _plan(layer, capacity, dtype, y, codes):
    where = ("batched", capacity, dtype, y, codes)
    plan = layer._plans.get(where)
    if plan is None:
        p = layer.problem.copy(
            f"t={capacity} k=1 sort=batched cap={capacity} stages=quant..combine in={dtype} y={y} "
            f"won=out {'xq' if codes else ''}"
        )
        for fmt in (p.c.x, p.c.mid):
            if is_float(fmt):
                fmt.dtype = problems.DTYPES[dtype]
        with layer._lock:
            plan = layer._plans.setdefault(where, Plan(layer.device, p, layer.weights))
    return plan
