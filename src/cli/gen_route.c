/* SPDX-License-Identifier: MIT
 * Routing: logits (or router weights) for plans that start at ROUTE, ids and weights for the rest.
 *
 * EXACT logits are of three kinds: high for 1, 2 or 4 experts, middle for the others that are to be
 * selected, low for the rest. Weights then are equal powers of two, and exactly 0 in f32.
 * REAL logits are drawn so that no two different keys are closer than a kernel may err, because
 * then ids could differ. */
#include "cli/gen_state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 24 };

/* Store v as element i of f32, bf16 or f16 logits. */
static void store_logit(cmoe_dtype dtype, void *logits, int64_t i, float v)
{
    const uint32_t code = cmoe_encode(dtype, v);
    const uint16_t half = (uint16_t)code;
    unsigned char *bytes = logits;
    if (cmoe_dtype_bits(dtype) == 32)
        memcpy(bytes + 4 * i, &code, sizeof code);
    else
        memcpy(bytes + 2 * i, &half, sizeof half);
}

/* The first k entries of `ids` become k different numbers below n. `ids` has room for n. */
static void choose(struct gen_rng *rng, int64_t n, int64_t k, int32_t *ids)
{
    for (int64_t i = 0; i < n; i++)
        ids[i] = (int32_t)i;
    for (int64_t i = 0; i < k; i++) {
        const int64_t j = i + gen_below(rng, n - i);
        const int32_t other = ids[j];
        ids[j] = ids[i];
        ids[i] = other;
    }
}

/* k different experts that group selection can select. */
static void choose_in_groups(const cmoe_problem *p, struct gen_rng *rng, int32_t *ids,
                             int32_t *scratch)
{
    if (p->groups <= 0) {
        choose(rng, p->experts, p->topk, ids);
        return;
    }
    const int64_t size = p->experts / p->groups;
    const int64_t n = size * p->groups_kept;
    choose(rng, p->groups, p->groups_kept, scratch);
    int32_t *groups = scratch + p->groups;
    memcpy(groups, scratch, (size_t)p->groups_kept * sizeof *groups);
    choose(rng, n, p->topk, ids);
    for (int32_t i = 0; i < p->topk; i++)
        ids[i] = (int32_t)(groups[ids[i] / size] * size + ids[i] % size);
}

struct levels {
    float high, middle, low;
};

static struct levels exact_levels(const cmoe_problem *p)
{
    if (p->router == CMOE_ROUTE_RAW) return (struct levels){.high = 1, .middle = 0, .low = -1};
    return (struct levels){.high = 256, .middle = -400, .low = -600};
}

static void exact_row(const struct gen_state *s, struct gen_rng *rng, const int32_t *ids, float *v)
{
    const struct levels levels = exact_levels(s->p);
    int64_t high = (int64_t)1 << gen_below(rng, 3);
    while (high > s->p->topk)
        high /= 2;
    for (int64_t e = 0; e < s->ids; e++)
        v[e] = e < s->p->experts ? levels.low : 256; /* a shared expert's sigmoid is 1 */
    for (int32_t i = 0; i < s->p->topk; i++)
        if (ids[i] >= 0 && ids[i] < s->p->experts)
            v[ids[i]] = i < high ? levels.high : levels.middle;
}

/* Where keys are scores plus biases, logits to be checked lie on a grid of which no two sums come close. */
static void real_row(const struct gen_state *s, struct gen_rng *rng, int64_t hot, float *v)
{
    const bool grid = !s->options.plain && (s->p->flags & (CMOE_ROUTE_BIAS | CMOE_GROUP_SUM2)) != 0;
    for (int64_t e = 0; e < s->ids; e++) {
        v[e] =
            grid ? 0.5f * (float)(gen_below(rng, 13) - 6) + 0.125f : 1.5f * (float)gen_normal(rng);
        if (e == hot) v[e] += 2;
    }
}

static cmoe_status make_hash(struct gen_state *s, struct gen_rng *rng, int32_t *scratch)
{
    const cmoe_problem *p = s->p;
    cmoe_tensors *t = &s->call->tensors;
    int32_t *table = gen_input(s, (int64_t)VOCAB * p->topk * (int64_t)sizeof(int32_t));
    int64_t *tokens = gen_input(s, s->T * (int64_t)sizeof(int64_t));
    if (table == NULL || tokens == NULL) return CMOE_ERR_NO_MEMORY;
    for (int v = 0; v < VOCAB; v++) {
        choose(rng, p->experts, p->topk, scratch);
        memcpy(table + (int64_t)v * p->topk, scratch, (size_t)p->topk * sizeof *table);
    }
    for (int64_t i = 0; i < s->T; i++)
        tokens[i] = gen_below(rng, VOCAB);
    t->hash_table = table;
    t->token_ids = tokens;
    t->vocab = VOCAB;
    return CMOE_OK;
}

