# SPDX-License-Identifier: MIT
"""The experts classes as vLLM sees them: its base classes over what experts.py computes."""

import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from vllm.model_executor.layers.fused_moe.topk_weight_and_reduce import (
    TopKWeightAndReduceDelegate,
    TopKWeightAndReduceNoOP,
)

from . import experts


class CmoeExperts(experts.Standard, mk.FusedMoEExpertsModular):
    """x [M, H] and a routing -> the summed rows [M, H]."""

    @staticmethod
    def activation_format():
        return mk.FusedMoEActivationFormat.Standard

    def finalize_weight_and_reduce_impl(self):
        return TopKWeightAndReduceNoOP()


class CmoeBatchedExperts(experts.Batched, mk.FusedMoEExpertsModular):
    """x [E, rows, H] with counts -> [E, rows, H]; whoever combines weighs and sums."""

    @staticmethod
    def activation_format():
        return mk.FusedMoEActivationFormat.BatchedExperts

    def finalize_weight_and_reduce_impl(self):
        return TopKWeightAndReduceDelegate()


class CmoeW4A8ExpertsMonolithic(experts.MonolithicW4A8, mk.FusedMoEExpertsMonolithic):
    """Router logits -> the layer's result; MXFP4 weights as in the checkpoint, static fp8 inputs."""

    @staticmethod
    def activation_format():
        return mk.FusedMoEActivationFormat.Standard
