/* SPDX-License-Identifier: MIT
 * ctest: labels=kernels
 * Plans that begin with somebody else's sort. SORT's result in each published format, handed to a
 * plan that starts at GEMM1, must give what the whole plan gives; m-indices and batched rows must
 * give what the same rows give as tokens with one expert each. */
#include "harness_call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const schemes[] = {"bf16", "f32", "fp8-token", "int8-w8a8", "mxfp4-w4a16"};
enum { SCHEMES = sizeof schemes / sizeof schemes[0] };

static int32_t *words(struct rig *rig, int64_t n)
{
    return guard_alloc(&rig->guard, (size_t)n * 4, 4, GUARD_OUTPUT);
}

static void expect_result(const struct prepared *made, const char *what)
{
    char text[512];
    cmoe_problem_print(&made->call.problem, text, sizeof text);
    const struct outcome out = call_judge(&made->call, made->kind, made->want, made->bound);
    if (out.kind != OUTCOME_OK) fail_with("%s of \"%s\": %s", what, text, out.why);
}

/* SORT alone, then GEMM1 to COMBINE on its result. */
static void by_way_of(struct rig *rig, cmoe_device *dev, const struct prepared *made,
                      cmoe_sort_format format, int32_t block_m)
{
    const cmoe_problem *const whole = &made->call.problem;
    cmoe_problem sort = *whole, rest = *whole;
    sort.first = sort.last = CMOE_STAGE_SORT;
    rest.first = CMOE_STAGE_GEMM1;
    sort.sort_format = rest.sort_format = (uint8_t)format;
    sort.block_m = rest.block_m = block_m;
    const int64_t room = cmoe_sort_capacity(&sort, whole->max_tokens);
    cmoe_tensors t = made->call.tensors;
    t.weights = made->canonical;
    t.sorted_ids = words(rig, room);
    if (format == CMOE_SORT_INDEX) {
        t.expert_offsets = words(rig, cmoe_problem_local_experts(whole) + 1);
    } else {
        t.block_experts = words(rig, room / block_m);
        t.num_valid = words(rig, format == CMOE_SORT_PACKED ? 2 : 1);
    }
    call_execute(rig, dev, &sort, NULL, NULL, &t);
    call_reset_y(rig, &made->call);
    call_execute(rig, dev, &rest, made->canonical, NULL, &t);
    char what[64];
    snprintf(what, sizeof what, "sort format %d, block_m %d", (int)format, block_m);
    expect_result(made, what);
}

static void every_format(struct rig *rig, const char *text)
{
    const cmoe_problem p = test_problem(text);
    const char *why;
    for (int kind = GEN_REAL; kind <= GEN_EXACT; kind++) {
        if (kind == GEN_EXACT && !gen_exact_possible(&p, &why)) continue;
        const struct gen_options options =
            call_options(&rig->guard, (enum gen_kind)kind, test_seed());
        struct prepared made;
        expect_ok(call_prepare(rig, &p, &options, &made));
        cmoe_device *const devices[] = {rig->ref, rig->cpu};
        for (int d = 0; d < 2; d++) {
            by_way_of(rig, devices[d], &made, CMOE_SORT_INDEX, 32);
            by_way_of(rig, devices[d], &made, CMOE_SORT_PACKED, 16);
            by_way_of(rig, devices[d], &made, CMOE_SORT_PACKED, 1);
            by_way_of(rig, devices[d], &made, CMOE_SORT_FLAT, 7);
        }
        call_done(&made);
    }
}

static void published_formats(void **state)
{
    struct rig *const rig = *state;
    char text[256];
    for (int s = 0; s < SCHEMES; s++) {
        snprintf(text, sizeof text,
                 "t=21 e=6 k=3 h=80 i=48 act=relu stages=sort..combine scheme=%s", schemes[s]);
        every_format(rig, text);
    }
    every_format(rig, "t=9 e=7 k=2 shared=1 h=64 i=32 first=2 local=4 b1 b2 stages=sort..combine");
    every_format(rig, "t=9 e=7 k=2 h=64 i=32 local=5 map noreduce stages=sort..combine");
}