static cmoe_status make_route_bias(struct gen_state *s, struct gen_rng *rng)
{
    const bool exact = s->options.kind == GEN_EXACT;
    float *bias = gen_input(s, s->p->experts * (int64_t)sizeof(float));
    if (bias == NULL) return CMOE_ERR_NO_MEMORY;
    for (int32_t e = 0; e < s->p->experts; e++)
        bias[e] = (float)(gen_below(rng, 5) - 2) * (exact ? 0x1p-10f : 0.25f);
    s->call->tensors.route_bias = bias;
    return CMOE_OK;
}

static cmoe_status make_logits(struct gen_state *s, struct gen_rng *rng, int32_t *ids, float *row)
{
    const cmoe_problem *p = s->p;
    cmoe_tensors *t = &s->call->tensors;
    const cmoe_dtype dtype = (cmoe_dtype)p->logits;
    const int64_t n = p->experts + ((p->flags & CMOE_SHARED_SIGMOID) != 0 ? p->shared : 0);
    const int64_t element = cmoe_dtype_bits(dtype) / 8;
    const int64_t stride =
        s->loose ? n + gen_below(rng, 4) : gen_row_stride(s, n * element) / element;
    void *logits = gen_input(s, (int64_t)cmoe_dtype_bytes(dtype, s->T * stride));
    if (logits == NULL) return CMOE_ERR_NO_MEMORY;
    const int64_t hot = gen_chance(rng, 2) ? gen_below(rng, p->experts) : -1;
    for (int64_t i = 0; i < s->T; i++) {
        const bool hash = (p->flags & CMOE_HASH) != 0;
        const int32_t *chosen = ids;
        if (hash)
            chosen = t->hash_table + t->token_ids[i] * p->topk;
        else
            choose_in_groups(p, rng, ids, ids + s->ids);
        if (s->options.kind == GEN_EXACT)
            exact_row(s, rng, chosen, row);
        else
            real_row(s, rng, hot, row);
        for (int64_t e = 0; e < stride; e++)
            store_logit(dtype, logits, i * stride + e, e < n ? row[e] : NAN);
    }
    t->logits = logits;
    t->logits_stride = stride;
    return CMOE_OK;
}

/* Router weights that read a few columns: the f32 sums of a kernel then hardly round. EXACT: all
 * tokens are routed alike, by the column that is always 1. */
static cmoe_status make_router(struct gen_state *s, struct gen_rng *rng, int32_t *ids, float *row)
{
    const cmoe_problem *p = s->p;
    const int64_t n = p->experts + ((p->flags & CMOE_SHARED_SIGMOID) != 0 ? p->shared : 0);
    float *w = gen_input(s, n * s->H * (int64_t)sizeof(float));
    float *b = gen_input(s, n * (int64_t)sizeof(float));
    if (w == NULL || b == NULL) return CMOE_ERR_NO_MEMORY;
    choose_in_groups(p, rng, ids, ids + s->ids);
    exact_row(s, rng, ids, row);
    for (int64_t e = 0; e < n; e++) {
        for (int64_t c = 0; c < s->H; c++)
            w[e * s->H + c] = c < s->h_used ? 0 : NAN;
        b[e] = 0;
        if (s->options.kind == GEN_EXACT) {
            w[e * s->H + s->exact.one] = row[e];
            continue;
        }
        for (int i = 0; i < 3; i++)
            w[e * s->H + gen_below(rng, s->h_used)] = (float)(gen_below(rng, 257) - 128) / 64;
        b[e] = (float)gen_normal(rng);
    }
    s->call->tensors.router_w = w;
    s->call->tensors.router_b = s->options.kind == GEN_EXACT || gen_chance(rng, 2) ? b : NULL;
    return CMOE_OK;
}

/* Ids that count as nothing. */
static int32_t invalid_id(struct gen_rng *rng, int64_t ids)
{
    const int32_t choices[] = {-1, (int32_t)ids, INT32_MIN, INT32_MAX};
    return choices[gen_below(rng, 4)];
}

