/* SPDX-License-Identifier: MIT
 * Making a call: weights, routing, rows and outputs in turn. */
#include "cli/gen_state.h"

static cmoe_status make_call(struct gen_state *s)
{
    cmoe_status status = gen_weights(s);
    if (status == CMOE_OK) status = gen_routing(s);
    if (status == CMOE_OK) status = gen_rows(s);
    if (status == CMOE_OK) status = gen_sorted(s);
    if (status == CMOE_OK) status = gen_outputs(s);
    if (status == CMOE_OK) status = gen_reference(s);
    return status;
}

struct gen_options gen_check_options(const cmoe_problem *p, enum gen_kind kind, uint64_t seed)
{
    const uint64_t turn = cmoe_problem_hash(p) ^ seed ^ (kind == GEN_EXACT);
    return (struct gen_options){.kind = kind, .seed = seed, .aligned = turn % 2 == 0};
}

cmoe_status gen_call_create(const cmoe_problem *p, const struct gen_options *options,
                            struct gen_call *out)
{
    *out = (struct gen_call){
        .problem = *p,
        .weights = {.struct_size = sizeof out->weights},
        .tensors = {.struct_size = sizeof out->tensors, .n_tokens = p->max_tokens},
    };
    struct gen_state s = {
        .call = out,
        .p = &out->problem,
        .options = *options,
        .T = p->max_tokens,
        .S = cmoe_problem_slots(p),
        .ids = (int64_t)p->experts + p->shared,
        .local = cmoe_problem_local_experts(p),
        .H = p->hidden,
        .I = p->inter,
        .rows1 = cmoe_problem_rows1(p),
        .h_used = p->hidden - p->hidden_pad,
        .i_used = p->inter - p->inter_pad,
        .gated = p->gate != CMOE_GATE_NONE,
        .loose = !options->plain && !options->aligned,
    };
    if (options->kind == GEN_EXACT) s.exact = gen_exact_values(p);
    const cmoe_status status = make_call(&s);
    if (status != CMOE_OK) {
        gen_call_free(out);
        return status;
    }
    if (!options->plain) gen_seal_inputs(out);
    return CMOE_OK;
}