/* Hostile lists: whatever a list holds, a plan reads inside its buffers and slots count once each. */
static void hostile_lists(void **state)
{
    struct rig *const rig = *state;
    struct rng r = {test_seed()};
    const cmoe_problem p = test_problem("t=5 e=3 k=2 h=32 i=16 stages=gemm1..combine");
    for (int i = 0; i < 400; i++) {
        cmoe_problem q = p, made_for = p;
        made_for.first = CMOE_STAGE_SORT;
        const struct gen_options options = call_options(&rig->guard, GEN_REAL, rng_u64(&r));
        struct prepared made;
        expect_ok(call_prepare(rig, &made_for, &options, &made));
        q.sort_format = rng_chance(&r, 50) ? CMOE_SORT_PACKED : CMOE_SORT_FLAT;
        q.block_m = (int32_t)rng_between(&r, 1, 8);
        const int64_t room = cmoe_sort_capacity(&q, 5);
        cmoe_tensors t = made.call.tensors;
        t.sorted_ids = words(rig, room);
        t.block_experts = words(rig, room / q.block_m);
        t.num_valid = words(rig, 2);
        for (int64_t j = 0; j < room; j++) {
            t.sorted_ids[j] = (int32_t)(rng_chance(&r, 50) ? rng_u64(&r) : rng_u64(&r) % 12);
        }
        for (int64_t j = 0; j < room / q.block_m; j++) {
            t.block_experts[j] = (int32_t)(rng_chance(&r, 30) ? rng_u64(&r) : rng_u64(&r) % 3);
        }
        t.num_valid[0] = (int32_t)(rng_chance(&r, 50) ? rng_u64(&r) : rng_u64(&r) % 16);
        t.num_valid[1] = (int32_t)rng_u64(&r);
        call_execute(rig, i % 2 ? rig->cpu : rig->ref, &q, made.canonical, NULL, &t);
        call_done(&made);
    }
}

/* An index is used in place: one that points elsewhere is refused before it is used. */
static void hostile_index(void **state)
{
    struct rig *const rig = *state;
    const cmoe_problem p = test_problem("t=4 e=3 k=2 h=32 i=16 stages=gemm1..combine");
    cmoe_problem made_for = p;
    made_for.first = CMOE_STAGE_SORT;
    const struct gen_options options = call_options(&rig->guard, GEN_REAL, test_seed());
    struct prepared made;
    expect_ok(call_prepare(rig, &made_for, &options, &made));
    cmoe_plan *plan = NULL;
    expect_ok(cmoe_plan_create(rig->cpu, &p, made.canonical, NULL, &plan));
    void *const workspace = test_workspace(&rig->guard, plan);
    int32_t rows[8] = {0, 1, 2, 3, 4, 5, 6, 7}, offsets[4] = {0, 3, 3, 8};
    cmoe_tensors t = made.call.tensors;
    t.sorted_ids = rows;
    t.expert_offsets = offsets;
    const size_t size = cmoe_plan_workspace_size(plan);
    expect_ok(cmoe_execute(plan, &t, workspace, size, NULL));
    static const struct {
        int at, value;
        const char *part;
    } faults[] = {{0, -1, "sorted_ids[0] is -1"},        {7, 8, "sorted_ids[7] is 8"},
                  {100, 1, "expert_offsets[0] is 1"},    {101, 9, "expert_offsets[1] is 9"},
                  {102, 2, "expert_offsets[2] is 2"},    {103, 9, "expert_offsets[3] is 9"},
                  {103, INT32_MAX, "expert_offsets[3]"}, {101, INT32_MIN, "expert_offsets[1]"}};
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        int32_t *const at = faults[i].at < 100 ? &rows[faults[i].at] : &offsets[faults[i].at - 100];
        const int32_t kept = *at;
        *at = faults[i].value;
        expect_error(cmoe_execute(plan, &t, workspace, size, NULL), CMOE_ERR_INVALID,
                     faults[i].part);
        *at = kept;
    }
    cmoe_plan_destroy(plan);
    call_done(&made);
}

/* Rows with one local expert each, as m-indices and as tokens. */
static void m_indices(void **state)
{
    struct rig *const rig = *state;
    for (int s = 0; s < SCHEMES; s++) {
        char text[256];
        snprintf(text, sizeof text, "t=17 e=5 k=1 h=48 i=32 stages=sort..combine scheme=%s",
                 schemes[s]);
        const cmoe_problem p = test_problem(text);
        const struct gen_options options = call_options(&rig->guard, GEN_REAL, test_seed());
        struct prepared made;
        expect_ok(call_prepare(rig, &p, &options, &made));
        cmoe_problem rest = p;
        rest.first = CMOE_STAGE_GEMM1;
        rest.sort_format = CMOE_SORT_M_INDICES;
        cmoe_tensors t = made.call.tensors;
        t.sorted_ids = words(rig, p.max_tokens);
        for (int i = 0; i < p.max_tokens; i++) {
            const int64_t id = t.topk_ids64 ? t.topk_ids64[i] : t.topk_ids[i];
            t.sorted_ids[i] = id >= 0 && id < p.experts ? (int32_t)id : -1 - i;
        }
        cmoe_device *const devices[] = {rig->ref, rig->cpu};
        for (int d = 0; d < 2; d++) {
            call_reset_y(rig, &made.call);
            call_execute(rig, devices[d], &rest, made.canonical, NULL, &t);
            expect_result(&made, "m-indices");
        }
        call_done(&made);
    }
}