static void given_row(const struct gen_state *s, struct gen_rng *rng, int64_t ids, int64_t few,
                      int32_t *scratch, int32_t *out)
{
    const int64_t k = s->S < ids ? s->S : ids;
    choose(rng, few >= k ? few : ids, k, scratch);
    for (int64_t j = 0; j < s->S; j++)
        out[j] = scratch[j % k];
    if (s->options.plain || s->S == 0) return;
    if (gen_chance(rng, 8)) out[gen_below(rng, s->S)] = out[0];
    if (gen_chance(rng, 8)) out[gen_below(rng, s->S)] = invalid_id(rng, ids);
    if (gen_chance(rng, 16))
        for (int64_t j = 0; j < s->S; j++)
            out[j] = invalid_id(rng, ids);
}

static cmoe_status make_ids(struct gen_state *s, struct gen_rng *rng, int32_t *scratch)
{
    cmoe_tensors *t = &s->call->tensors;
    const bool wide = !s->options.plain && gen_chance(rng, 2);
    const int64_t n = s->T * s->S;
    int32_t *ids = gen_input(s, n * (int64_t)sizeof(int32_t));
    int64_t *ids64 = wide ? gen_input(s, n * (int64_t)sizeof(int64_t)) : NULL;
    float *weights = gen_input(s, n * (int64_t)sizeof(float));
    if (ids == NULL || weights == NULL || (wide && ids64 == NULL)) return CMOE_ERR_NO_MEMORY;
    const int64_t valid = (s->p->flags & CMOE_LOCAL_IDS) != 0 ? s->local : s->ids;
    /* Few experts: the others stay empty. */
    const int64_t few = s->options.plain || gen_chance(rng, 2) ? valid : 1 + gen_below(rng, valid);
    for (int64_t i = 0; i < s->T; i++)
        given_row(s, rng, valid, few, scratch, ids + i * s->S);
    for (int64_t i = 0; i < n; i++) {
        weights[i] = s->options.kind == GEN_EXACT ? (float)(1 + gen_below(rng, 2))
                                                  : (float)(0.05 + gen_unit(rng));
        if (wide) ids64[i] = ids[i];
    }
    s->call->ids = ids;
    t->topk_ids = wide ? NULL : ids;
    t->topk_ids64 = ids64;
    t->topk_weights = weights;
    return CMOE_OK;
}

/* A map to local experts in any order, with holes. */
static cmoe_status make_map(struct gen_state *s)
{
    struct gen_rng rng = gen_rng_make(s->options.seed, GEN_FOR_MAP);
    int32_t *map = gen_input(s, s->ids * (int64_t)sizeof(int32_t));
    int32_t *order = malloc((size_t)s->ids * sizeof *order);
    if (map == NULL || order == NULL) {
        free(order);
        return CMOE_ERR_NO_MEMORY;
    }
    choose(&rng, s->ids, s->ids, order);
    for (int64_t i = 0; i < s->ids; i++)
        map[order[i]] = i < s->local ? (int32_t)i : -1;
    free(order);
    s->call->tensors.expert_map = map;
    return CMOE_OK;
}

static cmoe_status make_route_inputs(struct gen_state *s, struct gen_rng *rng, int32_t *ids,
                                     float *row)
{
    const uint32_t flags = s->p->flags;
    cmoe_status status = CMOE_OK;
    if ((flags & CMOE_HASH) != 0) status = make_hash(s, rng, ids);
    if (status == CMOE_OK && (flags & CMOE_ROUTE_BIAS) != 0) status = make_route_bias(s, rng);
    if (status != CMOE_OK) return status;
    if ((flags & CMOE_ROUTE_FROM_X) != 0) return make_router(s, rng, ids, row);
    return make_logits(s, rng, ids, row);
}

cmoe_status gen_routing(struct gen_state *s)
{
    struct gen_rng rng = gen_rng_make(s->options.seed, GEN_FOR_ROUTE);
    cmoe_status status = CMOE_OK;
    if ((s->p->flags & CMOE_EXPERT_MAP) != 0) status = make_map(s);
    const bool none = s->p->router == CMOE_ROUTE_ALL && s->p->first == CMOE_STAGE_ROUTE;
    const bool by_row = s->p->capacity > 0 || (s->p->first >= CMOE_STAGE_GEMM1 &&
                                               s->p->sort_format == CMOE_SORT_M_INDICES);
    if (status != CMOE_OK || none || by_row) return status;
    const size_t room = (size_t)(3 * s->ids + s->p->topk + 1);
    int32_t *ids = malloc(room * sizeof *ids);
    float *row = malloc(room * sizeof *row);
    if (ids == NULL || row == NULL)
        status = CMOE_ERR_NO_MEMORY;
    else if (s->p->first == CMOE_STAGE_ROUTE)
        status = make_route_inputs(s, &rng, ids, row);
    else
        status = make_ids(s, &rng, ids);
    free(ids);
    free(row);
    return status;
}
