/* SPDX-License-Identifier: MIT
 * ctest: labels=kernels,portable
 * Packed panels of quantised weights, every instruction set that runs here: decoding against
 * core/weights.h for random codes under every kind of scale, rows that stream against decode and
 * gemm_p32, integer dots against plain sums, vector quantisers against core/quantize.h. All buffers
 * end at an inaccessible page. */
#include "panel_rig.h"

#include "core/quantize.h"

enum { MOST_M = 4 };

static bool same_value(float a, float b)
{
    return isnan(a) ? isnan(b) : memcmp(&a, &b, sizeof a) == 0;
}

static void for_packed(void (*check)(struct packed *, struct rng *, enum cmoe_isa))
{
    struct packed *const m = calloc(1, sizeof *m);
    struct rng rng = {test_seed()};
    assert_non_null(m);
    guard_init(&m->guard);
    for (int level = 0; level < CMOE_ISA_LEVELS; level++)
        for (int f = 0; f < FORMATS && runs(level); f++)
            for (int d = 0; d < DEPTHS; d++) {
                make_packed(m, &rng, formats[f], depths[d]);
                check(m, &rng, (enum cmoe_isa)level);
                assert_true(guard_check(&m->guard));
            }
    guard_end(&m->guard);
    free(m);
}

static void check_decode(struct packed *m, struct rng *rng, enum cmoe_isa isa)
{
    const struct cmoe_cpu_quant_ops *const ops = cmoe__cpu_quant_ops(isa);
    const int64_t k = m->l.k, first = rng_below(rng, k) / 16 * 16;
    const int64_t n = rng_between(rng, 1, k - first);
    float row[MOST_K];
    for (int j = 0; j < PANELS * CMOE_CPU_PANEL; j++) {
        const char *const panel = m->panels + j / CMOE_CPU_PANEL * m->l.bytes;
        struct cmoe_row from;
        memset(row, 0, sizeof row);
        if (j < ROWS) {
            cmoe__weights_row(&m->w, 2, 0, j, &from);
            cmoe__row_decode_f32(m->w.p.w, &from, k, row);
        }
        float *const all =
            guard_alloc(&m->guard, (size_t)(n * CMOE_CPU_PANEL) * sizeof *all, 4, GUARD_OUTPUT);
        if (j % CMOE_CPU_PANEL % 8 != 0) continue; /* a column of every vector is enough */
        ops->decode(&m->l, panel, first, n, all);
        for (int64_t i = 0; i < n; i++) {
            const float got = all[i * CMOE_CPU_PANEL + j % CMOE_CPU_PANEL], want = row[first + i];
            if (!same_value(got, want) && !(got == 0 && want == 0))
                fail_with("%s: %s K=%ld: weight (%d, %ld) is %g, not %g", cmoe__isa_name(isa),
                          cmoe_dtype_name((cmoe_dtype)m->w.p.w.dtype), (long)k, j,
                          (long)(first + i), (double)got, (double)want);
        }
    }
}

/* Rows in one pass, and alone with K cut: what decode and the f32 tile give. */
static void check_stream(struct packed *m, struct rng *rng, enum cmoe_isa isa)
{
    const struct cmoe_cpu_quant_ops *const quant = cmoe__cpu_quant_ops(isa);
    const struct cmoe_cpu_ops *const ops = cmoe__cpu_ops(isa);
    const int64_t k = m->l.k, cut = k / 2 / 16 * 16, padded = cmoe__round_up(k, 16);
    static float x[MOST_M][MOST_K], a[MOST_M * (MOST_K + 16)], w[MOST_K * CMOE_CPU_PANEL];
    const void *rows[MOST_M];
    const int n = 1 + (int)rng_below(rng, quant->stream_rows);
    float c[MOST_M][CMOE_CPU_PANEL], want[MOST_M][CMOE_CPU_PANEL], alone[CMOE_CPU_PANEL];
    for (int r = 0; r < n; r++) {
        rows[r] = x[r];
        for (int64_t i = 0; i < k; i++)
            x[r][i] = (float)rng_normal(rng);
    }
    ops->pack_rows(CMOE_F32, rows, n, k, a);
    quant->stream(&m->l, m->panels, n, 0, k, a, c[0], CMOE_CPU_PANEL, false);
    quant->decode(&m->l, m->panels, 0, k, w);
    ops->gemm_p32(CMOE_F32, n, k, a, w, want[0], CMOE_CPU_PANEL, false, (struct cmoe_cpu_ahead){0});
    for (int r = 0; r < n; r++) {
        ops->pack_rows(CMOE_F32, &rows[r], 1, k, a);
        quant->stream(&m->l, m->panels, 1, 0, cut, a, alone, CMOE_CPU_PANEL, false);
        quant->stream(&m->l, m->panels, 1, cut, k - cut, a + cut, alone, CMOE_CPU_PANEL, true);
        for (int j = 0; j < CMOE_CPU_PANEL; j++) {
            assert_true(same_value(c[r][j], want[r][j]));
            assert_true(same_value(alone[j], want[r][j]));
        }
    }
    assert_true(padded <= MOST_K + 16);
}

