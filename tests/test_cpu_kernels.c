/* SPDX-License-Identifier: MIT
 * ctest: labels=kernels,portable
 * The inner loops of the cpu backend, every instruction set that runs here against plain loops: all
 * tails of rows, columns and K, buffers that end at an inaccessible page, and the promise that a
 * row's bits do not depend on the rows beside it or on where K is cut. */
#include "harness.h"

#include "backends/cpu/cpuid.h"
#include "backends/cpu/ops.h"
#include "backends/cpu/run.h"
#include "core/numeric.h"
#include "core/size.h"
#include "core/weights.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_K = 70, MOST_M = 12, LDC = 40 };

static const cmoe_dtype dtypes[] = {CMOE_F32, CMOE_F16, CMOE_BF16};

/* Tables of the levels that this CPU runs. */
static const struct cmoe_cpu_ops *table(int level)
{
    return level <= (int)cmoe__cpuid_isa() ? cmoe__cpu_ops((enum cmoe_isa)level) : NULL;
}

static int64_t size_of(cmoe_dtype dtype)
{
    return cmoe_dtype_bits(dtype) / 8;
}

/* n random values of a type, as codes. */
static void *random_row(struct guard *g, struct rng *rng, cmoe_dtype dtype, int64_t n)
{
    void *const row =
        guard_alloc(g, (size_t)(n * size_of(dtype)), (size_t)size_of(dtype), GUARD_INPUT);
    for (int64_t i = 0; i < n; i++)
        cmoe__store(dtype, row, i, (float)rng_normal(rng));
    return row;
}

static void check_dot(const char *what, float got, const double *a, const double *b, int64_t k)
{
    double want = 0, magnitude = 0;
    for (int64_t i = 0; i < k; i++) {
        want += a[i] * b[i];
        magnitude += fabs(a[i] * b[i]);
    }
    const double bound = (double)(k + 8) * 0x1p-24 * magnitude;
    if (!(fabs((double)got - want) <= bound))
        fail_with("%s, K=%ld: got %.9g, want %.9g +- %.3g", what, (long)k, (double)got, want,
                  bound);
}

/* --- operands ------------------------------------------------------------------------------- */

struct operands {
    struct guard guard;
    int m;
    int64_t k;
    cmoe_dtype w;
    const void *rows[MOST_M];
    double a_value[MOST_M][MOST_K], b_value[CMOE_CPU_PANEL][MOST_K];
    const void *b_rows[CMOE_CPU_PANEL];
    void *panel;
};

/* Element (k, column) of a panel. */
static int64_t panel_at(cmoe_dtype w, int64_t k, int j)
{
    if (w == CMOE_BF16) return k / 2 * 2 * CMOE_CPU_PANEL + 2 * j + k % 2;
    return k * CMOE_CPU_PANEL + j;
}

static void make_operands(struct operands *o, struct rng *rng, int m, int64_t k, cmoe_dtype w,
                          cmoe_dtype a)
{
    const size_t panel_bytes = (size_t)(cmoe__round_up(k, 2) * CMOE_CPU_PANEL * size_of(w));
    guard_reset(&o->guard);
    o->m = m;
    o->k = k;
    o->w = w;
    for (int r = 0; r < m; r++) {
        o->rows[r] = random_row(&o->guard, rng, a, k);
        for (int64_t i = 0; i < k; i++)
            o->a_value[r][i] = (double)cmoe__load(a, o->rows[r], i);
    }
    o->panel = guard_alloc(&o->guard, panel_bytes, 4, GUARD_INPUT);
    memset(o->panel, 0, panel_bytes);
    for (int j = 0; j < CMOE_CPU_PANEL; j++) {
        o->b_rows[j] = random_row(&o->guard, rng, w, k);
        for (int64_t i = 0; i < k; i++) {
            const float v = cmoe__load(w, o->b_rows[j], i);
            o->b_value[j][i] = (double)v;
            cmoe__store(w, o->panel, panel_at(w, i, j), v);
        }
    }
    guard_freeze(&o->guard);
}

