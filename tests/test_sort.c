/* SPDX-License-Identifier: MIT
 * ctest: labels=kernels,portable cost=30
 * SORT in its three published forms against a naive oracle: for every local expert one pass over all
 * slots. Ids may be anything; experts may be a slice, a map or already local. */
#include "harness_call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sorting {
    struct rig rig;
    struct rng rng;
    long entries, padding; /* seen over all cases: the tests must not be vacuous */
};

struct sort_case {
    cmoe_problem p;
    int32_t tokens, counted; /* rows given, rows that count (n_tokens_dev) */
    int64_t rows;            /* tokens x slots */
    const int64_t *ids;      /* as written by whoever routed */
    const float *weights;
    const int32_t *map;
    bool wide; /* pass 64-bit ids */
};

struct expected {
    int32_t *sorted, *offsets, *blocks;
    float *weights;
    int64_t n; /* entries of sorted */
};

static int32_t local_of(const struct sort_case *c, int64_t id)
{
    const cmoe_problem *const p = &c->p;
    const int32_t local = cmoe_problem_local_experts(p);
    if (p->flags & CMOE_LOCAL_IDS) return id >= 0 && id < local ? (int32_t)id : -1;
    if (id < 0 || id >= p->experts + p->shared) return -1;
    if (p->flags & CMOE_EXPERT_MAP) {
        return c->map[id] >= 0 && c->map[id] < local ? c->map[id] : -1;
    }
    if (id >= p->experts) return (int32_t)(local - p->shared + id - p->experts);
    const int64_t at = id - p->expert_first;
    return at >= 0 && at < local - p->shared ? (int32_t)at : -1;
}

static void append(struct expected *out, uint32_t id, float weight)
{
    out->sorted[out->n] = (int32_t)id;
    out->weights[out->n++] = weight;
}

static void oracle(const struct sort_case *c, struct guard *g, struct expected *out)
{
    const cmoe_problem *const p = &c->p;
    const int32_t slots = cmoe_problem_slots(p), local = cmoe_problem_local_experts(p);
    const bool packed = p->sort_format == CMOE_SORT_PACKED;
    const bool padded = packed || p->sort_format == CMOE_SORT_FLAT;
    const size_t room = (size_t)cmoe_sort_capacity(p, c->tokens) * 4;
    out->sorted = guard_alloc(g, room, 4, GUARD_OUTPUT);
    out->weights = guard_alloc(g, room, 4, GUARD_OUTPUT);
    out->blocks = guard_alloc(g, room, 4, GUARD_OUTPUT);
    out->offsets = guard_alloc(g, ((size_t)local + 1) * 4, 4, GUARD_OUTPUT);
    out->n = 0;
    for (int32_t e = 0; e < local; e++) {
        out->offsets[e] = (int32_t)out->n;
        for (int32_t row = 0; row < c->counted * slots; row++) {
            if (local_of(c, c->ids[row]) != e) continue;
            const uint32_t token = (uint32_t)(row / slots), slot = (uint32_t)(row % slots);
            append(out, packed ? slot << 24 | token : (uint32_t)row, c->weights[row]);
        }
        while (padded && out->n % p->block_m != 0) {
            append(out,
                   packed ? (uint32_t)slots << 24 | (uint32_t)c->counted
                          : (uint32_t)(c->counted * slots),
                   0);
        }
        for (int64_t b = padded ? out->offsets[e] / p->block_m : 0;
             padded && b * p->block_m < out->n; b++) {
            out->blocks[b] = e;
        }
    }
    out->offsets[local] = (int32_t)out->n;
}