static void panels_decode(void **state)
{
    (void)state;
    for_packed(check_decode);
}

static void few_rows_stream(void **state)
{
    (void)state;
    for_packed(check_stream);
}

/* --- integer dots --------------------------------------------------------------------------- */

/* block: k's of a call; extreme: every code and every x is -128 or 127. */
static void check_dots(struct packed *m, struct rng *rng, enum cmoe_isa isa, int rows,
                       int64_t block, bool extreme)
{
    const struct cmoe_cpu_quant_ops *const ops = cmoe__cpu_quant_ops(isa);
    const int64_t k = m->l.k, quads = cmoe__ceil_div(k, 4);
    const void *from[16], *part[16];
    const float scale[16] = {1, 0.5f, 2, 0.25f, 1, 4, 8, 1, 1, 0.5f, 1, 2};
    for (int r = 0; r < rows; r++) {
        int8_t *const x = guard_alloc(&m->guard, (size_t)k, 1, GUARD_INPUT);
        for (int64_t i = 0; i < k; i++)
            x[i] = (int8_t)(extreme ? (r % 2 ? 127 : -128) : rng_between(rng, -128, 127));
        from[r] = x;
    }
    void *const a =
        guard_alloc(&m->guard, (size_t)(quads * rows * ops->quad_bytes), 4, GUARD_OUTPUT);
    float *const c =
        guard_alloc(&m->guard, (size_t)rows * CMOE_CPU_PANEL * sizeof *c, 4, GUARD_OUTPUT);
    for (int64_t at = 0, n; at < k; at += n) {
        n = cmoe__min64(block, k - at);
        for (int r = 0; r < rows; r++)
            part[r] = (const char *)from[r] + at;
        ops->pack_i8(part, rows, n, a);
        ops->dot_i8(&m->l, m->panels, at, n, rows, a, scale, c, CMOE_CPU_PANEL,
                    (struct cmoe_cpu_ahead){0});
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < CMOE_CPU_PANEL; j++) {
            const int8_t *const w = (const int8_t *)m->down.data + j * k, *const x = from[r];
            const float column = ((const float *)m->down.scale)[j];
            int64_t sum = 0;
            for (int64_t i = 0; i < k; i++)
                sum += x[i] * w[i];
            if (c[r * CMOE_CPU_PANEL + j] != (float)sum * (column * scale[r]))
                fail_with("%s: K=%ld, %d rows: dot (%d, %d) is %.9g, not %ld times its scales",
                          cmoe__isa_name(isa), (long)k, rows, r, j,
                          (double)c[r * CMOE_CPU_PANEL + j], (long)sum);
        }
    assert_true(guard_check(&m->guard));
}

static void dots_are_exact(void **state)
{
    static const int64_t deep[] = {1, 2, 3, 4, 7, 64, 129, 1000};
    struct packed *const m = calloc(1, sizeof *m);
    struct rng rng = {test_seed()};
    (void)state;
    assert_non_null(m);
    guard_init(&m->guard);
    for (int level = 0; level < CMOE_ISA_LEVELS; level++) {
        if (!runs(level)) continue;
        const int most = cmoe__cpu_quant_ops((enum cmoe_isa)level)->dot_rows;
        for (int rows = 1; rows <= most; rows++)
            for (int d = 0; d < 8; d++) {
                make_packed(m, &rng, formats[0], deep[d]);
                check_dots(m, &rng, (enum cmoe_isa)level, rows, deep[d], false);
                check_dots(m, &rng, (enum cmoe_isa)level, rows, 4 * (d + 1), false);
            }
        make_packed(m, &rng, formats[0], CMOE_CPU_DOT_K);
        memset((void *)(uintptr_t)m->down.data, 0x80, ROWS * (size_t)CMOE_CPU_DOT_K);
        cmoe__cpu_p32_i8.pack(&m->w, 2, 0, 0, PANELS, m->panels);
        guard_freeze(&m->guard);
        check_dots(m, &rng, (enum cmoe_isa)level, 2, CMOE_CPU_DOT_K, true);
    }
    guard_end(&m->guard);
    free(m);
}

