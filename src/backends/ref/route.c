/* SPDX-License-Identifier: MIT
 * ROUTE: logits to k expert ids and weights a token. The selection rules are total: every value of
 * every logit, NaN and infinities included, gives distinct ids in range. */
#include "backends/ref/ref.h"

#include "core/numeric.h"
#include <math.h>
#include <string.h>

static double score(cmoe_router router, double z)
{
    switch (router) {
    case CMOE_ROUTE_SIGMOID:
        return 1 / (1 + exp(-z));
    case CMOE_ROUTE_SQRTSOFTPLUS:
        return sqrt(z > 40 ? z : log1p(exp(z)));
    case CMOE_ROUTE_SOFTMAX:
    case CMOE_ROUTE_RAW:
    case CMOE_ROUTE_ALL:
    case CMOE_ROUTER_COUNT:
        break;
    }
    return z;
}

/* Scores of n logits; softmax is over exactly these n. */
static void scores(cmoe_router router, const float *z, int n, double *out)
{
    if (router != CMOE_ROUTE_SOFTMAX) {
        for (int e = 0; e < n; e++)
            out[e] = score(router, z[e]);
        return;
    }
    double top = -INFINITY, sum = 0;
    for (int e = 0; e < n; e++)
        top = isnan(z[e]) ? NAN : (z[e] > top ? z[e] : top);
    for (int e = 0; e < n && isnan(top) == 0; e++)
        top = isnan(z[e]) ? NAN : top;
    for (int e = 0; e < n; e++) {
        out[e] = exp(z[e] - top);
        sum += out[e];
    }
    for (int e = 0; e < n; e++)
        out[e] /= sum;
}

/* Whether key a is strictly better than b: +Inf > finite > -Inf > NaN. */
static bool better(double a, double b)
{
    return isnan(b) ? !isnan(a) : a > b;
}

/* Index of the best of n keys not yet taken (taken: key marked in `used`), ties by `high`. */
static int best(const double *key, const unsigned char *used, int n, bool high)
{
    int at = -1;
    for (int e = 0; e < n; e++)
        if (!used[e] && (at < 0 || better(key[e], key[at]) || (high && !better(key[at], key[e]))))
            at = e;
    return at;
}

/* Selection keys: the logit, or score + bias when the sum matters. */
static void keys(const cmoe_problem *p, const float *z, const float *bias, const double *scored,
                 double *key)
{
    const bool by_score = (p->flags & (CMOE_ROUTE_BIAS | CMOE_GROUP_SUM2)) != 0;
    for (int e = 0; e < p->experts; e++) {
        if (!by_score || isnan(z[e]) || z[e] == -INFINITY) {
            key[e] = z[e];
        } else {
            const float s = isnan(scored[e]) ? z[e] : (float)scored[e];
            key[e] = s + (bias ? bias[e] : 0.0f);
        }
    }
}

static double group_score(const cmoe_problem *p, const double *key, int n)
{
    double first = NAN, second = NAN;
    for (int e = 0; e < n; e++) {
        if (better(key[e], first)) {
            second = first;
            first = key[e];
        } else if (better(key[e], second)) {
            second = key[e];
        }
    }
    return p->flags & CMOE_GROUP_SUM2 ? (double)((float)first + (float)second) : first;
}

/* Mark the experts of groups that are not kept as used. */
static void drop_groups(const cmoe_problem *p, const double *key, double *group_key,
                        unsigned char *used, unsigned char *group_used)
{
    const int size = p->experts / p->groups;
    memset(used, 1, (size_t)p->experts);
    memset(group_used, 0, (size_t)p->groups);
    for (int g = 0; g < p->groups; g++)
        group_key[g] = group_score(p, key + (int64_t)g * size, size);
    for (int i = 0; i < p->groups_kept; i++) {
        const int g = best(group_key, group_used, p->groups, p->flags & CMOE_TIE_HIGH);
        group_used[g] = 1;
        memset(used + (int64_t)g * size, 0, (size_t)size);
    }
}

static bool select_ids(const cmoe_problem *p, const float *z, const float *bias,
                       const double *scored, double *scratch, int32_t *ids)
{
    double *key = scratch, *group_key = scratch + p->experts;
    unsigned char *used = (unsigned char *)(group_key + p->experts);
    unsigned char *group_used = used + p->experts;
    bool all_masked = true;
    for (int e = 0; e < p->experts; e++)
        all_masked = all_masked && z[e] == -INFINITY;
    if (all_masked) return false;
    keys(p, z, bias, scored, key);
    memset(used, 0, (size_t)p->experts);
    if (p->groups > 0) drop_groups(p, key, group_key, used, group_used);
    for (int s = 0; s < p->topk; s++) {
        ids[s] = best(key, used, p->experts, p->flags & CMOE_TIE_HIGH);
        used[ids[s]] = 1;
    }
    return true;
}

