/* SPDX-License-Identifier: MIT
 * ctest: labels=kernels,portable cost=30
 * ROUTE against an oracle of its own, complete over small rows: every row of up to six logits from
 * {-Inf, -1, 0, 1, +Inf, NaN} (equal ones included), every k, all routers and selection rules.
 *
 * The oracle sorts (group, expert) records by one comparison; the reference selects k times. */
#include "harness_call.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_E = 6, VALUES = 6, MAX_SLOTS = MAX_E + 2 };

static const float values[VALUES] = {-INFINITY, -1, 0, 1, INFINITY, NAN};
static const float bias[MAX_E] = {0.125f, 0, 0, -0.375f, 0.25f, 0};

/* --- the oracle ---------------------------------------------------------------------------------*/

struct expert {
    int id;
    double logit;
    float key;
    bool high; /* ties go to the higher id */
};

struct routed {
    int32_t ids[MAX_SLOTS];
    double weights[MAX_SLOTS];
    bool close; /* two different keys lie within rounding of each other */
};

static int class_of(double v)
{
    return isnan(v) ? 0 : isinf(v) ? (v < 0 ? 1 : 3) : 2;
}

static int by_rank(const void *pa, const void *pb)
{
    const struct expert *const a = pa, *const b = pb;
    const int ca = class_of((double)a->key), cb = class_of((double)b->key);
    if (ca != cb) return cb - ca;
    if (ca == 2 && a->key != b->key) return a->key < b->key ? 1 : -1;
    return a->high ? b->id - a->id : a->id - b->id;
}

static double score_one(int router, double z)
{
    switch (router) {
    case CMOE_ROUTE_SIGMOID:
        return 1.0 / (1.0 + exp(-z));
    case CMOE_ROUTE_SQRTSOFTPLUS:
        return sqrt(z > 30 ? z : log1p(exp(z)));
    default:
        return z;
    }
}

static void scores(int router, const double *z, int n, double *out)
{
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) {
        if (z[i] > top) top = z[i];
    }
    for (int i = 0; i < n; i++) {
        out[i] = router == CMOE_ROUTE_SOFTMAX ? exp(z[i] - top) : score_one(router, z[i]);
        sum += out[i];
    }
    for (int i = 0; router == CMOE_ROUTE_SOFTMAX && i < n; i++) {
        out[i] /= sum;
    }
}

/* Keys of different value that a kernel in f32 could order either way. */
static bool close_keys(double a, double b)
{
    return isfinite(a) && isfinite(b) && a != b && fabs(a - b) < 1e-5 * (fabs(a) + fabs(b) + 1e-3);
}

/* Put the experts of the groups that stay first; their number. */
static int keep_groups(const cmoe_problem *p, struct expert *experts, struct routed *out)
{
    const int per = p->experts / p->groups;
    struct expert group[MAX_E], kept[MAX_E];
    for (int g = 0; g < p->groups; g++) {
        struct expert sorted[MAX_E];
        memcpy(sorted, experts + g * per, (size_t)per * sizeof *sorted);
        qsort(sorted, (size_t)per, sizeof *sorted, by_rank);
        group[g] = (struct expert){.id = g, .key = sorted[0].key, .high = sorted[0].high};
        if (p->flags & CMOE_GROUP_SUM2) {
            group[g].key += sorted[1].key;
            /* Sums of different pairs may agree to the last bits. */
            group[g].logit = (double)fmaxf(sorted[0].key, -FLT_MAX);
        }
    }
    for (int a = 0; (p->flags & CMOE_GROUP_SUM2) && a < p->groups; a++) {
        for (int b = 0; b < a; b++) {
            const double ka = (double)group[a].key, kb = (double)group[b].key;
            const bool near = close_keys(ka, kb) || (ka == kb && isfinite(ka));
            if (near && group[a].logit != group[b].logit) out->close = true;
        }
    }
    qsort(group, (size_t)p->groups, sizeof *group, by_rank);
    int n = 0;
    for (int g = 0; g < p->groups_kept; g++) {
        for (int i = 0; i < per; i++) {
            kept[n++] = experts[group[g].id * per + i];
        }
    }
    memcpy(experts, kept, (size_t)n * sizeof *kept);
    return n;
}

