# SPDX-License-Identifier: MIT
"""transformers v5: ``register()``, then ``model.set_experts_implementation("cmoe")``.

The experts function takes what transformers' ExpertsInterface hands over (hidden_states [T, H],
top_k_index [T, k], top_k_weights [T, k]) and reads layout and activation from the module: transposed
and interleaved weights, biases, clamps and ungated experts are used as they lie, without a copy.
The activation is found by asking the module's own gate function and comparing values, so that a new
model class works when its formula is one that cmoe knows, and is an error otherwise.
"""

import weakref

import torch
import torch.nn.functional as F

from .. import torch as _ops
from ..errors import UnsupportedError

NAME = "cmoe"


def register(name=NAME, pack=False):
    """Make ``name`` an experts implementation of transformers.

    :param pack: repack each layer's weights for the planner's kernels at its first call: faster, at
        the cost of a copy of the experts; later changes of the weights need another
        ``register(pack=True)``. False: weights are used in place.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    _kept.clear()
    ALL_EXPERTS_FUNCTIONS.register(name, _packed_experts if pack else experts_forward)
    _patch_llama4(name)


# Beside the modules, not in them, so that models can still be copied and saved.
_kept = weakref.WeakKeyDictionary()  # module -> (its weights' addresses and versions, Experts)


def _formulas(alpha, limit):
    """(name, options, formula of gate and up) for every activation of cmoe that models use."""
    plain = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu-tanh": lambda g: F.gelu(g, approximate="tanh"),
        "relu": F.relu,
        "relu2": lambda g: F.relu(g) ** 2,
        "identity": lambda g: g,
    }
    for name, f in plain.items():
        yield name, "", lambda g, u, f=f: f(g) * u
    for bound in {limit} - {None}:
        def clamped(g, u, bound=bound):
            return F.silu(g.clamp(max=bound)) * u.clamp(-bound, bound)

        yield "silu", f"limit={bound}", clamped

        def oai(g, u, bound=bound):
            g, u = g.clamp(max=bound), u.clamp(-bound, bound)
            return g * torch.sigmoid(alpha * g) * (u + 1)

        yield "swiglu-oai", f"alpha={alpha} limit={bound}", oai


def _activation(module, inter):
    """Words for the module's activation and the order of its gate and up columns."""
    values = torch.linspace(-9, 9, 2 * inter).roll(3).repeat(2, 1)
    values[1] = values[1].flip(0) / 3
    config = getattr(module, "config", None)
    limits = [getattr(o, "limit", None) or getattr(o, "swiglu_limit", None) for o in (module, config)]
    limit = next((float(v) for v in limits if v), None)
    alpha = float(getattr(module, "alpha", None) or 1.702)
    gated = getattr(module, "has_gate", True)
    if not gated:
        got = module.act_fn(values)
        for name, options, f in _formulas(alpha, limit):
            if torch.allclose(got, f(values, 1.0), rtol=1e-4, atol=1e-5) and not options:
                return name, "none", ""
    else:
        got = module._apply_gate(values)
        halves = {"split": values.chunk(2, -1), "interleaved": (values[:, ::2], values[:, 1::2])}
        for gate, (g, u) in halves.items():
            for name, options, f in _formulas(alpha, limit):
                if torch.allclose(got, f(g, u), rtol=1e-4, atol=1e-5):
                    return name, gate, options
    raise UnsupportedError(
        f"cmoe knows no activation that does what {type(module).__name__} does; use another experts "
        "implementation for this model"
    )