static float *pack(struct operands *o, const struct cmoe_cpu_ops *ops, cmoe_dtype a, int first,
                   int m, int64_t from, int64_t k)
{
    const void *rows[MOST_M];
    float *const packed =
        guard_alloc(&o->guard, (size_t)(cmoe__round_up(k, CMOE_CPU_CHUNK) * m) * sizeof(float), 4,
                    GUARD_OUTPUT);
    for (int r = 0; r < m; r++)
        rows[r] = (const char *)o->rows[first + r] + from * size_of(a);
    ops->pack_rows(a, rows, m, k, packed);
    for (int64_t i = 0; i < cmoe__round_up(k, CMOE_CPU_CHUNK); i++)
        for (int r = 0; r < m; r++) {
            const int64_t at = (i / CMOE_CPU_CHUNK * m + r) * CMOE_CPU_CHUNK + i % CMOE_CPU_CHUNK;
            const double want = i < k ? o->a_value[first + r][from + i] : 0;
            if ((double)packed[at] != want)
                fail_with("pack_rows m=%d k=%ld: row %d column %ld is %g, not %g", m, (long)k, r,
                          (long)i, (double)packed[at], want);
        }
    return packed;
}

static float *result(struct operands *o, int m)
{
    return guard_alloc(&o->guard, (size_t)((m - 1) * LDC + CMOE_CPU_PANEL) * sizeof(float), 4,
                       GUARD_OUTPUT);
}

/* Columns between the rows of c must keep their poison. */
static void check_gaps(const float *c, int m, int64_t used)
{
    uint32_t first, other;
    for (int r = 0; r + 1 < m; r++)
        for (int64_t j = used; j < LDC; j++) {
            memcpy(&first, &c[used], 4);
            memcpy(&other, &c[r * LDC + j], 4);
            assert_int_equal(first, other);
        }
}

/* --- p32 ------------------------------------------------------------------------------------ */

static void check_tile(struct operands *o, const struct cmoe_cpu_ops *ops, cmoe_dtype a)
{
    const float *const packed = pack(o, ops, a, 0, o->m, 0, o->k);
    float *const c = result(o, o->m);
    ops->gemm_p32(o->w, o->m, o->k, packed, o->panel, c, LDC, false, (struct cmoe_cpu_ahead){0});
    for (int r = 0; r < o->m; r++)
        for (int j = 0; j < CMOE_CPU_PANEL; j++)
            check_dot("gemm_p32", c[r * LDC + j], o->a_value[r], o->b_value[j], o->k);
    check_gaps(c, o->m, CMOE_CPU_PANEL);

    for (int r = 0; r < o->m; r++) { /* alone, and with K cut in the middle */
        const int64_t cut = o->k / 2 / CMOE_CPU_CHUNK * CMOE_CPU_CHUNK;
        const char *const rest = (const char *)o->panel + cut * CMOE_CPU_PANEL * size_of(o->w);
        float *const alone = result(o, 1);
        ops->gemm_p32(o->w, 1, cut, pack(o, ops, a, r, 1, 0, cut), o->panel, alone, LDC, false,
                      (struct cmoe_cpu_ahead){0});
        ops->gemm_p32(o->w, 1, o->k - cut, pack(o, ops, a, r, 1, cut, o->k - cut), rest, alone, LDC,
                      true, (struct cmoe_cpu_ahead){0});
        assert_same_bytes(alone, c + r * LDC, CMOE_CPU_PANEL * sizeof(float));
    }
    assert_true(guard_check(&o->guard));
}

