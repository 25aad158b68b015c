# SPDX-License-Identifier: MIT
"""Which names the modules hold: module -> namespace."""

from . import direct, fused, gemm, host, kinds, ops, quant, quant_moe, routing, testing, triton_ops

_ACTIVATIONS = (
    "silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "swiglu_and_mul", "scaled_silu_and_mul",
    "silu_and_mul_bias", "gelu_and_mul_bias", "swiglu_and_mul_bias",
)  # fmt: skip


def _family_a():
    sort = {"moe_sorting_fwd": ops.moe_sorting_fwd}
    route = ops.exports(
        "topk_gating topk_softplus biased_grouped_topk_hip biased_grouped_topk grouped_topk "
        "moe_fused_gate"
    )
    moe = ops.exports("topk_softmax topk_softmax_asm topk_sigmoid moe_sum moe_align_block_size")
    moe.update(direct.exports())
    quantise, shuffle = quant.exports(), quant.shuffles()
    enums = {"ActivationType": kinds.ActivationType, "QuantType": kinds.QuantType}
    act = host.names(*_ACTIVATIONS)
    return {
        "aiter": {**enums, **moe, **route, **quantise, **shuffle, **act, "dtypes": quant.dtypes,
                  **host.names("get_gfx", "get_cu_num")},
        "aiter.fused_moe": {**fused.exports(), **enums, "moe_sorting": ops.moe_sorting},
        "aiter.fused_moe_bf16_asm": fused.asm_exports(),
        "aiter.fused_moe_dp_shared_expert": fused.shared_exports(),
        "aiter.ops": {},
        "aiter.ops.activation": act,
        "aiter.ops.enum": enums,
        "aiter.ops.moe_op": moe,
        "aiter.ops.moe_sorting": sort,
        "aiter.ops.topk": route,
        "aiter.ops.quant": quantise,
        "aiter.ops.shuffle": shuffle,
        "aiter.jit": {},
        "aiter.jit.utils": {},
        "aiter.jit.utils.chip_info": host.names("get_gfx", "get_cu_num"),
        "aiter.utility": {},
        "aiter.utility.dtypes": vars(quant.dtypes),
        "aiter.test_common": testing.exports(),
    }  # fmt: skip


def _triton():
    root = "aiter.ops.triton"
    flow = {"routing": routing.exports()}
    made = {
        "": {},
        ".moe": {},
        ".moe.moe_op": {"fused_moe": triton_ops.fused_moe},
        ".moe.moe_op_silu_fused": {"fused_moe_silu": triton_ops.fused_moe_silu},
        ".moe.moe_op_gelu": {"fused_moe_gelu": triton_ops.fused_moe_gelu},
        ".moe.moe_op_e2e": {"e2e_moe": triton_ops.e2e_moe},
        ".moe.moe_align_block_size": {
            "moe_align_block_size_triton": ops.moe_align_block_size_triton},
        ".moe.moe_routing_sigmoid_top1_fused": {
            "routing_sigmoid_top1": triton_ops.routing_sigmoid_top1},
        ".moe.quant_moe": quant_moe.exports(),
        ".moe.moe_routing": {},
        ".moe_routing": {},
        ".utils": {},
        ".utils.moe_common": {"torch_silu_and_mul_ref": triton_ops.torch_silu_and_mul_ref},
        ".utils.moe_config_utils": host.names("get_optimal_moe_config", "get_optimal_moe_config_func"),
        ".utils.types": host.names("torch_to_triton_dtype"),
        ".utils._triton": {},
        ".utils._triton.arch_info": host.names("get_arch", "is_fp4_avail"),
        ".utils._triton.kernel_repr": host.names("make_kernel_repr"),
        ".utils._triton.pid_preprocessing": host.names("remap_xcd", "pid_grid"),
    }  # fmt: skip
    for name, contents in flow.items():
        made[f".moe.moe_routing.{name}"] = made[f".moe_routing.{name}"] = contents
    for name, contents in gemm.modules().items():
        made[f".moe.{name}"] = contents
        made[f".{name}"] = contents  # where they lay before
    return {root + name: contents for name, contents in made.items()}


def modules():
    """Parents come before their children."""
    return {**_family_a(), **_triton()}