static void select_experts(const cmoe_problem *p, const double *z, struct routed *out)
{
    const bool scored = p->flags & (CMOE_ROUTE_BIAS | CMOE_GROUP_SUM2);
    struct expert experts[MAX_E];
    double s[MAX_E];
    scores(p->router, z, p->experts, s);
    for (int e = 0; e < p->experts; e++) {
        float key = (float)z[e];
        if (scored && key > -INFINITY) {
            key = isnan(s[e]) ? key : (float)s[e];
            key += p->flags & CMOE_ROUTE_BIAS ? bias[e] : 0.0f;
        }
        experts[e] = (struct expert){
            .id = e, .logit = z[e], .key = key, .high = (p->flags & CMOE_TIE_HIGH) != 0};
    }
    for (int a = 0; scored && a < p->experts; a++) {
        for (int b = 0; b < a; b++) {
            if (close_keys((double)experts[a].key, (double)experts[b].key)) out->close = true;
        }
    }
    const int n = p->groups > 0 ? keep_groups(p, experts, out) : p->experts;
    qsort(experts, (size_t)n, sizeof *experts, by_rank);
    for (int i = 0; i < p->topk; i++) {
        out->ids[i] = experts[i].id;
    }
}

static void weigh(const cmoe_problem *p, const double *z, struct routed *out)
{
    double s[MAX_E], chosen[MAX_E], sum = 0;
    scores(p->router, z, p->experts, s);
    for (int i = 0; i < p->topk; i++) {
        chosen[i] = z[out->ids[i]];
        out->weights[i] = s[out->ids[i]];
    }
    if (p->flags & CMOE_TOPK_FIRST) scores(p->router, chosen, p->topk, out->weights);
    for (int i = 0; i < p->topk; i++) {
        sum += out->weights[i];
    }
    const double divisor = sum + (double)p->renorm_eps;
    for (int i = 0; i < p->topk; i++) {
        if (p->flags & CMOE_RENORMALIZE) {
            out->weights[i] = divisor == 0 ? 0 : out->weights[i] / divisor;
        }
        out->weights[i] *= (double)p->route_scale;
    }
}

/* One row of experts (+ shared with shsigmoid) logits. */
static struct routed oracle(const cmoe_problem *p, const float *logits)
{
    struct routed out = {.close = false};
    double z[MAX_E];
    bool nowhere = true;
    for (int e = 0; e < p->experts; e++) {
        z[e] = (double)logits[e];
        nowhere = nowhere && isinf(z[e]) && z[e] < 0;
    }
    if (nowhere) {
        for (int i = 0; i < p->topk; i++) {
            out.ids[i] = -1;
        }
    } else {
        select_experts(p, z, &out);
        weigh(p, z, &out);
    }
    for (int j = 0; j < p->shared; j++) {
        out.ids[p->topk + j] = p->experts + j;
        out.weights[p->topk + j] =
            p->flags & CMOE_SHARED_SIGMOID
                ? score_one(CMOE_ROUTE_SIGMOID, (double)logits[p->experts + j])
                : (double)p->shared_weight;
    }
    return out;
}

/* --- running ------------------------------------------------------------------------------------*/

struct counted {
    struct rig rig;
    long rows, close;
    int turn;
    double most; /* share of weights that are neither 0 nor NaN must not vanish */
};

static bool weight_ok(double got, double want, double tolerance)
{
    if (isnan(want)) return isnan(got);
    if (isinf(want)) return got == want;
    return fabs(got - want) <= tolerance * fabs(want) + 1e-44;
}

static void check_row(struct counted *all, const cmoe_problem *p, const char *path, bool strict,
                      const float *logits, const int32_t *ids, const float *weights)
{
    const struct routed want = oracle(p, logits);
    const int slots = p->topk + p->shared;
    all->rows++;
    for (int i = 0; i < slots; i++) {
        all->most += want.weights[i] != 0 && !isnan(want.weights[i]);
        for (int j = 0; j < i; j++) {
            if (ids[i] == ids[j] && ids[i] >= 0)
                fail_with("%s: id %d twice in a row", path, ids[i]);
        }
    }
    if (want.close && !strict) {
        all->close++;
        return;
    }
    for (int i = 0; i < slots; i++) {
        const double tolerance = strict ? 0x1p-23 : 24 * 0x1p-24;
        if (ids[i] == want.ids[i] && weight_ok((double)weights[i], want.weights[i], tolerance)) {
            continue;
        }
        char text[256], row[128] = "";
        cmoe_problem_print(p, text, sizeof text);
        for (int e = 0; e < p->experts; e++) {
            snprintf(row + strlen(row), sizeof row - strlen(row), " %g", (double)logits[e]);
        }
        fail_with("%s: \"%s\" logits%s: slot %d is id %d weight %.9g, expected id %d weight %.9g",
                  path, text, row, i, ids[i], (double)weights[i], want.ids[i], want.weights[i]);
    }
}

