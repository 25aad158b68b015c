/* SPDX-License-Identifier: MIT
 * Model families: what their config.json and their tensors are called. */
#ifndef CMOE_IO_FAMILY_H
#define CMOE_IO_FAMILY_H

#include <stdbool.h>

struct cmoe_family {
    const char *model_type;
    const char *router; /* preset of cmoe_problem_router */

    /* config.json */
    const char *experts, *inter; /* keys of E and I */
    bool norm_topk;              /* norm_topk_prob says whether weights are renormalised */
    bool sparse_step; /* decoder_sparse_step and mlp_only_layers: layers without experts */
    double rms_eps, rope_theta; /* where config.json leaves them out */

    /* Tensors: model.layers.L.<block>.gate.weight and
     * model.layers.L.<block>.experts.E.<gate|up|down>.weight */
    const char *block, *gate, *up, *down;
};

/* NULL when the family is not read. */
const struct cmoe_family *cmoe__family_find(const char *model_type);

#endif
