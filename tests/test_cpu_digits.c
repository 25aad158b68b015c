/* SPDX-License-Identifier: MIT
 * ctest: labels=kernels,portable
 * Rows of any type as integers times packed 4-bit codes, every instruction set that has them: against
 * sums in f64, within what small values may lose beside large ones. All buffers end at an inaccessible
 * page. */
#include "panel_rig.h"

enum { MOST_DIGIT_ROWS = 13 };

/* Values of a type, codes or floats; now and then some far smaller than the rest. */
static void *random_row(struct guard *g, struct rng *rng, cmoe_dtype dtype, int64_t k)
{
    if (dtype != CMOE_BF16) return random_codes(g, rng, dtype, k);
    uint16_t *const x = guard_alloc(g, (size_t)k * sizeof *x, 2, GUARD_INPUT);
    for (int64_t i = 0; i < k; i++) {
        const int down = rng_below(rng, 8) == 0 ? (int)rng_below(rng, 30) : 0;
        cmoe__store(dtype, x, i, ldexpf((float)rng_normal(rng), -down));
    }
    return x;
}

/* sum |w| over k's that a row's integers do not hold exactly, times what they may be off by. */
static double held_error(const double *x, const float *w, int64_t k)
{
    double error = 0;
    for (int64_t begin = 0; begin < k; begin += 32) {
        double largest = 0;
        for (int64_t i = begin; i < begin + 32 && i < k; i++)
            largest = fmax(largest, fabs(x[i]));
        for (int64_t i = begin; i < begin + 32 && i < k; i++)
            if (fabs(x[i]) < 0x1p-13 * largest) error += 0x1p-22 * largest * fabs((double)w[i]);
    }
    return error;
}

static void check_digits(struct packed *m, struct rng *rng, enum cmoe_isa isa, cmoe_format x,
                         int rows)
{
    const struct cmoe_cpu_quant_ops *const ops = cmoe__cpu_quant_ops(isa);
    const int64_t k = m->l.k;
    struct cmoe_cpu_digits d;
    float groups[MOST_K], w[MOST_K];
    static double value[MOST_DIGIT_ROWS][MOST_K];
    bool streams[MOST_DIGIT_ROWS] = {false};
    struct cmoe_cpu_digit_row from[MOST_DIGIT_ROWS];
    if (!cmoe__cpu_digits_layout(x, m->w.p.w, k, &d)) return;
    const int64_t spans = d.spans * rows;
    char *const words =
        guard_alloc(&m->guard, (size_t)(spans * d.span * d.digits), 4, GUARD_OUTPUT);
    int32_t *const offsets = guard_alloc(&m->guard, (size_t)spans * 4, 4, GUARD_OUTPUT);
    float *const scales = guard_alloc(&m->guard, (size_t)spans * 4, 4, GUARD_OUTPUT);
    float *const c = guard_alloc(&m->guard, (size_t)rows * 4 * CMOE_CPU_PANEL, 64, GUARD_OUTPUT);
    const struct cmoe_cpu_x_scale s = {
        .span = cmoe__format_span(x, 0), .of_group = groups, .one = 0.5f, .global = 1};
    for (int i = 0; i < MOST_K; i++)
        groups[i] = ldexpf(1, (int)rng_between(rng, -3, 3));
    for (int r = 0; r < rows; r++) {
        const void *const codes = random_row(&m->guard, rng, (cmoe_dtype)x.dtype, k);
        for (int64_t i = 0; i < k; i++)
            value[r][i] = (double)cmoe__load((cmoe_dtype)x.dtype, codes, i) *
                          (double)(d.factor == 0 ? 1 : (s.span ? groups[i / s.span] : s.one));
        from[r] = (struct cmoe_cpu_digit_row){.scale = s, .codes = codes, .streams = &streams[r]};
    }
    ops->pack_digits(&d, (cmoe_dtype)x.dtype, from, rows, k, words, offsets, scales);
    for (int r = 0; r < rows; r++)
        for (int64_t i = 0; i < k && !streams[r]; i++)
            assert_false(isnan(value[r][i]));
    ops->dot_digits(&d, &m->l, m->panels, rows, words, offsets, scales, c);
    for (int j = 0; j < CMOE_CPU_PANEL; j++) {
        struct cmoe_row row;
        cmoe__weights_row(&m->w, 2, 0, j, &row);
        cmoe__row_decode_f32(m->w.p.w, &row, k, w);
        for (int r = 0; r < rows; r++) {
            const double got = (double)c[r * CMOE_CPU_PANEL + j];
            double sum = 0, size = 0;
            for (int64_t i = 0; i < k; i++) {
                sum += value[r][i] * (double)w[i];
                size += fabs(value[r][i] * (double)w[i]);
            }
            const double bound = size * (double)(d.spans + 4) * 0x1p-23 +
                                 (d.factor == 0 ? held_error(value[r], w, k) : 0) + 0x1p-126;
            if (!streams[r] && size < 0x1p120 && !(fabs(got - sum) <= bound))
                fail_with("%s: K=%ld, %d rows of %s: (%d, %d) is %.9g, not %.9g",
                          cmoe__isa_name(isa), (long)k, rows, cmoe_dtype_name((cmoe_dtype)x.dtype),
                          r, j, got, sum);
        }
    }
    assert_true(guard_check(&m->guard));
}

