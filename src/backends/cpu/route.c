/* SPDX-License-Identifier: MIT
 * ROUTE: logits to ids and weights, a few tokens an item; from x, the logits first, by the dots that
 * canonical weights use.
 *
 * Scores are computed in double with the C library's functions: they decide ties, and they cost
 * nothing beside the experts. Selection is total: any logits give distinct ids in range. */
#include "backends/cpu/run.h"

#include "core/size.h"
#include <assert.h>
#include <math.h>
#include <string.h>

enum {
    LOGIT_TOKENS = 16, /* tokens and experts of an item of logits */
    LOGIT_EXPERTS = 64,
    SELECT_TOKENS = 8, /* tokens of an item of selection */
    MOST_ROWS = 8,     /* at least dot_rows and dot_cols of every instruction set */
};

/* Scratch of selecting one token. */
struct selection {
    double *score; /* [E] */
    double *w;     /* [k] */
    float *logits; /* [E + shared] */
    float *key;    /* [E] */
    float *group;  /* [groups] */
    float *picked; /* [k] */
    bool *used;    /* [E] */
    bool *group_used;
};

static size_t selection_bytes(const cmoe_problem *p)
{
    const size_t experts = (size_t)p->experts, shared = (size_t)p->shared, topk = (size_t)p->topk;
    const size_t groups = (size_t)p->groups;
    return (experts + topk) * sizeof(double) +
           (2 * experts + shared + groups + topk) * sizeof(float) + (experts + groups);
}

static struct selection selection_in(const cmoe_problem *p, void *scratch)
{
    struct selection s;
    s.score = scratch;
    s.w = s.score + p->experts;
    s.logits = (float *)(s.w + p->topk);
    s.key = s.logits + p->experts + p->shared;
    s.group = s.key + p->experts;
    s.picked = s.group + p->groups;
    s.used = (bool *)(s.picked + p->topk);
    s.group_used = s.used + p->experts;
    return s;
}

size_t cmoe__cpu_route_worker(const cmoe_problem *p, const struct cmoe_shape *s)
{
    const size_t rows = LOGIT_TOKENS * (size_t)cmoe__round_up(s->h_used, CMOE_CPU_CHUNK) * 4;
    const size_t selection = selection_bytes(p);
    return (p->flags & CMOE_ROUTE_FROM_X) && rows > selection ? rows : selection;
}

/* --- logits from x -------------------------------------------------------------------------- */

static int begin_logits(struct cmoe_cpu_run *run)
{
    return (int)(cmoe__ceil_div(run->x.tokens, LOGIT_TOKENS) *
                 cmoe__ceil_div(run->logit_cols, LOGIT_EXPERTS));
}

/* Experts [col, end) of tokens [first, first + m), rows packed in a. */
static void logit_columns(const struct cmoe_cpu_run *run, int64_t first, int m, int64_t col,
                          int64_t end, const float *a)
{
    const struct cmoe_exec *const x = &run->x;
    const int64_t k = x->shape->h_used, cols = run->logit_cols;
    const float *const bias = x->t->router_b;
    for (; col < end; col += run->ops->dot_cols) {
        const int n = (int)cmoe__min64(run->ops->dot_cols, end - col);
        const void *rows[MOST_ROWS];
        float *const out = run->logits + first * cols + col;
        for (int j = 0; j < n; j++)
            rows[j] = x->t->router_w + (col + j) * x->shape->H;
        run->ops->gemm_rows(CMOE_F32, m, n, k, a, rows, out, cols);
        for (int r = 0; r < m && bias; r++)
            for (int j = 0; j < n; j++)
                out[r * cols + j] += bias[col + j];
    }
}

static void logits_item(struct cmoe_cpu_run *run, int item, int worker)
{
    const struct cmoe_exec *const x = &run->x;
    const int64_t runs = cmoe__ceil_div(run->logit_cols, LOGIT_EXPERTS);
    const int64_t col = item % runs * LOGIT_EXPERTS;
    const int64_t first = item / runs * LOGIT_TOKENS;
    const int64_t end = cmoe__min64(first + LOGIT_TOKENS, x->tokens);
    float *const a = cmoe__cpu_worker(run, worker);
    for (int64_t t = first; t < end; t += run->ops->dot_rows) {
        const int m = (int)cmoe__min64(run->ops->dot_rows, end - t);
        const void *rows[MOST_ROWS];
        for (int r = 0; r < m; r++)
            rows[r] = (const char *)x->x + (t + r) * x->x_stride;
        run->ops->pack_rows((cmoe_dtype)x->p->in, rows, m, x->shape->h_used, a);
        logit_columns(run, t, m, col, cmoe__min64(col + LOGIT_EXPERTS, run->logit_cols), a);
    }
}

