/* SPDX-License-Identifier: MIT
 * Rows of weights: every storage of gate and up decodes to the same logical rows, through every
 * stride, in every floating-point environment. */
/* ctest: labels=portable cost=25 */
#include "core/numeric.h"
#include "core/weights.h"
#include "harness.h"
#include "harness_env.h"
#include "harness_weights.h"

#include <cmoe/convert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const layout_names[] = {"fused", "separate", "interleaved", "ungated", "joint"};

/* The element (row, col) of a store by the layout in weights.h; `grid`: its row of blocks. */
static double element(cmoe_format f, const struct store *s, int64_t row, int64_t grid, int64_t col)
{
    const cmoe_dtype dtype = (cmoe_dtype)f.dtype;
    const uint8_t *const codes = s->codes + row * (int64_t)cmoe_dtype_bytes(dtype, s->cols);
    double v = (double)cmoe__load(dtype, codes, col);
    int64_t width = s->cols, scale_row = row; /* columns a scale */
    if (f.scaling == CMOE_SCALE_NONE) return v;
    if (f.scaling == CMOE_SCALE_TENSOR) scale_row = 0;
    if (f.scaling == CMOE_SCALE_BLOCK) width = 128, scale_row = grid;
    if (f.scaling == CMOE_SCALE_GROUP) width = f.group;
    if (f.scaling == CMOE_SCALE_MX) width = 32;
    if (f.scaling == CMOE_SCALE_NV) width = 16;
    const int64_t index = scale_row * ((s->cols + width - 1) / width) + col / width;
    if (f.zero)
        v -= s->zero[index];
    else if (f.dtype == CMOE_U4 || f.dtype == CMOE_U8)
        v -= f.dtype == CMOE_U4 ? 8 : 128;
    v *= (double)cmoe__load(store_scale_type(f), s->scale, index);
    return f.scaling == CMOE_SCALE_NV ? v * (double)s->global : v;
}

/* Where the logical row n of matrix 1 is, from the definitions of the gate layouts. */
static const struct store *locate(const struct weights_made *m, enum layout layout, int expert,
                                  int64_t n, int64_t *row, int64_t *grid)
{
    const bool up = layout != UNGATED && n >= I;
    const int64_t within = up ? n - I : n;
    *row = n;
    *grid = n / 128;
    if (layout == SEPARATE) {
        *row = within;
        *grid = within / 128;
        return weights_store(m, expert, up);
    }
    if (layout == INTERLEAVED) {
        *row = 2 * within + up;
        *grid = *row / 128;
    }
    if (layout == FUSED) *grid = (up ? (I + 127) / 128 : 0) + within / 128;
    return weights_store(m, expert, 0);
}

static void check_row(const cmoe_weights *w, cmoe_format f, const char *what, int matrix,
                      int expert, int64_t n, const struct store *s, int64_t row, int64_t grid)
{
    double exact[H];
    float single[H];
    struct cmoe_row at;
    cmoe__weights_row(w, matrix, expert, n, &at);
    cmoe__row_decode_f64(f, &at, s->cols, exact);
    cmoe__row_decode_f32(f, &at, s->cols, single);
    for (int64_t c = 0; c < s->cols; c++) {
        const double want = element(f, s, row, grid, c);
        const bool ok = isnan(want) ? isnan(exact[c]) && isnan(single[c])
                                    : exact[c] == want && single[c] == (float)want;
        if (!ok)
            fail_with("%s %s/%d: matrix %d expert %d row %d column %d is %a (f32 %a), expected %a",
                      what, cmoe_dtype_name((cmoe_dtype)f.dtype), f.scaling, matrix, expert, (int)n,
                      (int)c, exact[c], (double)single[c], want);
    }
    assert_true(cmoe__weights_bias(w, matrix, expert, n) == s->bias[row]);
}

