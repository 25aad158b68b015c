# SPDX-License-Identifier: MIT
"""What the experts classes compute and claim, without importing vLLM: configs are read by attribute.

Source of the interface and its conventions: vllm/model_executor/layers/fused_moe/modular_kernel.py and
experts/aiter_mxfp4_w4a8_moe.py. Ids of -1 and ids without a local expert contribute exactly zero.
"""

import functools
import os

import torch

from ... import tensors
from ...batched import batched
from ...compat.common import ACTIVATIONS, unpack_zeros, weight_words
from ...compat.vllm import settings
from ...errors import Error, InvalidError, UnsupportedError
from ...functions import layer_for
from ...problem import Problem
from ...runtime import Plan, device as open_device
from .keys import words_of_keys

_ROUTERS = ("RENORMALIZE", "RENORMALIZENAIVE")


def _name(activation):
    return getattr(activation, "value", activation)


@functools.lru_cache(maxsize=1)
def _gpu_runs():
    if not torch.cuda.is_available() or torch.version.hip:
        return False
    try:
        open_device("cuda:0")
    except Error:
        return False
    return True


class Claims:
    """What cmoe's kernels support, as vLLM's oracles ask."""

    @staticmethod
    def _supports_current_device():
        return _gpu_runs() or not torch.cuda.is_available()

    @staticmethod
    def _supports_no_act_and_mul():
        return True

    @staticmethod
    def _supports_quant_scheme(weight_key, activation_key):
        return words_of_keys(weight_key, activation_key) is not None

    @staticmethod
    def _supports_activation(activation):
        return _name(activation) in ACTIVATIONS

    @staticmethod
    def _supports_parallel_config(moe_parallel_config):
        return True

    @staticmethod
    def _supports_batch_invariance():
        return True  # options() asks the planner for such kernels

    def supports_expert_map(self):
        return True

    def supports_chunking(self):
        return False

    @property
    def expects_unquantized_inputs(self):
        return True

    def workspace_dtype(self, act_dtype):
        return act_dtype


def options(activation, moe_config, quant_config):
    """Words for the activation's parameters and batch invariance; GEMM2's results as vLLM has them."""
    name = _name(activation)

    def setting(quant, config):
        value = getattr(quant_config, quant, None)
        return getattr(moe_config, config, None) if value is None else value

    words = ["reduced"]
    limit = setting("gemm1_clamp_limit", "swiglu_limit")
    alpha, beta = setting("gemm1_alpha", "swiglu_alpha"), setting("gemm1_beta", "swiglu_beta")
    if limit:
        words.append(f"limit={float(limit)}")
    if name.startswith("swigluoai"):
        words += [f"{k}={float(v)}" for k, v in (("alpha", alpha), ("beta", beta)) if v is not None]
    elif alpha not in (None, 1.0) or beta not in (None, 0.0):
        raise UnsupportedError(f"activation {name!r} with alpha {alpha} and beta {beta}")
    if name == "situ":
        for key, attribute in (("beta", "activation_situ_beta"),
                               ("lbeta", "activation_situ_linear_beta")):  # fmt: skip
            value = getattr(moe_config, attribute, None)
            words += [] if value is None else [f"{key}={float(value)}"]
    if os.environ.get("VLLM_BATCH_INVARIANT", "0") not in ("", "0"):
        words.append("binv")
    return " ".join(words)