static void check_dots(struct operands *o, const struct cmoe_cpu_ops *ops, cmoe_dtype a)
{
    for (int m = 1; m <= ops->dot_rows && m <= o->m; m++) {
        const float *const packed = pack(o, ops, a, 0, m, 0, o->k);
        for (int n = 1; n <= ops->dot_cols; n++) {
            float *const c = result(o, m);
            ops->gemm_rows(o->w, m, n, o->k, packed, o->b_rows, c, LDC);
            check_gaps(c, m, n);
            for (int r = 0; r < m; r++) {
                const float *const single = pack(o, ops, a, r, 1, 0, o->k);
                for (int j = 0; j < n; j++) {
                    float *const alone = result(o, 1);
                    check_dot("gemm_rows", c[r * LDC + j], o->a_value[r], o->b_value[j], o->k);
                    ops->gemm_rows(o->w, 1, 1, o->k, single, o->b_rows + j, alone, LDC);
                    assert_same_bytes(alone, c + r * LDC + j, sizeof(float));
                }
            }
        }
    }
    assert_true(guard_check(&o->guard));
}

static void for_operands(int w,
                         void (*check)(struct operands *, const struct cmoe_cpu_ops *, cmoe_dtype))
{
    struct operands *const o = calloc(1, sizeof *o);
    struct rng rng = {test_seed()};
    assert_non_null(o);
    guard_init(&o->guard);
    for (int level = 0; level < CMOE_ISA_LEVELS; level++) {
        const struct cmoe_cpu_ops *const ops = table(level);
        if (!ops) continue;
        for (int64_t k = 1; k <= MOST_K; k++) {
            const cmoe_dtype a = dtypes[k % 3];
            const int m = 1 + (int)rng_below(&rng, ops->tile_rows);
            make_operands(o, &rng, k <= 36 ? m : ops->tile_rows, k, dtypes[w], a);
            check(o, ops, a);
        }
        for (int m = 1; m <= ops->tile_rows; m++) {
            make_operands(o, &rng, m, 37, dtypes[w], CMOE_F32);
            check(o, ops, CMOE_F32);
        }
    }
    guard_end(&o->guard);
    free(o);
}

static void tiles_of_f32_panels(void **state)
{
    (void)state;
    for_operands(0, check_tile);
}

static void tiles_of_f16_panels(void **state)
{
    (void)state;
    for_operands(1, check_tile);
}

static void tiles_of_bf16_panels(void **state)
{
    (void)state;
    for_operands(2, check_tile);
}

static void dots_with_f32_rows(void **state)
{
    (void)state;
    for_operands(0, check_dots);
}

static void dots_with_f16_rows(void **state)
{
    (void)state;
    for_operands(1, check_dots);
}

static void dots_with_bf16_rows(void **state)
{
    (void)state;
    for_operands(2, check_dots);
}

/* --- rows ----------------------------------------------------------------------------------- */

static bool same_value(float a, float b)
{
    return isnan(a) ? isnan(b) : memcmp(&a, &b, sizeof a) == 0;
}

/* Every 16-bit code decodes as core/numeric.h says; conversion back is its rounding. */
static void check_codes(const struct cmoe_cpu_ops *ops, cmoe_dtype dtype)
{
    for (uint32_t code = 0; code < 0x10000; code++) {
        const uint16_t in = (uint16_t)code;
        uint16_t out;
        float v;
        ops->load_row(dtype, &in, 1, &v);
        assert_true(same_value(v, cmoe__decode(dtype, code)));
        ops->store_row(dtype, &out, 1, &v);
        assert_true(same_value(cmoe__decode(dtype, out), v));
    }
}

static void check_rounding(const struct cmoe_cpu_ops *ops, cmoe_dtype dtype, struct rng *rng)
{
    for (int i = 0; i < 20000; i++) {
        const uint32_t bits = (uint32_t)rng_u64(rng);
        uint16_t out;
        float v;
        memcpy(&v, &bits, sizeof v);
        ops->store_row(dtype, &out, 1, &v);
        if (!same_value(cmoe__decode(dtype, out),
                        cmoe__decode(dtype, cmoe__encode(dtype, v, CMOE_ROUND_NEAREST_EVEN))))
            fail_with("%a rounds to %04x as %s", (double)v, out, cmoe_dtype_name(dtype));
    }
}