/* --- scores --------------------------------------------------------------------------------- */

static double sigmoid(double z)
{
    return 1 / (1 + exp(-z));
}

/* Softmax over exactly these n; one NaN makes all of them NaN. */
static void softmax(const float *z, int n, double *out)
{
    double top = -INFINITY, sum = 0;
    for (int e = 0; e < n; e++)
        if (isnan(z[e]) || z[e] > top) top = z[e];
    for (int e = 0; e < n; e++) {
        out[e] = exp(z[e] - top);
        sum += out[e];
    }
    for (int e = 0; e < n; e++)
        out[e] /= sum;
}

static void scores(cmoe_router router, const float *z, int n, double *out)
{
    switch (router) {
    case CMOE_ROUTE_SOFTMAX:
        softmax(z, n, out);
        return;
    case CMOE_ROUTE_SIGMOID:
        for (int e = 0; e < n; e++)
            out[e] = sigmoid(z[e]);
        return;
    case CMOE_ROUTE_SQRTSOFTPLUS:
        for (int e = 0; e < n; e++)
            out[e] = sqrt(z[e] > 40 ? z[e] : log1p(exp(z[e])));
        return;
    case CMOE_ROUTE_RAW:
    case CMOE_ROUTE_ALL:
    case CMOE_ROUTER_COUNT:
        break;
    }
    for (int e = 0; e < n; e++)
        out[e] = z[e];
}

/* --- selection ------------------------------------------------------------------------------ */

/* Strictly better: +Inf > finite > -Inf > NaN. */
static bool better(float a, float b)
{
    return isnan(b) ? !isnan(a) : a > b;
}

/* Best of n keys that are not used; of equal ones the first, or the last. */
static int best(const float *key, const bool *used, int n, bool last)
{
    int at = -1;
    for (int e = 0; e < n; e++)
        if (!used[e] && (at < 0 || better(key[e], key[at]) || (last && !better(key[at], key[e]))))
            at = e;
    return at;
}

/* The k best of n keys that are not used, best first; of equal ones the first, or the last, comes first. One
 * pass: few keys are better than the worst of those kept. */
static void best_of(const float *key, const bool *used, int n, int k, bool last, int32_t *at)
{
    int kept = 0;
    for (int e = 0; e < n && k > 0; e++) {
        const float v = key[e];
        int i = kept;
        if (used[e]) continue;
        if (kept == k) {
            const float worst = key[at[--i]];
            if (!(better(v, worst) || (last && !better(worst, v)))) continue;
        } else {
            kept++;
        }
        for (; i > 0; i--) {
            const float next = key[at[i - 1]];
            if (!(better(v, next) || (last && !better(next, v)))) break;
            at[i] = at[i - 1];
        }
        at[i] = e;
    }
    assert(kept == k);
}

static void make_keys(const cmoe_problem *p, const float *bias, struct selection *s)
{
    const bool by_score = (p->flags & (CMOE_ROUTE_BIAS | CMOE_GROUP_SUM2)) != 0;
    for (int e = 0; e < p->experts; e++) {
        const float z = s->logits[e];
        s->key[e] = z;
        if (!by_score || isnan(z) || z == -INFINITY) continue;
        const float score = isnan(s->score[e]) ? z : (float)s->score[e];
        s->key[e] = score + (p->flags & CMOE_ROUTE_BIAS ? bias[e] : 0.0f);
    }
}

static float group_score(const cmoe_problem *p, const float *key, int n)
{
    float first = NAN, second = NAN;
    for (int e = 0; e < n; e++) {
        if (better(key[e], first)) {
            second = first;
            first = key[e];
        } else if (better(key[e], second)) {
            second = key[e];
        }
    }
    return p->flags & CMOE_GROUP_SUM2 ? first + second : first;
}

/* Leave only the experts of the best groups unused. */
static void keep_groups(const cmoe_problem *p, struct selection *s)
{
    const int size = p->experts / p->groups;
    memset(s->used, 1, (size_t)p->experts * sizeof *s->used);
    memset(s->group_used, 0, (size_t)p->groups * sizeof *s->group_used);
    for (int g = 0; g < p->groups; g++)
        s->group[g] = group_score(p, s->key + (int64_t)g * size, size);
    for (int i = 0; i < p->groups_kept; i++) {
        const int g = best(s->group, s->group_used, p->groups, p->flags & CMOE_TIE_HIGH);
        s->group_used[g] = true;
        memset(s->used + (int64_t)g * size, 0, (size_t)size * sizeof *s->used);
    }
}