class Modular(Claims):
    """The common part of both activation formats."""

    def _layer(self, dtype, w1, w2, activation, expert_map=None, experts=None):
        """The layer over these weights in place, from the cache of cmoe.functions."""
        q = settings(self.quant_config, {})
        zeros = [q["w1_zp"], q["w2_zp"]]
        if q["use_int4_w4a16"]:
            zeros = [z if z is None else unpack_zeros(z) for z in zeros]
        act, gate = ACTIVATIONS[_name(activation)]
        words = self._words(w1, q)
        extra = options(activation, self.moe_config, self.quant_config)
        name = tensors.torch_dtype_name(dtype)
        return layer_for(
            w1, w2, scheme=None if words is None else name, act=act, gate=gate,
            options=f"{words or ''} {extra}", pack=False, expert_map=expert_map, experts=experts,
            w1_scale=q["w1_scale"], w2_scale=q["w2_scale"], w1_zero=zeros[0], w2_zero=zeros[1],
            b1=q["w1_bias"], b2=q["w2_bias"],
        )  # fmt: skip

    @staticmethod
    def _words(w1, q):
        return weight_words(
            w1, q["w1_scale"], fp8=q["use_fp8_w8a8"], int8=q["use_int8_w8a8"],
            int8_w8a16=q["use_int8_w8a16"], int4_w4a16=q["use_int4_w4a16"], mx=q["ocp_mx_scheme"],
            per_channel=q["per_channel_quant"], block_shape=q["block_shape"],
            zeros=q["w1_zp"] is not None, static=q["a1_scale"] is not None,
        )  # fmt: skip

    def _static(self, a2_scale):
        """(x_scale, mid_scale): the static ones of the configuration."""
        q = self.quant_config
        mid = a2_scale if a2_scale is not None else q.a2_scale
        return _largest(q.a1_scale), _largest(mid)

    def _workspace(self, rows, width, hidden, topk, experts, activation, extra):
        """(rows, columns) of the workspace's elements for a plan of this shape."""
        dtype = self.moe_config.in_dtype
        act, gate = ACTIVATIONS[_name(activation)]
        name = tensors.torch_dtype_name(dtype)
        q = settings(self.quant_config, {})
        words = self._words(_Weights(experts, self.quant_config), q) or f"w={name}"
        text = (
            f"e={max(experts, topk)} local={experts} k={topk} h={hidden} act={act} gate={gate} "
            f"i={width if gate == 'none' else width // 2} x={name} mid={name} in={name} y={name} "
            f"{words} {options(activation, self.moe_config, self.quant_config)} {extra}"
        )
        size = _workspace_size(text, str(torch.empty(0, device=self.moe_config.device).device))
        item = torch.empty(0, dtype=dtype).element_size()
        return (rows, -(-(size + 256) // (rows * item)))


class _Weights:
    """Stands for weights whose type a workspace's size does not depend on."""

    def __init__(self, experts, quant_config):
        self.shape = (experts,)
        self.dtype = getattr(quant_config, "weight_quant_dtype", None)
        if not isinstance(self.dtype, torch.dtype):
            self.dtype = torch.uint8


@functools.lru_cache(maxsize=256)
def _workspace_size(text, where):
    dev = open_device(None if where == "cpu" else where if ":" in where else f"{where}:0")
    formats = (b"canonical", b"canonical")
    try:
        return Plan(dev, Problem(text), formats=formats).workspace_size
    except UnsupportedError:
        return Plan(open_device("ref"), Problem(text), formats=formats).workspace_size


def _largest(scale):
    """A static scale given once or by expert, as one number on its device."""
    return None if scale is None else scale.float().max().reshape(1)


class Standard(Modular):
    """Activation format Standard."""

    def workspace_shapes(self, M, N, K, topk, global_num_experts, local_num_experts,
                         expert_tokens_meta, activation):  # fmt: skip
        """(nothing, the plan's workspace, [M, K])."""
        bucket = max(8, 1 << max(M - 1, 0).bit_length())
        scratch = self._workspace(max(M, 1), N, K, topk, local_num_experts, activation,
                                  f"t={bucket} stages=quant..combine")  # fmt: skip
        return (0,), scratch, (M, K)

    def apply(self, output, hidden_states, w1, w2, topk_weights, topk_ids, activation,
              global_num_experts, expert_map, a1q_scale, a2_scale, workspace13, workspace2,
              expert_tokens_meta, apply_router_weight_on_input):  # fmt: skip
        """output [M, K] = the weighted sum. With apply_router_weight_on_input prepare() has scaled x.

        hidden_states may be quantised already, with a1q_scale.
        """
        if hidden_states.shape[0] == 0:
            return
        layer = self._layer(output.dtype, w1, w2, activation, expert_map)
        codes = not hidden_states.dtype.is_floating_point or hidden_states.element_size() == 1
        x_scale, mid_scale = self._static(a2_scale)
        if apply_router_weight_on_input:
            topk_weights = torch.ones_like(topk_weights)
        if topk_ids.dtype not in (torch.int32, torch.int64):
            topk_ids = topk_ids.to(torch.int64)
        layer(hidden_states, topk_ids=topk_ids, topk_weights=topk_weights, out=output,
              x_scale=a1q_scale if codes else x_scale, mid_scale=mid_scale,
              workspace=workspace2)  # fmt: skip


class Batched(Modular):
    """Activation format BatchedExperts."""

    def supports_expert_map(self):
        return False

    def workspace_shapes(self, M, N, K, topk, global_num_experts, local_num_experts,
                         expert_tokens_meta, activation):  # fmt: skip
        """(nothing, the plan's workspace, [E, rows of an expert, K])."""
        rows = max(self.max_num_tokens * self.num_dispatchers, 1)
        scratch = self._workspace(rows, N, K, 1, local_num_experts, activation,
                                  f"t={rows} sort=batched cap={rows} "
                                  "stages=quant..combine")  # fmt: skip
        return (0,), scratch, (local_num_experts, rows, K)

    def apply(self, output, hidden_states, w1, w2, topk_weights, topk_ids, activation,
              global_num_experts, expert_map, a1q_scale, a2_scale, workspace13, workspace2,
              expert_tokens_meta, apply_router_weight_on_input):  # fmt: skip
        """output [E, rows, K]; rows past an expert's count are neither read nor written."""
        if expert_tokens_meta is None:
            raise InvalidError("the batched format needs expert_tokens_meta")
        layer = self._layer(output.dtype, w1, w2, activation)
        codes = not hidden_states.dtype.is_floating_point or hidden_states.element_size() == 1
        x_scale, mid_scale = self._static(a2_scale)
        batched(layer, hidden_states, expert_tokens_meta.expert_num_tokens, out=output,
                x_scale=a1q_scale if codes else x_scale, mid_scale=mid_scale,
                workspace=workspace2)  # fmt: skip


class MonolithicW4A8(Claims):
    """Router and experts in one: MXFP4 weights, static e4m3 activations, gpt-oss's activation.

    w1 uint8 [E, 2I, H/2] with gate and up rows interleaved, w2 uint8 [E, H, I/2], low nibble first;
    scales e8m0 uint8 [E, rows, columns/32]; a1_scale, a2_scale f32, one number or one by expert (the
    largest counts). Rows and columns past the unpadded sizes count as zero.
    """

    def __init__(self, moe_config, quant_config):
        super().__init__(moe_config, quant_config)
        self.topk = moe_config.experts_per_token
        self.renormalize = moe_config.routing_method.name.upper() in _ROUTERS

    @staticmethod
    def _supports_no_act_and_mul():
        return False

    @staticmethod
    def _supports_quant_scheme(weight_key, activation_key):
        return words_of_keys(weight_key, activation_key) == (
            "x=e4m3/tensor:static w=e2m1/mx32 mid=e4m3/tensor:static"
        )

    @staticmethod
    def _supports_activation(activation):
        return _name(activation) == "swigluoai"

    @staticmethod
    def _supports_parallel_config(moe_parallel_config):
        c = moe_parallel_config
        return not c.use_all2all_kernels and not c.enable_eplb and c.dp_size <= 1

    @staticmethod
    def _supports_routing_method(routing_method, weight_key, activation_key):
        return routing_method.name.upper() in _ROUTERS

    @staticmethod
    def _supports_router_logits_dtype(router_logits_dtype, routing_method):
        return True

    def supports_expert_map(self):
        return False

    def apply(self, hidden_states, w1, w2, router_logits, activation, global_num_experts, expert_map,
              a1q_scale, apply_router_weight_on_input, num_expert_group=None,
              e_score_correction_bias=None, routed_scaling_factor=None, topk_group=None,
              routing_replay_out=None):  # fmt: skip
        """[M, H] of hidden_states' type. Ties go to the highest expert, as in AITER's router.

        apply_router_weight_on_input multiplies behind the activation.
        """
        if expert_map is not None or _name(activation) != "swigluoai":
            raise UnsupportedError("the W4A8 experts take swigluoai and no expert_map")
        q, c = self.quant_config, self.moe_config
        hidden, inter = w2.shape[1], w1.shape[1] // 2
        hpad = hidden - (c.hidden_dim_unpadded or hidden)
        ipad = inter - (c.intermediate_size_per_partition_unpadded or inter)
        name = tensors.torch_dtype_name(hidden_states.dtype)
        layer = layer_for(
            w1, w2, topk=self.topk, scheme=f"mxfp4-w4a8:{name},static",
            router=f"softmax {'topkfirst' if self.renormalize else ''}", act="swiglu-oai",
            gate="interleaved", weight_on="act" if apply_router_weight_on_input else "out",
            options=f"tiehigh hpad={hpad} ipad={ipad} {options(activation, c, q)}", pack=False,
            w1_scale=q.w1_scale, w2_scale=q.w2_scale, b1=q.w1_bias, b2=q.w2_bias,
        )  # fmt: skip
        y, ids, _ = layer(hidden_states, router_logits, x_scale=_largest(q.a1_scale),
                          mid_scale=_largest(q.a2_scale), return_routing=True)  # fmt: skip
        if routing_replay_out is not None:
            routing_replay_out[: ids.shape[0], : ids.shape[1]] = ids.to(routing_replay_out.dtype)
        return y