static void check_tails(const struct cmoe_cpu_ops *ops, cmoe_dtype dtype, struct rng *rng)
{
    struct guard g;
    guard_init(&g);
    for (int64_t n = 1; n <= MOST_K; n++) {
        const size_t bytes = (size_t)n * sizeof(float);
        const void *const row = random_row(&g, rng, dtype, n);
        float *const v = guard_alloc(&g, bytes, 4, GUARD_OUTPUT);
        float *const sum = guard_alloc(&g, bytes, 4, GUARD_OUTPUT);
        float *const other = guard_alloc(&g, bytes, 4, GUARD_OUTPUT);
        const float *const rows[] = {v, other};
        void *const back = guard_alloc(&g, (size_t)(n * size_of(dtype)), 2, GUARD_OUTPUT);
        ops->load_row(dtype, row, n, v);
        ops->store_row(dtype, back, n, v);
        assert_same_bytes(back, row, (size_t)(n * size_of(dtype)));
        for (int64_t i = 0; i < n; i++)
            sum[i] = (float)i, other[i] = (float)(n - i);
        ops->axpy(n, 2, (const float[]){0.75f, 0.5f}, rows, sum);
        ops->scale(n, 3.0f, v);
        for (int64_t i = 0; i < n; i++) {
            const double value = (double)cmoe__load(dtype, row, i);
            assert_true((double)v[i] == (double)(float)(3 * value));
            const double own = (double)i + 0.5 * (double)(n - i), want = own + 0.75 * value;
            assert_true(fabs((double)sum[i] - want) <= 0x1p-22 * (fabs(value) + own));
        }
        assert_true(guard_check(&g));
        guard_reset(&g);
    }
    guard_end(&g);
}

static void rows_convert(void **state)
{
    struct rng rng = {test_seed()};
    (void)state;
    for (int level = 0; level < CMOE_ISA_LEVELS; level++) {
        const struct cmoe_cpu_ops *const ops = table(level);
        if (!ops) continue;
        for (int d = 0; d < 3; d++)
            check_tails(ops, dtypes[d], &rng);
        for (int d = 1; d < 3; d++) {
            check_codes(ops, dtypes[d]);
            check_rounding(ops, dtypes[d], &rng);
        }
    }
}

/* Panels of results, past the caches or not, with and without bias, to rows that begin at lines and to others;
 * nothing beside them. */
static void panels_are_stored(void **state)
{
    enum { M = 3, STRIDE = 2 * CMOE_CPU_PANEL, ALL = M * STRIDE + 16 };
    float c[M * CMOE_CPU_PANEL], bias[CMOE_CPU_PANEL];
    CMOE_ALIGNED(64) float out[ALL];
    (void)state;
    for (int i = 0; i < M * CMOE_CPU_PANEL; i++)
        c[i] = (float)(i + 1);
    for (int j = 0; j < CMOE_CPU_PANEL; j++)
        bias[j] = (float)(1000 * j);
    for (int at = 0; at < 8 * CMOE_ISA_LEVELS; at++) {
        const struct cmoe_cpu_ops *const ops = table(at / 8);
        const int shift = at % 2 ? 5 : 0;
        const bool biased = at % 8 >= 4;
        float *to[M];
        if (!ops) continue;
        memset(out, 0, sizeof out);
        for (int r = 0; r < M; r++)
            to[r] = out + shift + r * STRIDE;
        ops->store_panel(M, c, CMOE_CPU_PANEL, biased ? bias : NULL, at % 4 >= 2, to);
        ops->finish_far();
        for (int i = 0; i < ALL; i++) {
            const int r = (i - shift) / STRIDE, j = (i - shift) % STRIDE;
            const bool inside = i >= shift && r < M && j < CMOE_CPU_PANEL;
            const float more = inside && biased ? bias[j] : 0;
            assert_true(out[i] == (inside ? c[r * CMOE_CPU_PANEL + j] + more : 0));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiles_of_f32_panels),  cmocka_unit_test(tiles_of_f16_panels),
        cmocka_unit_test(tiles_of_bf16_panels), cmocka_unit_test(dots_with_f32_rows),
        cmocka_unit_test(dots_with_f16_rows),   cmocka_unit_test(dots_with_bf16_rows),
        cmocka_unit_test(rows_convert),         cmocka_unit_test(panels_are_stored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