/* The batched call's rows as tokens: what y must be. Rows past an expert's count are nobody's. */
static void expect_batched(struct rig *rig, const struct gen_call *call, const cmoe_weights *w,
                           double *want, double *bound)
{
    const cmoe_problem *const p = &call->problem;
    cmoe_problem q = *p;
    q.capacity = 0;
    q.sort_format = CMOE_SORT_INDEX;
    q.first = p->x.scaling == CMOE_SCALE_NONE ? CMOE_STAGE_SORT : CMOE_STAGE_QUANT;
    q.topk = 1;
    q.max_tokens = (int32_t)call->y_rows;
    cmoe_tensors t = call->tensors;
    t.n_tokens = q.max_tokens;
    t.topk_ids = words(rig, call->y_rows);
    t.topk_weights = (float *)words(rig, call->y_rows);
    for (int64_t i = 0; i < call->y_rows; i++) {
        const int64_t e = i / p->capacity;
        t.topk_ids[i] = i % p->capacity < t.expert_offsets[e] ? (int32_t)e : -1;
        t.topk_weights[i] = 1;
    }
    t.expert_offsets = NULL;
    expect_ok(cmoe_problem_check(&q));
    expect_ok(cmoe_reference(rig->ctx, &q, w, &t, want, bound));
}

static void compare_batched(const struct gen_call *call, const double *want, const double *bound)
{
    const cmoe_problem *const p = &call->problem;
    int64_t rows = 0, zero_rows = 0;
    for (int64_t i = 0; i < call->y_rows; i++) {
        if (i % p->capacity >= call->tensors.expert_offsets[i / p->capacity]) continue;
        const struct comparison c =
            compare((cmoe_dtype)p->y, gen_y_row(call, i), want + i * 48, bound + i * 48, 48);
        rows++;
        zero_rows += mistrusted(&c);
        if (c.outside == 0) continue;
        fail_with("row %lld: column %lld is %.9g, expected %.9g +- %.3g", (long long)i,
                  (long long)c.first, c.got, c.want, c.bound);
    }
    assert_true(rows > 5 && zero_rows < rows / 2);
}

static void batched(void **state)
{
    struct rig *const rig = *state;
    for (int s = 0; s < SCHEMES; s++) {
        char text[256];
        const bool plain = strcmp(schemes[s], "bf16") == 0 || strcmp(schemes[s], "f32") == 0 ||
                           strcmp(schemes[s], "mxfp4-w4a16") == 0;
        snprintf(text, sizeof text, "t=1 e=5 k=1 h=48 i=32 cap=6 sort=batched stages=%s scheme=%s",
                 plain ? "gemm1..combine" : "quant..combine", schemes[s]);
        const cmoe_problem p = test_problem(text);
        guard_reset(&rig->guard);
        const struct gen_options options = call_options(&rig->guard, GEN_REAL, test_seed());
        struct gen_call call;
        expect_ok(cmoe_problem_check(&p));
        expect_ok(gen_call_create(&p, &options, &call));
        cmoe_weights *w = NULL;
        expect_ok(call_weights(rig->ref, &call, NULL, &w));
        double want[30 * 48], bound[30 * 48];
        expect_batched(rig, &call, w, want, bound);
        guard_freeze(&rig->guard);
        cmoe_device *const devices[] = {rig->ref, rig->cpu};
        for (int d = 0; d < 2; d++) {
            call_reset_y(rig, &call);
            call_execute(rig, devices[d], &p, w, NULL, &call.tensors);
            compare_batched(&call, want, bound);
        }
        cmoe_weights_destroy(w);
        gen_call_free(&call);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_formats), cmocka_unit_test(hostile_lists),
        cmocka_unit_test(hostile_index),     cmocka_unit_test(m_indices),
        cmocka_unit_test(batched),
    };
    return cmocka_run_group_tests(tests, rig_setup, rig_teardown);
}