static void test_layouts(void **state)
{
    (void)state;
    struct rng rng = {test_seed()};
    struct counter counter = {0};
    cmoe_context *const ctx = test_context(2, &counter);
    cmoe_device *const dev = test_device(ctx, "ref");
    struct weights_made m = {0};
    for (int k = 0; k < WEIGHT_FORMATS; k++)
        for (int layout = 0; layout < LAYOUTS; layout++) {
            if (layout == JOINT && weight_formats[k].scaling != CMOE_SCALE_BLOCK) continue;
            if (test_short() && layout != JOINT && (k + layout) % 2 != 0) continue;
            weights_make(&rng, weight_formats[k], (enum layout)layout, &m);
            cmoe_weights *w;
            expect_ok(cmoe_weights_create(dev, &m.p, &m.desc, &w));
            memset(&m.gate_up, 0, sizeof m.gate_up); /* tables are copied */
            memset(&m.up, 0, sizeof m.up);
            memset(&m.down, 0, sizeof m.down);
            assert_string_equal(cmoe_weights_format(w, 1), "canonical");
            assert_int_equal(cmoe_weights_owned_bytes(w), 0);
            for (int e = 0; e < E; e++) {
                for (int64_t n = 0; n < cmoe_problem_rows1(&m.p); n += e == 1 ? 1 : 9) {
                    int64_t row, grid;
                    const struct store *const s =
                        locate(&m, (enum layout)layout, e, n, &row, &grid);
                    check_row(w, weight_formats[k], layout_names[layout], 1, e, n, s, row, grid);
                }
                for (int64_t n = 0; n < H; n += 7)
                    check_row(w, weight_formats[k], layout_names[layout], 2, e, n,
                              weights_store(&m, e, 2), n, n / 128);
            }
            cmoe_weights_destroy(w);
        }
    weights_made_end(&m);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
    assert_int_equal(counter.live, 0);
}

/* Fused tensors of all experts, as they are and transposed, are views of the same values. */
static void test_split(void **state)
{
    (void)state;
    struct rng rng = {test_seed()};
    struct store *const s = malloc(sizeof *s);
    uint8_t *const fused = malloc(E * sizeof s->codes), *const turned = malloc(E * sizeof s->codes);
    for (int k = 0; k < WEIGHT_FORMATS; k++) {
        const cmoe_format f = weight_formats[k];
        const cmoe_dtype dtype = (cmoe_dtype)f.dtype;
        const int64_t size = cmoe_dtype_bits(dtype) / 8;
        size_t codes, scales, zeros;
        expect_ok(cmoe_format_bytes(f, I, H, &codes, &scales, &zeros));
        if (f.scaling == CMOE_SCALE_BLOCK) scales += 8; /* a grid of one row more */
        store_fill(&rng, f, E * I, H, s);
        float global[E] = {1, 2, 0.5F}, smooth[E * H] = {0};
        for (size_t i = 0; i < E * codes; i++)
            fused[i] = s->codes[i % sizeof s->codes];
        for (int64_t e = 0; e < E && size; e++)
            for (int64_t r = 0; r < I; r++)
                for (int64_t c = 0; c < H; c++)
                    memcpy(turned + ((e * H + c) * I + r) * size,
                           fused + ((e * I + r) * H + c) * size, (size_t)size);
        cmoe_fused from = {.data = fused,
                           .scale = s->scale,
                           .zero = s->zero,
                           .global = global,
                           .bias = s->bias,
                           .smooth = smooth,
                           .rows = I,
                           .cols = H,
                           .scale_rows = f.scaling == CMOE_SCALE_BLOCK ? 3 : 0,
                           .experts = E};
        cmoe_matrix out[E], transposed[E];
        from.bias = NULL;
        expect_ok(cmoe_matrix_split(&from, f, out));
        for (size_t e = 0; e < E; e++) {
            assert_ptr_equal(out[e].data, fused + e * codes);
            if (f.scaling != CMOE_SCALE_NONE) assert_ptr_equal(out[e].scale, s->scale + e * scales);
            if (f.zero) assert_ptr_equal(out[e].zero, s->zero + e * zeros);
            assert_ptr_equal(out[e].smooth, smooth + e * H);
            assert_null(out[e].bias);
        }
        from.transposed = 1;
        from.data = turned;
        if (size == 0) {
            expect_error(cmoe_matrix_split(&from, f, transposed), CMOE_ERR_INVALID, "transposed");
            continue;
        }
        expect_ok(cmoe_matrix_split(&from, f, transposed));
        static float straight[I * H], across[I * H];
        for (int e = 0; e < E; e++) {
            expect_ok(cmoe_dequantize_weight(f, &out[e], I, H, straight));
            expect_ok(cmoe_dequantize_weight(f, &transposed[e], I, H, across));
            assert_same_bytes(across, straight, sizeof straight);
        }
    }
    free(turned);
    free(fused);
    free(s);
}