@torch.compiler.assume_constant_result
def _describe(module):
    """Activation, gate, "transposed" and options of a module, joined by "|".

    One string, kept as the module's attribute, because compilers take those as constants.
    """
    if getattr(module, "has_post_expert_norm", False):
        raise UnsupportedError(f"{type(module).__name__} normalises each expert's output")
    transposed = getattr(module, "is_transposed", False)
    inter = module.down_proj.shape[1 if transposed else 2]
    with torch.no_grad():
        act, gate, options = _activation(module, inter if inter % 2 == 0 else inter + 1)
    # Transformers' own experts have each slot's result in the model's type, too.
    words = "|".join((act, gate, "transposed" if transposed else "", f"reduced {options}"))
    module._cmoe_words = words
    return words


def _arrays(module):
    gated = getattr(module, "has_gate", True)
    w1 = module.gate_up_proj if gated else module.up_proj
    b1 = b2 = None
    if getattr(module, "has_bias", False):
        b1 = (module.gate_up_proj_bias if gated else module.up_proj_bias).float()
        b2 = module.down_proj_bias.float()
    return w1, module.down_proj, b1, b2


def experts_forward(module, hidden_states, top_k_index, top_k_weights):
    """The experts function: y [T, H] of hidden_states' type; weights in place."""
    words = getattr(module, "_cmoe_words", None) or _describe(module)
    act, gate, transposed, options = words.split("|")
    w1, w2, b1, b2 = _arrays(module)
    return torch.ops.cmoe.moe(
        hidden_states, w1, w2, top_k_weights.float(), top_k_index,
        None, None, None, None, None, None, b1, b2, act=act, gate=gate,
        transposed=transposed != "", options=options,
    )  # fmt: skip


def _packed_experts(module, hidden_states, top_k_index, top_k_weights):
    """The same through a packed layer that the module keeps."""
    handle = _packed_handle(module)
    return torch.ops.cmoe.layer(hidden_states, handle, top_k_weights.float(), top_k_index)


@torch.compiler.assume_constant_result
def _packed_handle(module):
    w1, w2, b1, b2 = _arrays(module)
    key = (w1.data_ptr(), w2.data_ptr(), w1._version, w2._version)
    kept = _kept.get(module)
    if kept is None or kept[0] != key:
        act, gate, transposed, options = _describe(module).split("|")
        experts = _ops.Experts(w1, w2, b1=b1, b2=b2, pack=True, act=act, gate=gate,
                               transposed=transposed != "", options=options)  # fmt: skip
        _kept[module] = kept = (key, experts)
    return kept[1].handle


def _patch_llama4(name):
    """Llama-4's layer computes every expert and has no interface: give it one.

    Its routing weight multiplies the experts' input, so a slot is expert(x * sigmoid(logit)).
    """
    try:
        from transformers.models.llama4 import modeling_llama4 as llama4
    except ImportError:
        return
    cls = llama4.Llama4TextMoe
    original = getattr(cls, "_cmoe_original", None) or cls.forward
    cls._cmoe_original = original

    def forward(self, hidden_states):
        config = self.shared_expert.config
        if getattr(config, "_experts_implementation", None) != name:
            return original(self, hidden_states)
        x = hidden_states.reshape(-1, self.hidden_dim)
        scores, logits = self.router(x)
        ids = torch.topk(logits, self.top_k, dim=1).indices
        y = torch.ops.cmoe.moe(
            x, self.experts.gate_up_proj, self.experts.down_proj, scores.gather(1, ids).float(), ids,
            transposed=True, weight_on="input", act=_llama4_act(self.experts), options="reduced",
        )  # fmt: skip
        return self.shared_expert(x) + y, logits

    cls.forward = forward
    for attribute in vars(llama4).values():
        if isinstance(attribute, type) and hasattr(attribute, "_can_set_experts_implementation"):
            attribute._can_set_experts_implementation_cached_value = True


def _llama4_act(experts):
    values = torch.linspace(-4, 4, 9)
    got = experts.act_fn(values)
    for act, options, f in _formulas(1.702, None):
        if torch.allclose(got, f(values, 1.0), rtol=1e-4, atol=1e-5):
            return act
    raise UnsupportedError(f"cmoe has no activation {experts.act_fn}")