static void check_result(struct sorting *all, const struct sort_case *c, const cmoe_tensors *t,
                         const struct expected *want)
{
    const cmoe_problem *const p = &c->p;
    const int32_t local = cmoe_problem_local_experts(p);
    if (p->sort_format == CMOE_SORT_INDEX) {
        assert_same_i32(t->expert_offsets, want->offsets, local + 1);
    } else {
        const int32_t valid[2] = {(int32_t)want->n, c->counted};
        assert_same_i32(t->num_valid, valid, p->sort_format == CMOE_SORT_PACKED ? 2 : 1);
        assert_same_i32(t->block_experts, want->blocks, want->n / p->block_m);
    }
    assert_same_i32(t->sorted_ids, want->sorted, want->n);
    if (p->sort_format == CMOE_SORT_PACKED) {
        assert_same_bytes(t->sorted_weights, want->weights, (size_t)want->n * 4);
    }
    for (int64_t i = 0; i < want->n; i++) {
        if (want->weights[i] == 0) all->padding++;
    }
    all->entries += want->n;
}

static void run_case(struct sorting *all, const struct sort_case *c, cmoe_device *dev,
                     const char *pin, const struct expected *want)
{
    const cmoe_problem *const p = &c->p;
    struct guard *const g = &all->rig.guard;
    const cmoe_plan_options options = {.struct_size = sizeof options, .pin = pin};
    cmoe_plan *plan = NULL;
    expect_ok(cmoe_plan_create(dev, p, NULL, &options, &plan));
    const size_t room = (size_t)cmoe_sort_capacity(p, c->tokens);
    const size_t local = (size_t)cmoe_problem_local_experts(p);
    int32_t *narrow = NULL;
    if (!c->wide) {
        narrow = guard_alloc(g, (size_t)c->rows * 4, 4, GUARD_INPUT);
        for (int64_t i = 0; i < c->rows; i++) {
            narrow[i] = (int32_t)c->ids[i];
        }
    }
    int32_t *const count = guard_alloc(g, 4, 4, GUARD_INPUT);
    *count = c->counted;
    const bool index = p->sort_format == CMOE_SORT_INDEX;
    const bool packed = p->sort_format == CMOE_SORT_PACKED;
    const cmoe_tensors t = {
        .struct_size = sizeof t,
        .n_tokens = c->tokens,
        .n_tokens_dev = c->counted < c->tokens ? count : NULL,
        .topk_ids = narrow,
        .topk_ids64 = c->wide ? c->ids : NULL,
        .topk_weights = (float *)c->weights,
        .expert_map = c->map,
        .sorted_ids = guard_alloc(g, room * 4, 4, GUARD_OUTPUT),
        .expert_offsets = index ? guard_alloc(g, (local + 1) * 4, 4, GUARD_OUTPUT) : NULL,
        .block_experts =
            index ? NULL : guard_alloc(g, room / (size_t)p->block_m * 4, 4, GUARD_OUTPUT),
        .num_valid = index ? NULL : guard_alloc(g, packed ? 8 : 4, 4, GUARD_OUTPUT),
        .sorted_weights = packed ? guard_alloc(g, room * 4, 4, GUARD_OUTPUT) : NULL,
    };
    guard_freeze(g);
    expect_ok(
        cmoe_execute(plan, &t, test_workspace(g, plan), cmoe_plan_workspace_size(plan), NULL));
    assert_true(guard_check(g));
    check_result(all, c, &t, want);
    cmoe_plan_destroy(plan);
}

static void run_everywhere(struct sorting *all, const struct sort_case *c)
{
    struct expected want;
    oracle(c, &all->rig.guard, &want);
    run_case(all, c, all->rig.ref, NULL, &want);
    const char *pins[TEST_PINS];
    const int n = test_pins(all->rig.cpu, &c->p, CMOE_STAGE_SORT, pins);
    for (int i = 0; i < n; i++) {
        run_case(all, c, all->rig.cpu, pins[i], &want);
    }
}

/* --- cases --------------------------------------------------------------------------------------*/

enum style { UNIFORM, ONE_HOT, LAST, HOSTILE, STYLES };