/* A row stride with padding, and the smallest of transposed views, need no copies either. */
static void test_strides(void **state)
{
    (void)state;
    enum { R = 3, K = 20, WIDE = 32 };
    uint8_t data[R * WIDE];
    float scale[R] = {1, 0.5F, 4}, got[R * K];
    for (int i = 0; i < R * WIDE; i++)
        data[i] = (uint8_t)(i % 100);
    const cmoe_format f = {.dtype = CMOE_I8, .scaling = CMOE_SCALE_CHANNEL};
    cmoe_matrix m = {.data = data, .row_stride = WIDE, .scale = scale};
    expect_ok(cmoe_dequantize_weight(f, &m, R, K, got));
    for (int i = 0; i < R * K; i++)
        assert_true(got[i] == (float)(i / K * WIDE + i % K) * scale[i / K]);
    m.row_stride = 0; /* one element */
    m.col_stride = R;
    expect_ok(cmoe_dequantize_weight(f, &m, R, K, got));
    for (int i = 0; i < R * K; i++)
        assert_true(got[i] == (float)(i % K * R + i / K) * scale[i / K]);
    m.row_stride = K - 1;
    m.col_stride = 0;
    expect_error(cmoe_dequantize_weight(f, &m, R, K, got), CMOE_ERR_INVALID,
                 "row stride 19 is less than 20");
    m.row_stride = INT64_MAX;
    expect_error(cmoe_dequantize_weight(f, &m, R, K, got), CMOE_ERR_OVERFLOW, "do not fit");
    m.row_stride = -K;
    expect_error(cmoe_dequantize_weight(f, &m, R, K, got), CMOE_ERR_INVALID, "row stride -20");
}

/* Decoding is exact, so no environment changes a bit. */
static void test_environments(void **state)
{
    (void)state;
    struct rng rng = {test_seed()};
    struct float_env env;
    struct store *const s = malloc(sizeof *s);
    static float want[I * H], got[I * H];
    for (int k = 0; k < WEIGHT_FORMATS; k++) {
        store_fill(&rng, weight_formats[k], I, H, s);
        if (store_scale_type(weight_formats[k]) == CMOE_F32 &&
            weight_formats[k].scaling != CMOE_SCALE_NONE) /* results among the denormals */
            for (int i = 0; i < 10; i++)
                cmoe__store(CMOE_F32, s->scale, i, 1.5e-43F);
        const cmoe_matrix m = store_view(s);
        expect_ok(cmoe_dequantize_weight(weight_formats[k], &m, I, H, want));
        for (int e = 1; float_env_at(e, &env); e++) {
            float_env_enter(&env);
            const cmoe_status status = cmoe_dequantize_weight(weight_formats[k], &m, I, H, got);
            float_env_leave();
            expect_ok(status);
            assert_same_bytes(got, want, sizeof want);
        }
    }
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_strides),
        cmocka_unit_test(test_environments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
