/* SPDX-License-Identifier: MIT
 * ctest: labels=kernels,portable
 * Where ROUTE takes its ids and logits from: a table by token id with entries of any value, router
 * weights times x, 16-bit logits with a stride, or no router at all. */
#include "harness_call.h"

#include <math.h>
#include <string.h>

enum { T = 6, E = 5, K = 2 };

static void route(struct rig *rig, const cmoe_problem *p, const cmoe_tensors *in, int which,
                  int32_t *ids, float *weights)
{
    struct guard *const g = &rig->guard;
    guard_reset(g);
    cmoe_plan *plan = NULL;
    expect_ok(cmoe_plan_create(which ? rig->cpu : rig->ref, p, NULL, NULL, &plan));
    const size_t n = (size_t)(p->max_tokens * cmoe_problem_slots(p)) * 4;
    cmoe_tensors t = *in;
    t.struct_size = sizeof t;
    t.n_tokens = p->max_tokens;
    t.topk_ids = guard_alloc(g, n, 4, GUARD_OUTPUT);
    t.topk_weights = guard_alloc(g, n, 4, GUARD_OUTPUT);
    expect_ok(
        cmoe_execute(plan, &t, test_workspace(g, plan), cmoe_plan_workspace_size(plan), NULL));
    assert_true(guard_check(g));
    memcpy(ids, t.topk_ids, n);
    memcpy(weights, t.topk_weights, n);
    cmoe_plan_destroy(plan);
}

static bool near(float got, double want)
{
    return fabs((double)got - want) <= 2e-6 * fabs(want);
}

/* Ids as the table has them; what is no expert weighs 0 and counts as nothing. */
static void hash_table_of_any_ids(void **state)
{
    struct rig *const rig = *state;
    const cmoe_problem p =
        test_problem("t=6 e=5 k=2 h=8 i=8 route=sigmoid stages=route hash renorm scale=2");
    float logits[T * E];
    for (int i = 0; i < T * E; i++) {
        logits[i] = (float)(i % 7) * 0.5f - 1;
    }
    const int32_t table[4 * K] = {1, 4, -1, 3, 5, INT32_MAX, 2, 2};
    const int64_t tokens[T] = {0, 1, 2, 3, -1, INT64_C(1) << 40};
    const cmoe_tensors t = {.logits = logits, .hash_table = table, .token_ids = tokens, .vocab = 4};
    for (int d = 0; d < 2; d++) {
        int32_t ids[T * K];
        float weights[T * K];
        route(rig, &p, &t, d, ids, weights);
        assert_same_i32(ids, table, 4 * K);
        for (int row = 0; row < T; row++) {
            double score[K], sum = 0;
            for (int s = 0; s < K; s++) {
                const int32_t id = row < 4 ? table[row * K + s] : -1;
                const bool valid = id >= 0 && id < E;
                if (row >= 4) assert_int_equal(ids[row * K + s], -1);
                score[s] = valid ? 1 / (1 + exp(-(double)logits[row * E + id])) : 0;
                sum += score[s];
            }
            for (int s = 0; s < K; s++) {
                const double want = sum > 0 ? 2 * score[s] / sum : 0;
                if (!near(weights[row * K + s], want)) {
                    fail_with("token %d slot %d: weight %.9g, expected %.9g", row, s,
                              (double)weights[row * K + s], want);
                }
            }
        }
    }
}

/* Logits from x are what the same logits give, and padding of x is not read. */
static void logits_from_x(void **state)
{
    struct rig *const rig = *state;
    const cmoe_problem given =
        test_problem("t=6 e=5 k=2 h=12 i=8 hpad=3 scheme=f32 stages=route renorm");
    cmoe_problem made = given;
    made.flags |= CMOE_ROUTE_FROM_X;
    float x[T * 12], w[E * 12], b[E], logits[T * E] = {0};
    for (int i = 0; i < T * 12; i++) {
        x[i] = i % 12 < 9 ? (float)(i * 5 % 7 - 3) : NAN;
    }
    for (int i = 0; i < E * 12; i++) {
        w[i] = i % 12 < 9 ? (float)(i * 3 % 5 - 2) * 0.25f : NAN;
    }
    for (int e = 0; e < E; e++) {
        b[e] = 0.125f * (float)e;
    }
    for (int i = 0; i < T * E; i++) {
        for (int h = 0; h < 9; h++) {
            logits[i] += x[i / E * 12 + h] * w[i % E * 12 + h];
        }
        logits[i] += b[i % E];
    }
    const cmoe_tensors from_logits = {.logits = logits};
    const cmoe_tensors from_x = {.x = x, .router_w = w, .router_b = b};
    for (int d = 0; d < 2; d++) {
        int32_t want_ids[T * K], ids[T * K];
        float want[T * K], weights[T * K];
        route(rig, &given, &from_logits, d, want_ids, want);
        route(rig, &made, &from_x, d, ids, weights);
        assert_same_i32(ids, want_ids, T * K);
        for (int i = 0; i < T * K; i++) {
            assert_true(near(weights[i], (double)want[i]) && want[i] > 0);
        }
    }
}

/* 16-bit logits, rows apart: the values are exact in every type, so the results are the same. */
static void narrow_logits_with_a_stride(void **state)
{
    struct rig *const rig = *state;
    static const uint8_t types[] = {CMOE_F32, CMOE_BF16, CMOE_F16};
    int32_t want_ids[T * K], ids[T * K];
    float want[T * K], weights[T * K];
    for (int i = 0; i < 6; i++) {
        cmoe_problem p = test_problem("t=6 e=5 k=2 h=8 i=8 stages=route");
        p.logits = types[i / 2];
        float values[T * (E + 3)];
        uint8_t row[sizeof values];
        for (int j = 0; j < T * (E + 3); j++) {
            const int t = j / (E + 3), e = j % (E + 3);
            values[j] = e < E ? (float)((t * 11 + e * 7) % 13) * 0.25f - 1 : 1e4f;
        }
        expect_ok(cmoe_convert((cmoe_dtype)p.logits, row, CMOE_F32, values, T * (E + 3)));
        const cmoe_tensors t = {.logits = row, .logits_stride = E + 3};
        route(rig, &p, &t, i % 2, i == 0 ? want_ids : ids, i == 0 ? want : weights);
        if (i == 0) continue;
        assert_same_i32(ids, want_ids, T * K);
        for (int j = 0; j < T * K; j++) {
            assert_true(near(weights[j], (double)want[j]) && want[j] > 0);
        }
    }
}

static void every_token_to_every_expert(void **state)
{
    struct rig *const rig = *state;
    const cmoe_problem p = test_problem("t=6 e=5 k=5 h=8 i=8 route=all stages=route");
    const cmoe_tensors t = {0};
    for (int d = 0; d < 2; d++) {
        int32_t ids[T * E];
        float weights[T * E];
        route(rig, &p, &t, d, ids, weights);
        for (int i = 0; i < T * E; i++) {
            assert_int_equal(ids[i], i % E);
            assert_true(weights[i] == 1);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hash_table_of_any_ids),
        cmocka_unit_test(logits_from_x),
        cmocka_unit_test(narrow_logits_with_a_stride),
        cmocka_unit_test(every_token_to_every_expert),
    };
    return cmocka_run_group_tests(tests, rig_setup, rig_teardown);
}