/* False when every logit is -Inf: the token is routed nowhere. */
static bool select_ids(const cmoe_problem *p, const float *bias, struct selection *s, int32_t *ids)
{
    bool masked = true;
    for (int e = 0; e < p->experts; e++)
        masked = masked && s->logits[e] == -INFINITY;
    if (masked) return false;
    make_keys(p, bias, s);
    memset(s->used, 0, (size_t)p->experts * sizeof *s->used);
    if (p->groups > 0) keep_groups(p, s);
    best_of(s->key, s->used, p->experts, p->topk, p->flags & CMOE_TIE_HIGH, ids);
    return true;
}

static void make_weights(const cmoe_problem *p, struct selection *s, const int32_t *ids,
                         float *weights)
{
    double sum = 0;
    for (int i = 0; i < p->topk; i++) {
        const bool valid = ids[i] >= 0 && ids[i] < p->experts;
        s->picked[i] = valid ? s->logits[ids[i]] : -INFINITY;
        s->w[i] = valid ? s->score[ids[i]] : 0;
    }
    if ((p->flags & CMOE_TOPK_FIRST) && p->router == CMOE_ROUTE_SOFTMAX)
        softmax(s->picked, p->topk, s->w);
    for (int i = 0; i < p->topk; i++)
        sum += s->w[i];
    const bool renormalize = (p->flags & CMOE_RENORMALIZE) != 0;
    const double divisor = renormalize ? sum + (double)p->renorm_eps : 1;
    for (int i = 0; i < p->topk; i++)
        weights[i] = (float)(divisor == 0 ? 0 : s->w[i] / divisor * (double)p->route_scale);
}

static void route_nowhere(const cmoe_problem *p, int32_t *ids, float *weights)
{
    for (int i = 0; i < p->topk; i++) {
        ids[i] = -1;
        weights[i] = 0;
    }
}

/* ids from the table by token id; false when it has no such row. */
static bool hash_ids(const struct cmoe_exec *x, int64_t t, int32_t *ids)
{
    const int64_t token = x->t->token_ids[t];
    if (token < 0 || token >= x->t->vocab) return false;
    memcpy(ids, x->t->hash_table + token * x->p->topk, (size_t)x->p->topk * sizeof *ids);
    return true;
}

static void load_logits(const struct cmoe_cpu_run *run, int64_t t, float *out)
{
    const struct cmoe_exec *const x = &run->x;
    const int64_t cols = run->logit_cols;
    if (run->logits) {
        memcpy(out, run->logits + t * cols, (size_t)cols * sizeof *out);
        return;
    }
    const cmoe_dtype dtype = (cmoe_dtype)x->p->logits;
    const int64_t stride = x->t->logits_stride ? x->t->logits_stride : cols;
    const int64_t size = dtype == CMOE_F32 ? 4 : 2;
    run->ops->load_row(dtype, (const char *)x->t->logits + t * stride * size, cols, out);
}

static void route_token(const struct cmoe_cpu_run *run, int64_t t, struct selection *s)
{
    const struct cmoe_exec *const x = &run->x;
    const cmoe_problem *const p = x->p;
    int32_t *const ids = x->ids + t * x->shape->slots;
    float *const weights = x->weights + t * x->shape->slots;
    load_logits(run, t, s->logits);
    scores((cmoe_router)p->router, s->logits, p->experts, s->score);
    const bool routed =
        p->flags & CMOE_HASH ? hash_ids(x, t, ids) : select_ids(p, x->t->route_bias, s, ids);
    if (routed)
        make_weights(p, s, ids, weights);
    else
        route_nowhere(p, ids, weights);
    for (int j = 0; j < p->shared; j++) {
        ids[p->topk + j] = p->experts + j;
        weights[p->topk + j] = p->flags & CMOE_SHARED_SIGMOID
                                   ? (float)sigmoid(s->logits[p->experts + j])
                                   : p->shared_weight;
    }
}

static int begin_select(struct cmoe_cpu_run *run)
{
    return (int)cmoe__ceil_div(run->x.tokens, SELECT_TOKENS);
}

static void select_item(struct cmoe_cpu_run *run, int item, int worker)
{
    const struct cmoe_exec *const x = &run->x;
    const int64_t first = (int64_t)item * SELECT_TOKENS;
    const int64_t end = cmoe__min64(first + SELECT_TOKENS, x->tokens);
    struct selection s = selection_in(x->p, cmoe__cpu_worker(run, worker));
    for (int64_t t = first; t < end; t++) {
        if (!x->shape->route_all) {
            route_token(run, t, &s);
            continue;
        }
        for (int32_t i = 0; i < x->shape->slots; i++) {
            x->ids[t * x->shape->slots + i] = i;
            x->weights[t * x->shape->slots + i] = 1;
        }
    }
}

const struct cmoe_cpu_loop cmoe__cpu_loop_logits = {.begin = begin_logits, .item = logits_item};
const struct cmoe_cpu_loop cmoe__cpu_loop_select = {.begin = begin_select, .item = select_item};