/* All rows of one problem on one device, with a pin or the planner's choice. */
static void run_rows(struct counted *all, const cmoe_problem *p, int which, const char *pin,
                     const float *logits)
{
    const int slots = p->topk + p->shared;
    const cmoe_plan_options options = {.struct_size = sizeof options, .pin = pin};
    cmoe_plan *plan = NULL;
    expect_ok(cmoe_plan_create(which ? all->rig.cpu : all->rig.ref, p, NULL, &options, &plan));
    struct guard *const g = &all->rig.guard;
    const size_t n = (size_t)p->max_tokens * (size_t)slots * 4;
    const cmoe_tensors t = {
        .struct_size = sizeof t,
        .n_tokens = p->max_tokens,
        .logits = logits,
        .route_bias = bias,
        .topk_ids = guard_alloc(g, n, 4, GUARD_OUTPUT),
        .topk_weights = guard_alloc(g, n, 4, GUARD_OUTPUT),
    };
    guard_freeze(g);
    expect_ok(
        cmoe_execute(plan, &t, test_workspace(g, plan), cmoe_plan_workspace_size(plan), NULL));
    assert_true(guard_check(g));
    char path[256];
    cmoe_plan_path(plan, p->max_tokens, path, sizeof path);
    const bool strict = strncmp(path, "route_ref", 9) == 0;
    const int columns = p->experts + (p->flags & CMOE_SHARED_SIGMOID ? p->shared : 0);
    for (int64_t row = 0; row < p->max_tokens; row++) {
        check_row(all, p, path, strict, logits + row * columns, t.topk_ids + row * slots,
                  t.topk_weights + row * slots);
    }
    cmoe_plan_destroy(plan);
}

/* Every row of `columns` values: base-VALUES digits of its number. */
static float *all_logits(struct guard *g, int columns, int *rows)
{
    *rows = 1;
    for (int i = 0; i < columns; i++) {
        *rows *= VALUES;
    }
    float *const logits =
        guard_alloc(g, (size_t)*rows * (size_t)columns * sizeof *logits, 4, GUARD_INPUT);
    for (int row = 0; row < *rows; row++) {
        for (int i = 0, rest = row; i < columns; i++, rest /= VALUES) {
            logits[row * columns + i] = values[rest % VALUES];
        }
    }
    return logits;
}

static void run_problem(struct counted *all, cmoe_problem p)
{
    guard_reset(&all->rig.guard);
    const int columns = p.experts + (p.flags & CMOE_SHARED_SIGMOID ? p.shared : 0);
    int rows;
    const float *const logits = all_logits(&all->rig.guard, columns, &rows);
    p.max_tokens = rows;
    if (cmoe_problem_check(&p) != CMOE_OK) {
        fail_with("refused: %s", cmoe_last_error());
    }
    run_rows(all, &p, 0, NULL, logits);
    /* The planner's choice, and the other rows in turn. */
    const char *pins[TEST_PINS];
    const int n = test_pins(all->rig.cpu, &p, CMOE_STAGE_ROUTE, pins);
    for (int i = 0; i < n; i++) {
        if (i > 0 && rows > 5000 && all->turn++ % 4 != 0) continue;
        run_rows(all, &p, 1, pins[i], logits);
    }
}

static cmoe_problem route_problem(int experts, int k, int router, uint32_t flags)
{
    cmoe_problem p;
    cmoe_problem_init(&p);
    p.hidden = p.inter = 8;
    p.experts = experts;
    p.topk = k;
    p.router = (uint8_t)router;
    p.flags = flags;
    p.first = p.last = CMOE_STAGE_ROUTE;
    p.logits = CMOE_F32;
    return p;
}

/* Whether the rules of docs/numerics.md section 3 and the geometry allow the combination. */
static bool allowed(const cmoe_problem *p)
{
    const bool scored = p->flags & (CMOE_ROUTE_BIAS | CMOE_GROUP_SUM2);
    if (scored && (p->flags & CMOE_TOPK_FIRST)) return false;
    if (p->groups == 0) return !(p->flags & CMOE_GROUP_SUM2);
    const int per = p->experts / p->groups;
    if (p->experts % p->groups != 0 || p->topk > p->groups_kept * per) return false;
    return per >= 2 || !(p->flags & CMOE_GROUP_SUM2);
}

static const int routers[] = {CMOE_ROUTE_SOFTMAX, CMOE_ROUTE_SIGMOID, CMOE_ROUTE_SQRTSOFTPLUS,
                              CMOE_ROUTE_RAW};