static void rows_of_integers(void **state)
{
    static const cmoe_format types[] = {
        {.dtype = CMOE_BF16},
        {.dtype = CMOE_I8, .scaling = CMOE_SCALE_TOKEN},
        {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_TOKEN},
        {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_MX},
        {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX},
        {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_NV},
    };
    struct packed *const m = calloc(1, sizeof *m);
    struct rng rng = {test_seed()};
    (void)state;
    assert_non_null(m);
    guard_init(&m->guard);
    for (int level = 0; level < CMOE_ISA_LEVELS; level++) {
        if (!runs(level) || !cmoe__cpu_quant_ops((enum cmoe_isa)level)->pack_digits) continue;
        for (int f = 0; f < FORMATS; f++)
            for (int d = 0; d < DEPTHS; d++)
                for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
                    if (cmoe_dtype_bits((cmoe_dtype)formats[f].dtype) != 4) continue;
                    make_packed(m, &rng, formats[f], depths[d]);
                    check_digits(m, &rng, (enum cmoe_isa)level, types[t],
                                 (int)rng_between(&rng, 1, MOST_DIGIT_ROWS));
                }
    }
    guard_end(&m->guard);
    free(m);
}

/* Values that no integers of a span stand for. */
static void rows_that_are_no_integers(void **state)
{
    static const float odd[] = {INFINITY, -INFINITY, NAN, 0x1p101f, 0x1p-100f};
    const cmoe_format bf16 = {.dtype = CMOE_BF16};
    const cmoe_format w = {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX};
    (void)state;
    for (int level = 0; level < CMOE_ISA_LEVELS; level++) {
        const struct cmoe_cpu_quant_ops *const ops =
            runs(level) ? cmoe__cpu_quant_ops((enum cmoe_isa)level) : NULL;
        if (!ops || !ops->pack_digits) continue;
        for (int i = 0; i < 5; i++) {
            struct cmoe_cpu_digits d;
            uint16_t x[40] = {0};
            char words[2 * 32 * 3];
            int32_t offsets[2];
            float scales[2];
            bool streams = false;
            const struct cmoe_cpu_digit_row row = {
                .scale = {.one = 1, .global = 1}, .codes = x, .streams = &streams};
            assert_true(cmoe__cpu_digits_layout(bf16, w, 40, &d));
            ops->pack_digits(&d, CMOE_BF16, &row, 1, 40, words, offsets, scales);
            assert_false(streams);
            cmoe__store(CMOE_BF16, x, 37, odd[i]);
            ops->pack_digits(&d, CMOE_BF16, &row, 1, 40, words, offsets, scales);
            assert_true(streams);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_of_integers),
        cmocka_unit_test(rows_that_are_no_integers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
