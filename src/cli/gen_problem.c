/* SPDX-License-Identifier: MIT
 * Random problems of the whole pipeline: fields are drawn independently and the library is asked
 * whether it accepts the result. */
#include "cli/gen_state.h"

#include <stdio.h>

static void draw_scheme(struct gen_rng *rng, cmoe_problem *p)
{
    static const char *const options[] = {
        "",      ":f32",  ":f16",     ":static",     ":e5m2",    ":fnuz",        ":fp8",
        ":g64",  ":g16",  ":g128,zp", ":channel,zp", ":channel", ":b128",        ":even",
        ":down", ":ceil", ":zp",      ":tensor",     ":fp8,f16", ":static,fnuz",
    };
    int n = 0;
    while (cmoe_scheme_name(n) != NULL)
        n++;
    char text[96];
    const char *name = cmoe_scheme_name((int)gen_below(rng, n));
    snprintf(text, sizeof text, "%s%s", name,
             options[gen_below(rng, (int64_t)(sizeof options / sizeof options[0]))]);
    /* Options that do not go with the scheme are dropped. */
    if (cmoe_problem_scheme(p, text) != CMOE_OK && cmoe_problem_scheme(p, name) != CMOE_OK) return;
    const uint8_t types[] = {CMOE_F32, CMOE_F16, CMOE_BF16};
    if (gen_chance(rng, 4)) p->y = types[gen_below(rng, 3)];
    if (p->w.dtype == CMOE_I4 && gen_chance(rng, 4)) p->w.dtype = CMOE_U4;
    if (p->w.dtype == CMOE_I8 && gen_chance(rng, 4)) p->w.dtype = CMOE_U8;
    if (p->x.dtype == CMOE_I8 && gen_chance(rng, 4))
        p->x.rounding = p->mid.rounding = (uint8_t)gen_below(rng, CMOE_ROUNDING_COUNT);
    if (p->w.scaling == CMOE_SCALE_GROUP && gen_chance(rng, 4)) p->w.scale_dtype = CMOE_BF16;
}

/* Mostly few, so that many problems fit in a minute. */
static int32_t draw_columns(struct gen_rng *rng)
{
    const int64_t most = gen_chance(rng, 8) ? 192 : 48;
    return 1 +
           (int32_t)(gen_chance(rng, 2) ? gen_below(rng, most) : 16 * gen_below(rng, most / 16));
}

static void draw_sizes(struct gen_rng *rng, cmoe_problem *p)
{
    p->max_tokens = 1 + (int32_t)gen_below(rng, gen_chance(rng, 4) ? 64 : 5);
    if (gen_chance(rng, 64)) p->max_tokens = 0;
    p->hidden = draw_columns(rng);
    p->inter = draw_columns(rng);
    if (gen_chance(rng, 4)) p->hidden_pad = (int32_t)gen_below(rng, p->hidden);
    if (gen_chance(rng, 4)) p->inter_pad = (int32_t)gen_below(rng, p->inter);
    p->experts = 1 + (int32_t)gen_below(rng, gen_chance(rng, 16) ? 33 : 6);
    p->topk = 1 + (int32_t)gen_below(rng, p->experts < 8 ? p->experts : 8);
    if (gen_chance(rng, 64)) p->topk = 0;
    if (gen_chance(rng, 4)) p->shared = 1 + (int32_t)gen_below(rng, 2);
    if (gen_chance(rng, 8)) p->flags |= CMOE_EXPERT_MAP;
    if (gen_chance(rng, 4)) {
        p->expert_first =
            (p->flags & CMOE_EXPERT_MAP) != 0 ? 0 : (int32_t)gen_below(rng, p->experts);
        p->expert_count = 1 + (int32_t)gen_below(rng, p->experts - p->expert_first);
    }
}

static void draw_router(struct gen_rng *rng, cmoe_problem *p)
{
    const uint32_t flags[] = {CMOE_RENORMALIZE, CMOE_RENORMALIZE,    CMOE_TOPK_FIRST,
                              CMOE_ROUTE_BIAS,  CMOE_GROUP_SUM2,     CMOE_TIE_HIGH,
                              CMOE_HASH,        CMOE_SHARED_SIGMOID, CMOE_ROUTE_FROM_X};
    p->router = (uint8_t)gen_below(rng, gen_chance(rng, 8) ? CMOE_ROUTER_COUNT : CMOE_ROUTE_ALL);
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++)
        if (gen_chance(rng, 5)) p->flags |= flags[i];
    if (gen_chance(rng, 4) && p->experts % 2 == 0) {
        p->groups = p->experts % 4 == 0 ? 4 : 2;
        p->groups_kept = 1 + (int32_t)gen_below(rng, p->groups);
    }
    if (gen_chance(rng, 4)) p->route_scale = 2.5f;
    if (gen_chance(rng, 8)) p->shared_weight = 0.5f;
    if (gen_chance(rng, 8)) p->renorm_eps = 1e-20f;
    const uint8_t types[] = {CMOE_F32, CMOE_F16, CMOE_BF16};
    p->logits = types[gen_below(rng, 3)];
    const uint8_t first[] = {CMOE_STAGE_ROUTE, CMOE_STAGE_ROUTE, CMOE_STAGE_QUANT, CMOE_STAGE_SORT};
    p->first = first[gen_below(rng, 4)];
    if (p->first != CMOE_STAGE_ROUTE && gen_chance(rng, 8) && p->expert_count == 0 &&
        p->expert_first == 0 && (p->flags & CMOE_EXPERT_MAP) == 0)
        p->flags |= CMOE_LOCAL_IDS;
}

static void draw_layer(struct gen_rng *rng, cmoe_problem *p)
{
    const uint32_t flags[] = {CMOE_BIAS1,          CMOE_BIAS2,       CMOE_NO_REDUCE,
                              CMOE_X_QUANTIZED,    CMOE_BLOCK_JOINT, CMOE_MID_ROUNDED,
                              CMOE_BATCH_INVARIANT};
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++)
        if (gen_chance(rng, 6)) p->flags |= flags[i];
    p->act = (uint8_t)gen_below(rng, CMOE_ACTIVATION_COUNT);
    p->gate = (uint8_t)gen_below(rng, CMOE_GATE_COUNT);
    if (gen_chance(rng, 3)) p->weight_on = (uint8_t)gen_below(rng, CMOE_WEIGHT_ON_COUNT);
    if (gen_chance(rng, 8)) p->act_limit = 3;
    if (gen_chance(rng, 8)) p->accumulate = gen_chance(rng, 2) ? 1.0f : 0.5f;
}

void gen_problem(uint64_t seed, cmoe_problem *out)
{
    struct gen_rng rng = gen_rng_make(seed, GEN_FOR_PROBLEM);
    for (;;) {
        cmoe_problem_init(out);
        draw_sizes(&rng, out);
        draw_scheme(&rng, out);
        draw_router(&rng, out);
        draw_layer(&rng, out);
        if (cmoe_problem_check(out) == CMOE_OK) return;
    }
}
