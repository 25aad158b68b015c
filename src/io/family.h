/* SPDX-License-Identifier: MIT
 * Model families: what their config.json and their tensors are called. */
#ifndef CMOE_IO_FAMILY_H
#define CMOE_IO_FAMILY_H

#include <stdbool.h>

/* What config.json says beyond sizes; which keys are read. */
enum cmoe_family_trait {
    CMOE_FAMILY_NORM_TOPK = 1 << 0,   /* norm_topk_prob: weights are renormalised */
    CMOE_FAMILY_SPARSE_STEP = 1 << 1, /* decoder_sparse_step, mlp_only_layers: dense layers */
    CMOE_FAMILY_FIRST_DENSE = 1 << 2, /* first_k_dense_replace: leading dense layers */
    CMOE_FAMILY_MOE_STEP = 1 << 3,    /* interleave_moe_layer_step, moe_layers */
    CMOE_FAMILY_GROUPS = 1 << 4,      /* n_group, topk_group */
    CMOE_FAMILY_GREEDY = 1 << 5,      /* topk_method greedy: groups do not count */
    CMOE_FAMILY_SCALE = 1 << 6,       /* routed_scaling_factor */
    CMOE_FAMILY_OAI = 1 << 7,         /* swiglu_limit; the activation is not hidden_act */
    CMOE_FAMILY_BIASES = 1 << 8,      /* both expert matrices and the router have biases */
    CMOE_FAMILY_INTERLEAVED = 1 << 9, /* fused gate and up rows alternate */
    CMOE_FAMILY_TRANSPOSED = 1 << 10, /* fused tensors are [experts, inputs, outputs] */
};

struct cmoe_family {
    const char *model_type;
    const char *nested; /* the language model's object inside config.json, or NULL */
    const char *gguf;   /* general.architecture of GGUF files, or NULL */
    const char *router; /* preset of cmoe_problem_router */
    unsigned traits;    /* enum cmoe_family_trait */

    /* config.json */
    const char *experts, *inter; /* keys of E and I */
    double rms_eps, rope_theta;  /* where config.json leaves them out */

    /* Tensors: model.layers.L.<block>.<gate_name>.weight and
     * model.layers.L.<block>.experts.E.<gate|up|down>.weight, or experts.gate_up_proj and
     * experts.down_proj of all experts. */
    const char *block, *gate_name, *gate, *up, *down;
    const char *shared; /* module of the shared experts in the block, or NULL */
};

/* NULL when the family is not read. */
const struct cmoe_family *cmoe__family_find(const char *model_type);
/* By general.architecture. */
const struct cmoe_family *cmoe__family_find_gguf(const char *architecture);
/* "mixtral, qwen2_moe, ...": what is read, for messages. */
const char *cmoe__family_list(char *text, int size);

#endif