/* Scores of the selected ids into w[topk]. */
static void selected_scores(const cmoe_problem *p, const float *z, const double *scored,
                            const int32_t *ids, float *picked, double *w)
{
    const cmoe_router router = (cmoe_router)p->router;
    const bool after = (p->flags & CMOE_TOPK_FIRST) && router == CMOE_ROUTE_SOFTMAX;
    for (int s = 0; s < p->topk; s++) {
        const bool valid = ids[s] >= 0 && ids[s] < p->experts;
        picked[s] = valid ? z[ids[s]] : -INFINITY;
        w[s] = valid ? scored[ids[s]] : 0;
    }
    if (after) scores(router, picked, p->topk, w);
}

static void finish_weights(const cmoe_problem *p, const double *w, float *weights)
{
    double factor = p->route_scale;
    if (p->flags & CMOE_RENORMALIZE) {
        double sum = 0;
        for (int s = 0; s < p->topk; s++)
            sum += w[s];
        sum += p->renorm_eps;
        for (int s = 0; s < p->topk; s++)
            weights[s] = (float)(sum == 0 ? 0 : w[s] / sum * factor);
        return;
    }
    for (int s = 0; s < p->topk; s++)
        weights[s] = (float)(w[s] * factor);
}

void cmoe__ref_route_row(const cmoe_problem *p, const float *z, const float *bias,
                         const int32_t *hash_ids, int32_t *ids, float *weights, double *scratch)
{
    double *scored = scratch, *w = scored + p->experts;
    float *picked = (float *)(w + p->topk);
    double *rest = w + 2 * (int64_t)p->topk;
    scores((cmoe_router)p->router, z, p->experts, scored);
    bool routed = true;
    if (hash_ids)
        memcpy(ids, hash_ids, (size_t)p->topk * sizeof *ids);
    else
        routed = select_ids(p, z, bias, scored, rest, ids);
    if (routed) {
        selected_scores(p, z, scored, ids, picked, w);
        finish_weights(p, w, weights);
    } else {
        for (int s = 0; s < p->topk; s++) {
            ids[s] = -1;
            weights[s] = 0;
        }
    }
    for (int j = 0; j < p->shared; j++) {
        ids[p->topk + j] = p->experts + j;
        weights[p->topk + j] = p->flags & CMOE_SHARED_SIGMOID
                                   ? (float)score(CMOE_ROUTE_SIGMOID, z[p->experts + j])
                                   : p->shared_weight;
    }
}

/* Logits of one token in f32, from the caller's or from x . Wr + b. */
static void token_logits(const struct cmoe_exec *x, int64_t t, int n, float *out)
{
    const cmoe_problem *p = x->p;
    if (!(p->flags & CMOE_ROUTE_FROM_X)) {
        const int64_t stride = x->t->logits_stride ? x->t->logits_stride : n;
        const size_t bytes = cmoe_dtype_bytes((cmoe_dtype)p->logits, stride);
        cmoe__load_row((cmoe_dtype)p->logits, (const char *)x->t->logits + (size_t)t * bytes, n,
                       out);
        return;
    }
    const void *row = (const char *)x->x + t * x->x_stride;
    for (int e = 0; e < n; e++) {
        const float *w = x->t->router_w + (int64_t)e * p->hidden;
        double sum = 0;
        for (int64_t h = 0; h < x->shape->h_used; h++)
            sum += (double)cmoe__load((cmoe_dtype)p->in, row, h) * w[h];
        out[e] = (float)(sum + (x->t->router_b ? x->t->router_b[e] : 0.0f));
    }
}

static const int32_t *hash_ids(const struct cmoe_exec *x, int64_t t)
{
    const int64_t token = x->t->token_ids[t];
    return token >= 0 && token < x->t->vocab ? x->t->hash_table + token * x->p->topk : NULL;
}

cmoe_status cmoe__ref_route(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    const cmoe_problem *p = x->p;
    const int32_t slots = x->shape->slots;
    const int n = p->experts + (p->flags & CMOE_SHARED_SIGMOID ? p->shared : 0);
    float *logits = x->scratch;
    double *scratch = (double *)x->scratch + n;
    const float *bias = p->flags & CMOE_ROUTE_BIAS ? x->t->route_bias : NULL;
    for (int64_t t = 0; t < x->tokens; t++) {
        int32_t *ids = x->ids + t * slots;
        float *weights = x->weights + t * slots;
        if (x->shape->route_all) {
            for (int32_t s = 0; s < slots; s++) {
                ids[s] = s;
                weights[s] = 1;
            }
            continue;
        }
        token_logits(x, t, n, logits);
        const bool hash = (p->flags & CMOE_HASH) != 0;
        const int32_t *given = hash ? hash_ids(x, t) : NULL;
        cmoe__ref_route_row(p, logits, bias, given, ids, weights, scratch);
        if (hash && !given)
            for (int32_t s = 0; s < p->topk; s++) {
                ids[s] = -1;
                weights[s] = 0;
            }
    }
    return CMOE_OK;
}
