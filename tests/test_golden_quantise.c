/* SPDX-License-Identifier: MIT
 * Every format of activations and weights, quantised and decoded again: bit for bit what numpy's
 * division and ml_dtypes' casts give by docs/numerics.md section 2. */
/* ctest: labels=portable */
#include "harness_golden.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN CMOE_TEST_DIR "/golden/"

struct state {
    struct golden_list list;
    float *values;
    int64_t n_values;
    struct guard guard;
};

static int group_setup(void **out)
{
    struct state *const s = calloc(1, sizeof *s);
    assert_non_null(s);
    golden_read(GOLDEN "manifest.txt", &s->list);
    s->values = golden_array(GOLDEN "quantised.npy", &s->n_values);
    guard_init(&s->guard);
    *out = s;
    return 0;
}

static int group_teardown(void **state)
{
    struct state *const s = *state;
    golden_free(&s->list);
    free(s->values);
    guard_end(&s->guard);
    free(s);
    return 0;
}

static void *output(struct state *s, size_t bytes)
{
    return bytes > 0 ? guard_alloc(&s->guard, bytes, 4, GUARD_OUTPUT) : NULL;
}

static void check_values(const struct golden_case *c, const float *got, const float *want)
{
    int64_t zeros = 0;
    for (int64_t i = 0; i < c->count; i++) {
        zeros += want[i] == 0;
        const bool same = isnan(want[i]) ? isnan(got[i]) : got[i] == want[i];
        if (!same)
            fail_with("%s: element %lld is %.9g, not %.9g", c->name, (long long)i, (double)got[i],
                      (double)want[i]);
    }
    if (10 * zeros > 9 * c->count) fail_with("%s: zeros would pass", c->name);
}

static void check_rows(struct state *s, const struct golden_case *c, const float *want)
{
    const cmoe_problem p = test_problem(c->problem);
    const cmoe_format f = p.x;
    const int64_t rows = p.max_tokens, cols = p.hidden;
    size_t code_bytes, scale_bytes;
    guard_reset(&s->guard);
    const float *const v = golden_wide(&s->guard, c, &p);
    const float fixed = golden_static_scale(c, (cmoe_dtype)f.dtype);
    expect_ok(cmoe_format_bytes(f, rows, cols, &code_bytes, &scale_bytes, NULL));
    guard_freeze(&s->guard);
    void *const codes = output(s, code_bytes), *const scale = output(s, scale_bytes);
    float *const global = output(s, (size_t)rows * sizeof *global);
    float *const got = output(s, (size_t)(rows * cols) * sizeof *got);
    if (f.fixed) global[0] = fixed;
    expect_ok(cmoe_quantize_rows(f, v, rows, cols, f.fixed ? &fixed : NULL, codes, scale, global));
    expect_ok(cmoe_dequantize_rows(f, codes, scale, global, rows, cols, got));
    assert_true(guard_check(&s->guard));
    check_values(c, got, want);
}

static void check_matrix(struct state *s, const struct golden_case *c, const float *want)
{
    const cmoe_problem p = test_problem(c->problem);
    const cmoe_format f = p.w;
    const int64_t rows = p.max_tokens, cols = p.hidden;
    size_t code_bytes, scale_bytes, zero_bytes;
    guard_reset(&s->guard);
    const float *const v = golden_wide(&s->guard, c, &p);
    expect_ok(cmoe_format_bytes(f, rows, cols, &code_bytes, &scale_bytes, &zero_bytes));
    guard_freeze(&s->guard);
    float *const global = output(s, sizeof *global);
    const cmoe_matrix m = {.data = output(s, code_bytes),
                           .scale = output(s, scale_bytes),
                           .zero = output(s, zero_bytes),
                           .global = global};
    float *const got = output(s, (size_t)(rows * cols) * sizeof *got);
    expect_ok(cmoe_quantize_weight(f, v, rows, cols, (void *)(uintptr_t)m.data,
                                   (void *)(uintptr_t)m.scale, (uint8_t *)(uintptr_t)m.zero,
                                   global));
    expect_ok(cmoe_dequantize_weight(f, &m, rows, cols, got));
    assert_true(guard_check(&s->guard));
    check_values(c, got, want);
}

static void check_all(struct state *s, enum golden_kind kind, int at_least,
                      void (*check)(struct state *, const struct golden_case *, const float *))
{
    int done = 0;
    for (int64_t i = 0; i < s->list.n; i++) {
        const struct golden_case *const c = &s->list.cases[i];
        if (c->kind != kind) continue;
        assert_true(c->offset >= 0 && c->offset + c->count <= s->n_values);
        check(s, c, s->values + c->offset);
        done++;
    }
    assert_true(done >= at_least);
}

static void activations_agree_with_ml_dtypes(void **state)
{
    check_all(*state, GOLDEN_ROWS, 50, check_rows);
}

static void weights_agree_with_ml_dtypes(void **state)
{
    check_all(*state, GOLDEN_MATRIX, 70, check_matrix);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(activations_agree_with_ml_dtypes),
        cmocka_unit_test(weights_agree_with_ml_dtypes),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