static int64_t draw_id(struct rng *r, enum style style, int64_t ids, int64_t hot, bool wide)
{
    static const int64_t bad[] = {-1, INT32_MIN, INT32_MAX, -1000000};
    static const int64_t far[] = {INT64_C(1) << 32, (INT64_C(1) << 32) + 1, INT64_MIN, INT64_MAX,
                                  -(INT64_C(1) << 32) + 1};
    if (style == ONE_HOT) return hot;
    if (style == LAST) return ids - 1;
    if (style == HOSTILE && rng_chance(r, 40)) {
        if (wide && rng_chance(r, 50)) return far[rng_below(r, 5)];
        return rng_chance(r, 30) ? ids + rng_below(r, 3) : bad[rng_below(r, 4)];
    }
    return rng_below(r, ids);
}

static void fill_ids(struct sorting *all, struct sort_case *c, enum style style)
{
    struct guard *const g = &all->rig.guard;
    const int64_t ids = c->p.flags & CMOE_LOCAL_IDS ? cmoe_problem_local_experts(&c->p)
                                                    : c->p.experts + c->p.shared;
    c->rows = (int64_t)c->tokens * cmoe_problem_slots(&c->p);
    int64_t *const out = guard_alloc(g, (size_t)c->rows * 8, 8, GUARD_INPUT);
    float *const weights = guard_alloc(g, (size_t)c->rows * 4, 4, GUARD_INPUT);
    const int64_t hot = rng_below(&all->rng, ids);
    for (int64_t i = 0; i < c->rows; i++) {
        out[i] = draw_id(&all->rng, style, ids, hot, c->wide);
        weights[i] = (float)(i + 1);
    }
    c->ids = out;
    c->weights = weights;
}

static void fill_map(struct sorting *all, struct sort_case *c)
{
    const int32_t n = c->p.experts + c->p.shared, local = cmoe_problem_local_experts(&c->p);
    int32_t *const map = guard_alloc(&all->rig.guard, (size_t)n * 4, 4, GUARD_INPUT);
    for (int32_t i = 0; i < n; i++) {
        map[i] = rng_chance(&all->rng, 20) ? (rng_chance(&all->rng, 50) ? -1 : local)
                                           : (int32_t)rng_below(&all->rng, local);
    }
    c->map = map;
}

static cmoe_problem sort_problem(int32_t tokens, int32_t experts, int32_t k)
{
    cmoe_problem p;
    cmoe_problem_init(&p);
    p.max_tokens = tokens > 0 ? tokens : 1;
    p.hidden = p.inter = 8;
    p.experts = experts;
    p.topk = k;
    p.first = p.last = CMOE_STAGE_SORT;
    return p;
}

static struct sort_case random_case(struct sorting *all)
{
    static const int32_t tokens[] = {1, 2, 7, 31, 64, 300};
    static const int32_t experts[] = {1, 2, 3, 8, 33, 160, 1000};
    static const int32_t blocks[] = {1, 3, 4, 16, 32, 64, 1024};
    struct rng *const r = &all->rng;
    const int32_t e = experts[rng_below(r, 7)];
    struct sort_case c = {.tokens = tokens[rng_below(r, 6)], .wide = rng_chance(r, 30)};
    c.p = sort_problem(c.tokens, e, (int32_t)rng_between(r, 1, e < 8 ? e : 8));
    c.p.shared = rng_chance(r, 20) ? (int32_t)rng_between(r, 1, 2) : 0;
    static const uint8_t formats[] = {CMOE_SORT_INDEX, CMOE_SORT_PACKED, CMOE_SORT_FLAT};
    c.p.sort_format = formats[rng_below(r, 3)];
    c.p.block_m = blocks[rng_below(r, 7)];
    c.counted = rng_chance(r, 25) ? (int32_t)rng_below(r, c.tokens + 1) : c.tokens;
    switch (rng_below(r, 4)) {
    case 0:
        c.p.flags |= CMOE_LOCAL_IDS;
        break;
    case 1:
        c.p.flags |= CMOE_EXPERT_MAP;
        c.p.expert_count = (int32_t)rng_between(r, 1, e);
        fill_map(all, &c);
        break;
    case 2:
        c.p.expert_first = (int32_t)rng_below(r, e);
        c.p.expert_count = (int32_t)rng_between(r, 1, e - c.p.expert_first);
        break;
    default:
        break;
    }
    fill_ids(all, &c, (enum style)rng_below(r, STYLES));
    return c;
}