static const struct {
    int groups, kept;
} grouping[] = {{0, 0}, {2, 1}, {2, 2}, {3, 1}, {3, 2}, {3, 3}};
enum { GROUPINGS = sizeof grouping / sizeof grouping[0], FLAG_SETS = 32 };

static uint32_t flag_set(int i)
{
    static const uint32_t bits[] = {CMOE_TIE_HIGH, CMOE_RENORMALIZE, CMOE_ROUTE_BIAS,
                                    CMOE_GROUP_SUM2, CMOE_TOPK_FIRST};
    uint32_t flags = 0;
    for (int b = 0; b < 5; b++) {
        if (i >> b & 1) flags |= bits[b];
    }
    return flags;
}

static int set_up(void **state)
{
    static struct counted all;
    all = (struct counted){0};
    rig_open(&all.rig, 1);
    *state = &all;
    return 0;
}

static int tear_down(void **state)
{
    struct counted *const all = *state;
    rig_close(&all->rig);
    return 0;
}

/* Enough rows, few of them undecidable in f32, and weights that say something. */
static void check_counts(const struct counted *all, long least)
{
    printf("%ld rows, %ld with keys too close for f32\n", all->rows, all->close);
    assert_true(all->rows >= least);
    assert_true(all->close < all->rows / 10);
    assert_true(all->most > (double)all->rows / 4);
}

/* Lower instruction sets share nearly all of the code. */
static bool sampled(void)
{
    return test_short() || test_lowered();
}

/* Up to four experts: all combinations. */
static void small_rows_complete(void **state)
{
    struct counted *const all = *state;
    for (int e = 1; e <= 4; e++) {
        for (int k = 1; k <= e; k++) {
            for (int c = 0; c < 4 * GROUPINGS * FLAG_SETS; c++) {
                if (sampled() && e == 4 && c % 4 != k - 1) continue;
                cmoe_problem p = route_problem(e, k, routers[c % 4], flag_set(c / 4 / GROUPINGS));
                p.groups = grouping[c / 4 % GROUPINGS].groups;
                p.groups_kept = grouping[c / 4 % GROUPINGS].kept;
                if (allowed(&p)) run_problem(all, p);
            }
        }
    }
    check_counts(all, sampled() ? 100000 : 500000);
}

/* Five and six experts: all rows, all k, all routers, and every combination of grouping and flags
 * with some router and k. */
static void large_rows_complete(void **state)
{
    struct counted *const all = *state;
    all->rows = all->close = 0;
    all->most = 0;
    int turn = 0;
    for (int e = 5; e <= MAX_E; e++) {
        for (int c = 0; c < GROUPINGS * FLAG_SETS; c++) {
            if (sampled() && c % 16 != 3) continue;
            cmoe_problem p = route_problem(e, 1, CMOE_ROUTE_RAW, flag_set(c / GROUPINGS));
            p.groups = grouping[c % GROUPINGS].groups;
            p.groups_kept = grouping[c % GROUPINGS].kept;
            p.topk = 1 + turn % e;
            if (p.groups > 0 && e % p.groups == 0)
                p.topk = 1 + turn % (p.groups_kept * e / p.groups);
            p.router = (uint8_t)routers[turn / e % 4];
            if (!allowed(&p)) continue;
            turn++;
            run_problem(all, p);
        }
        for (int c = 0; c < 4 * e; c++) {
            if (sampled() && c % 8 != e) continue;
            run_problem(all, route_problem(e, 1 + c / 4, routers[c % 4], 0));
        }
    }
    check_counts(all, sampled() ? 100000 : 3000000);
}

/* Shared slots, with a fixed weight and with logits of their own; scale and epsilon. */
static void shared_slots(void **state)
{
    struct counted *const all = *state;
    all->rows = all->close = 0;
    all->most = 0;
    for (int c = 0; c < 4 * 2 * 2 * 2; c++) {
        cmoe_problem p =
            route_problem(3, 1 + c / 4 % 2, routers[c % 4], c / 8 % 2 ? CMOE_SHARED_SIGMOID : 0);
        if (c / 16) p.flags |= CMOE_RENORMALIZE;
        p.shared = 1 + c % 2;
        p.shared_weight = 0.75f;
        p.route_scale = 2.5f;
        p.renorm_eps = 1e-3f;
        run_problem(all, p);
    }
    check_counts(all, 10000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_rows_complete),
        cmocka_unit_test(large_rows_complete),
        cmocka_unit_test(shared_slots),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