/* Rows of int8 by groups of 4-bit codes against sums in f64: exact in a group, f32 between groups. */
static void check_dots4(struct packed *m, struct rng *rng, enum cmoe_isa isa, int rows)
{
    const struct cmoe_cpu_quant_ops *const ops = cmoe__cpu_quant_ops(isa);
    const int64_t k = m->l.k, groups = cmoe__ceil_div(k, m->l.span);
    const bool extreme = rng_below(rng, 4) == 0;
    const void *from[16];
    const float scale[16] = {1, 0.5f, 2, 0.25f, 1, 4, 8, 1, 1, 0.5f, 1, 2};
    float w[MOST_K];
    for (int r = 0; r < rows; r++) {
        int8_t *const x = guard_alloc(&m->guard, (size_t)k, 1, GUARD_INPUT);
        for (int64_t i = 0; i < k; i++)
            x[i] = (int8_t)(extreme ? (r % 2 ? 127 : -128) : rng_between(rng, -128, 127));
        from[r] = x;
    }
    void *const a = guard_alloc(&m->guard, (size_t)(cmoe__round_up(k, 8) * rows), 4, GUARD_OUTPUT);
    int32_t *const offsets =
        guard_alloc(&m->guard, (size_t)(groups * rows) * sizeof *offsets, 4, GUARD_OUTPUT);
    float *const c =
        guard_alloc(&m->guard, (size_t)rows * CMOE_CPU_PANEL * sizeof *c, 4, GUARD_OUTPUT);
    ops->pack_u4(&m->l, from, rows, a, offsets);
    ops->dot_u4(&m->l, m->panels, rows, a, offsets, scale, c, CMOE_CPU_PANEL);
    for (int j = 0; j < CMOE_CPU_PANEL; j++) {
        struct cmoe_row row;
        cmoe__weights_row(&m->w, 2, 0, j, &row);
        cmoe__row_decode_f32(m->w.p.w, &row, k, w);
        for (int r = 0; r < rows; r++) {
            const float got = c[r * CMOE_CPU_PANEL + j];
            double sum = 0, size = 0;
            for (int64_t i = 0; i < k; i++) {
                const double product = (double)((const int8_t *)from[r])[i] * (double)w[i];
                sum += product * (double)scale[r];
                size += fabs(product) * (double)scale[r];
            }
            if (!(fabs((double)got - sum) <= size * (double)(groups + 4) * 0x1p-23))
                fail_with("%s: K=%ld, %d rows: 4-bit dot (%d, %d) is %.9g, not %.9g",
                          cmoe__isa_name(isa), (long)k, rows, r, j, (double)got, sum);
        }
    }
    assert_true(guard_check(&m->guard));
}

static void dots_of_4_bits(void **state)
{
    struct packed *const m = calloc(1, sizeof *m);
    struct rng rng = {test_seed()};
    (void)state;
    assert_non_null(m);
    guard_init(&m->guard);
    for (int level = 0; level < CMOE_ISA_LEVELS; level++) {
        if (!runs(level)) continue;
        const int most = cmoe__cpu_quant_ops((enum cmoe_isa)level)->dot4_rows;
        for (int f = 0; f < FORMATS; f++)
            for (int d = 0; d < DEPTHS; d++) {
                if (formats[f].dtype != CMOE_I4 && formats[f].dtype != CMOE_U4) continue;
                for (int rows = 1; rows <= most; rows++) {
                    make_packed(m, &rng, formats[f], depths[d]);
                    check_dots4(m, &rng, (enum cmoe_isa)level, rows);
                }
            }
    }
    guard_end(&m->guard);
    free(m);
}

/* --- quantisers ----------------------------------------------------------------------------- */

static void rows_quantise_as_the_core_does(void **state)
{
    static const cmoe_dtype dtypes[] = {CMOE_I8, CMOE_E4M3, CMOE_E2M1};
    struct rng rng = {test_seed()};
    struct guard g;
    int done = 0;
    (void)state;
    guard_init(&g);
    for (int level = 0; level < CMOE_ISA_LEVELS; level++)
        for (int n = 1; n <= 200 && runs(level); n++) {
            const struct cmoe_cpu_quant_ops *const ops = cmoe__cpu_quant_ops((enum cmoe_isa)level);
            const cmoe_format f = {.dtype = (uint8_t)dtypes[n % 3], .scaling = CMOE_SCALE_TOKEN};
            float *const v = guard_alloc(&g, (size_t)n * sizeof *v, 4, GUARD_INPUT);
            const int wide = n % 5 == 0;
            for (int i = 0; i < n; i++) /* ties, subnormal codes, saturation */
                v[i] = wide ? ldexpf((float)rng_normal(&rng), (int)rng_between(&rng, -30, 30))
                            : (float)rng_between(&rng, -1024, 1024) * 0.125f;
            const float most = ops->amax(v, n), scale = wide ? 1.0f : (float)(n % 3 + 1) * 0.5f;
            assert_true(same_value(most, cmoe__amax(v, n)));
            const size_t bytes = cmoe_dtype_bytes((cmoe_dtype)f.dtype, n);
            uint8_t *const got = guard_alloc(&g, bytes, 1, GUARD_OUTPUT);
            uint8_t want[200];
            cmoe__quantize_span(f, v, 0, n, scale, want);
            if (ops->quantize((cmoe_dtype)f.dtype, v, n, scale, got)) {
                assert_same_bytes(got, want, bytes);
                done++;
            }
            v[n - 1] = n % 2 ? NAN : INFINITY;
            assert_false(isfinite(ops->amax(v, n)));
            guard_reset(&g);
        }
    guard_end(&g);
    assert_true(done > 0 || cmoe__cpuid_isa() == CMOE_ISA_LEVEL_GENERIC);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(panels_decode),
        cmocka_unit_test(few_rows_stream),
        cmocka_unit_test(dots_are_exact),
        cmocka_unit_test(dots_of_4_bits),
        cmocka_unit_test(rows_quantise_as_the_core_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