static int set_up(void **state)
{
    static struct sorting all;
    all = (struct sorting){.rng = {test_seed()}};
    rig_open(&all.rig, 2);
    *state = &all;
    return 0;
}

static int tear_down(void **state)
{
    struct sorting *const all = *state;
    rig_close(&all->rig);
    return 0;
}

static void random_routings(void **state)
{
    struct sorting *const all = *state;
    const int64_t cases = test_env("SORT_CASES", test_short() ? 500 : 1500);
    for (int64_t i = 0; i < cases; i++) {
        guard_reset(&all->rig.guard);
        const struct sort_case c = random_case(all);
        if (cmoe_problem_check(&c.p) != CMOE_OK) fail_with("refused: %s", cmoe_last_error());
        run_everywhere(all, &c);
    }
    printf("%ld entries, %ld of them padding\n", all->entries, all->padding);
    assert_true(all->entries - all->padding > 10 * cases);
    assert_true(all->padding > cases);
}

/* Every token to one expert; every expert of a thousand. */
static void extreme_skew(void **state)
{
    struct sorting *const all = *state;
    static const uint8_t formats[] = {CMOE_SORT_INDEX, CMOE_SORT_PACKED, CMOE_SORT_FLAT};
    for (int f = 0; f < 3; f++) {
        for (int style = 0; style < STYLES; style++) {
            if (test_short() && (f + style) % 3 != 0) continue;
            guard_reset(&all->rig.guard);
            struct sort_case c = {.tokens = 4097, .counted = 4097};
            c.p = sort_problem(4097, 1000, 4);
            c.p.sort_format = formats[f];
            c.p.block_m = 32;
            fill_ids(all, &c, (enum style)style);
            run_everywhere(all, &c);
        }
    }
}

/* The worst case of cmoe_sort_capacity is met by some routing and passed by none. */
static void capacity_is_tight(void **state)
{
    struct sorting *const all = *state;
    for (int32_t tokens = 1; tokens <= 9; tokens++) {
        guard_reset(&all->rig.guard);
        struct sort_case c = {.tokens = tokens, .counted = tokens};
        c.p = sort_problem(tokens, 9, 1);
        c.p.sort_format = CMOE_SORT_FLAT;
        c.p.block_m = 16;
        c.rows = tokens;
        int64_t ids[9];
        float weights[9];
        for (int i = 0; i < 9; i++) {
            ids[i] = i;
            weights[i] = 1;
        }
        c.ids = ids;
        c.weights = weights;
        struct expected want;
        oracle(&c, &all->rig.guard, &want);
        assert_int_equal(want.n, cmoe_sort_capacity(&c.p, tokens));
        run_everywhere(all, &c);
    }
}

/* No tokens: nothing is written, and nothing has to be there. */
static void no_tokens(void **state)
{
    struct sorting *const all = *state;
    guard_reset(&all->rig.guard);
    for (int d = 0; d < 2; d++) {
        cmoe_problem p = sort_problem(4, 3, 2);
        p.sort_format = CMOE_SORT_PACKED;
        cmoe_plan *plan = NULL;
        expect_ok(cmoe_plan_create(d ? all->rig.cpu : all->rig.ref, &p, NULL, NULL, &plan));
        int32_t valid[2] = {77, 78};
        const cmoe_tensors none = {.struct_size = sizeof none, .num_valid = valid};
        expect_ok(cmoe_execute(plan, &none, NULL, 0, NULL));
        assert_int_equal(valid[0], 77);
        assert_int_equal(valid[1], 78);
        cmoe_plan_destroy(plan);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_routings),
        cmocka_unit_test(extreme_skew),
        cmocka_unit_test(capacity_is_tight),
        cmocka_unit_test(no_tokens),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
