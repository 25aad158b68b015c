/* SPDX-License-Identifier: MIT
 * ctest: labels=kernels,portable
 * Products of bf16 pairs and int8 quads: the bodies of AVX512-BF16 and AMX with their instructions in
 * plain C, on any machine, and as compiled where the CPU has them. Sums of small integers are exact,
 * others lie within the bound of docs/numerics.md. All buffers end at an inaccessible page. */
#include "harness.h"

#include "backends/cpu/cpuid.h"
#include "backends/cpu/ops_quant.h"
#include "backends/cpu/ops_tile.h"
#include "core/float_bits.h"
#include "core/numeric.h"
#include "core/size.h"
#include <float.h>
#include <math.h>
#include <string.h>

enum { MOST_ROWS = 32, MOST_K = 300, COLS = CMOE_CPU_PANEL };

/* The same files, compiled with CMOE_EMULATE. */
extern const struct cmoe_cpu_tile_ops cmoe__cpu_tile_ops_amx_emulated;
extern const struct cmoe_cpu_tile_ops cmoe__cpu_tile_ops_avx512bf16_emulated;

static const int64_t depths[] = {1, 2, 5, 31, 32, 33, 63, 64, 65, 130, MOST_K};
enum { DEPTHS = sizeof depths / sizeof *depths };

typedef void (*check_tables)(const struct cmoe_cpu_tile_ops *ops, struct guard *g, struct rng *rng);

/* Emulated tables, and the CPU's own where the system lets it. */
static void for_tables(check_tables check)
{
    const struct cmoe_cpu_tile_ops *const emulated[] = {&cmoe__cpu_tile_ops_amx_emulated,
                                                        &cmoe__cpu_tile_ops_avx512bf16_emulated};
    struct rng rng = {test_seed()};
    struct guard g;
    char why[64];
    guard_init(&g);
    for (int i = 0; i < 2; i++)
        check(emulated[i], &g, &rng);
    for (int level = CMOE_ISA_LEVEL_AVX512BF16; level <= (int)cmoe__cpuid_isa(); level++)
        if (level < CMOE_ISA_LEVEL_AMX || cmoe__cpuid_allow_tiles(why, sizeof why))
            check(cmoe__cpu_tile_ops((enum cmoe_isa)level), &g, &rng);
    guard_end(&g);
}

/* Rows, a panel, packed rows and results of one call. */
struct call {
    int m;
    int64_t k;
    const void *rows[MOST_ROWS];
    const uint16_t *panel; /* [k/2][32][2] */
    void *a;
    float *c;
};

static float value(struct rng *rng, bool exact)
{
    return exact ? (float)rng_between(rng, -8, 8) : (float)rng_normal(rng);
}

static void make_call(const struct cmoe_cpu_tile_ops *ops, struct guard *g, struct rng *rng, int m,
                      int64_t k, bool exact, struct call *out)
{
    const int64_t pairs = cmoe__ceil_div(k, 2), padded = cmoe__round_up(m, ops->unit);
    const int64_t step = cmoe__round_up(2 * k, CMOE_CPU_STEP);
    uint16_t *const panel = guard_alloc(g, (size_t)(4 * pairs * COLS), 4, GUARD_INPUT);
    for (int64_t i = 0; i < 2 * pairs; i++)
        for (int j = 0; j < COLS; j++)
            cmoe__store(CMOE_BF16, panel, i / 2 * 2 * COLS + 2 * j + i % 2,
                        i < k ? value(rng, exact) : 0);
    *out = (struct call){.m = m, .k = k, .panel = panel};
    for (int r = 0; r < m; r++) {
        uint16_t *const row = guard_alloc(g, (size_t)(2 * k), 2, GUARD_INPUT);
        for (int64_t i = 0; i < k; i++)
            cmoe__store(CMOE_BF16, row, i, value(rng, exact));
        out->rows[r] = row;
    }
    out->a = guard_alloc(g, (size_t)(padded * step), 4, GUARD_OUTPUT);
    out->c = guard_alloc(g, (size_t)(padded * COLS) * sizeof(float), 4, GUARD_OUTPUT);
}

static double element(const struct call *t, int r, int j, double *magnitude)
{
    double sum = 0;
    *magnitude = 0;
    for (int64_t i = 0; i < t->k; i++) {
        const double product =
            (double)cmoe__load(CMOE_BF16, t->rows[r], i) *
            (double)cmoe__load(CMOE_BF16, t->panel, i / 2 * 2 * COLS + 2 * j + i % 2);
        sum += product;
        *magnitude += fabs(product);
    }
    return sum;
}

static void expect_products(const struct call *t, bool exact)
{
    for (int r = 0; r < t->m; r++)
        for (int j = 0; j < COLS; j++) {
            double magnitude;
            const double want = element(t, r, j, &magnitude), got = (double)t->c[r * COLS + j];
            const double bound = exact ? 0 : (double)(t->k + 8) * 0x1p-24 * magnitude;
            if (!(fabs(got - want) <= bound))
                fail_with("K=%ld, %d rows: (%d, %d) is %.9g, not %.9g +- %.3g", (long)t->k, t->m, r,
                          j, got, want, bound);
        }
}

static void check_products(const struct cmoe_cpu_tile_ops *ops, struct guard *g, struct rng *rng)
{
    for (int m = 1; m <= ops->rows; m++)
        for (int d = 0; d < DEPTHS; d++)
            for (int exact = 0; exact < 2; exact++) {
                struct call t;
                make_call(ops, g, rng, m, depths[d], exact, &t);
                ops->begin();
                ops->pack(t.rows, m, 2 * t.k, t.a);
                ops->dot_bf16(m, t.k, t.a, t.panel, t.c, COLS, false, (struct cmoe_cpu_ahead){0});
                ops->end();
                expect_products(&t, exact);
                assert_true(guard_check(g));
                guard_reset(g);
            }
}

static void products_lie_within_the_bound(void **state)
{
    (void)state;
    for_tables(check_products);
}

/* Rows from f32 are those that pack makes of the same values in bf16. */
static void check_values(const struct cmoe_cpu_tile_ops *ops, struct guard *g, struct rng *rng)
{
    for (int m = 1; m <= ops->rows; m += 5)
        for (int d = 0; d < DEPTHS; d++) {
            struct call t;
            make_call(ops, g, rng, m, depths[d], false, &t);
            const int64_t padded = cmoe__round_up(m, ops->unit);
            const int64_t bytes = padded * cmoe__round_up(2 * t.k, CMOE_CPU_STEP);
            const int64_t read = cmoe__round_up(t.k, CMOE_CPU_CHUNK);
            float *const v = guard_alloc(g, (size_t)read * sizeof *v, 4, GUARD_INPUT);
            char *const a = guard_alloc(g, (size_t)bytes, 4, GUARD_OUTPUT);
            ops->pack(t.rows, m, 2 * t.k, t.a);
            memset(a, 0, (size_t)bytes);
            for (int r = 0; r < m; r++) {
                for (int64_t i = 0; i < read; i++) /* what lies past k is not 0 */
                    v[i] = i < t.k ? cmoe__load(CMOE_BF16, t.rows[r], i) : 7;
                ops->pack_values(v, t.k, r, m, a);
            }
            assert_same_bytes(a, t.a, (size_t)bytes);
            assert_true(guard_check(g));
            guard_reset(g);
        }
}

static void values_are_packed_alike(void **state)
{
    (void)state;
    for_tables(check_values);
}

static void check_scale(const struct cmoe_cpu_tile_ops *ops, struct guard *g, struct rng *rng)
{
    enum { ROWS = 7, LD = COLS + 3 };
    float *const from = guard_alloc(g, sizeof(float) * ROWS * COLS, 4, GUARD_INPUT);
    float *const row = guard_alloc(g, sizeof(float) * ROWS, 4, GUARD_INPUT);
    float *const col = guard_alloc(g, sizeof(float) * COLS, 4, GUARD_INPUT);
    float *const c = guard_alloc(g, sizeof(float) * ((ROWS - 1) * LD + COLS), 4, GUARD_OUTPUT);
    for (int i = 0; i < ROWS * COLS; i++)
        from[i] = value(rng, true);
    for (int i = 0; i < COLS; i++)
        col[i] = value(rng, true);
    for (int r = 0; r < ROWS; r++)
        row[r] = value(rng, true);
    for (int times = 1; times <= 3; times++) {
        ops->scale(ROWS, from, COLS, row, col, c, LD, times > 1);
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < COLS; j++)
                assert_true(c[r * LD + j] == (float)times * from[r * COLS + j] * (row[r] * col[j]));
    }
    assert_true(guard_check(g));
    guard_reset(g);
}

static void sums_are_scaled(void **state)
{
    (void)state;
    for_tables(check_scale);
}

/* A row's bits depend neither on the rows beside it nor, for whole steps, on where K is cut. */
static void check_alone(const struct cmoe_cpu_tile_ops *ops, struct guard *g, struct rng *rng)
{
    struct call t;
    float together[MOST_ROWS][COLS];
    make_call(ops, g, rng, ops->rows, 128, false, &t);
    ops->begin();
    ops->pack(t.rows, t.m, 2 * t.k, t.a);
    ops->dot_bf16(t.m, t.k, t.a, t.panel, t.c, COLS, false, (struct cmoe_cpu_ahead){0});
    memcpy(together, t.c, (size_t)t.m * sizeof *together);
    for (int r = 0; r < t.m; r++) {
        for (int64_t first = 0; first < t.k; first += 64) {
            const void *const row = (const uint16_t *)t.rows[r] + first;
            ops->pack(&row, 1, 2 * 64, t.a);
            ops->dot_bf16(1, 64, t.a, t.panel + first * COLS, t.c, COLS, first > 0,
                          (struct cmoe_cpu_ahead){0});
        }
        assert_same_bytes(t.c, together[r], sizeof *together);
    }
    ops->end();
    assert_true(guard_check(g));
    guard_reset(g);
}

static void rows_are_alone(void **state)
{
    (void)state;
    for_tables(check_alone);
}

/* Subnormals may be lost; what is normal beside them is not. */
static void check_subnormals(const struct cmoe_cpu_tile_ops *ops, struct guard *g, struct rng *rng)
{
    struct call t;
    make_call(ops, g, rng, 1, 2, true, &t);
    uint16_t row[2], panel[2 * COLS];
    cmoe__store(CMOE_BF16, row, 0, 0x1p-130f);
    cmoe__store(CMOE_BF16, row, 1, 3.0f);
    for (int j = 0; j < 2 * COLS; j++)
        cmoe__store(CMOE_BF16, panel, j, 0.5f);
    t.rows[0] = row;
    ops->begin();
    ops->pack(t.rows, 1, sizeof row, t.a);
    ops->dot_bf16(1, 2, t.a, panel, t.c, COLS, false, (struct cmoe_cpu_ahead){0});
    ops->end();
    for (int j = 0; j < COLS; j++)
        assert_true(t.c[j] == 1.5f);
    guard_reset(g);
}

static void subnormals_are_small(void **state)
{
    (void)state;
    for_tables(check_subnormals);
}

/* --- int8 ----------------------------------------------------------------------------------- */

static void check_quads_of(const struct cmoe_cpu_tile_ops *ops, struct guard *g, struct rng *rng,
                           int m, int64_t k, bool extreme)
{
    const int64_t quads = cmoe__ceil_div(k, 4), padded = cmoe__round_up(m, ops->unit);
    const struct cmoe_cpu_panel l = {
        .k = k, .head = 4 * COLS, .scales = 4 * COLS, .bytes = (8 + 4 * quads) * COLS};
    char *const panel = guard_alloc(g, (size_t)l.bytes, 4, GUARD_INPUT);
    int8_t *const codes = (int8_t *)panel + l.head + l.scales;
    const void *rows[MOST_ROWS];
    float row_scale[MOST_ROWS];
    memset(panel, 0, (size_t)l.bytes);
    for (int j = 0; j < COLS; j++) {
        const float scale = 0.25f + (float)j;
        memcpy(panel + l.head + 4 * j, &scale, sizeof scale);
        for (int64_t i = 0; i < k; i++)
            codes[i / 4 * 4 * COLS + 4 * j + i % 4] =
                (int8_t)(extreme ? (j % 2 ? 127 : -128) : rng_between(rng, -128, 127));
    }
    for (int r = 0; r < m; r++) {
        int8_t *const row = guard_alloc(g, (size_t)k, 1, GUARD_INPUT);
        for (int64_t i = 0; i < k; i++)
            row[i] = (int8_t)(extreme ? -128 : rng_between(rng, -128, 127));
        rows[r] = row;
        row_scale[r] = 1.0f / (float)(r + 1);
    }
    void *const a =
        guard_alloc(g, (size_t)(padded * cmoe__round_up(k, CMOE_CPU_STEP)), 4, GUARD_OUTPUT);
    float *const c = guard_alloc(g, (size_t)m * COLS * sizeof *c, 4, GUARD_OUTPUT);
    ops->begin();
    ops->pack(rows, m, k, a);
    ops->dot_i8(&l, panel, m, a, row_scale, c, COLS);
    ops->end();
    for (int r = 0; r < m; r++)
        for (int j = 0; j < COLS; j++) {
            const int8_t *const x = rows[r];
            int64_t sum = 0;
            for (int64_t i = 0; i < k; i++)
                sum += x[i] * codes[i / 4 * 4 * COLS + 4 * j + i % 4];
            const float want = (float)sum * ((0.25f + (float)j) * row_scale[r]);
            if (c[r * COLS + j] != want)
                fail_with("K=%ld, %d rows: dot (%d, %d) is %.9g, not %.9g", (long)k, m, r, j,
                          (double)c[r * COLS + j], (double)want);
        }
    assert_true(guard_check(g));
    guard_reset(g);
}

static void check_quads(const struct cmoe_cpu_tile_ops *ops, struct guard *g, struct rng *rng)
{
    for (int m = 1; m <= ops->rows && ops->dot_i8; m++)
        for (int d = 0; d < DEPTHS; d++)
            check_quads_of(ops, g, rng, m, depths[d], false);
    if (ops->dot_i8) check_quads_of(ops, g, rng, 3, 5000, true);
}

static void quads_are_exact(void **state)
{
    (void)state;
    for_tables(check_quads);
}

/* --- panels --------------------------------------------------------------------------------- */

static void check_pairs(const struct cmoe_cpu_tile_ops *ops, struct guard *g, struct rng *rng)
{
    for (int64_t k = 1; k <= 5; k++) {
        float *const w = guard_alloc(g, (size_t)(k * COLS) * sizeof *w, 4, GUARD_INPUT);
        const size_t bytes = (size_t)(cmoe__ceil_div(k, 2) * COLS) * 4;
        uint16_t *const out = guard_alloc(g, bytes, 4, GUARD_OUTPUT);
        for (int64_t i = 0; i < k * COLS; i++) /* ties and NaN among them */
            w[i] = i % 7 ? cmoe__f32_from_bits((uint32_t)rng_below(rng, 1 << 16) << 16 | 0x8000)
                         : (float)rng_normal(rng);
        ops->pair(k, w, out);
        for (int64_t i = 0; i < cmoe__round_up(k, 2); i++)
            for (int j = 0; j < COLS; j++) {
                uint16_t want = 0;
                if (i < k) cmoe__store(CMOE_BF16, &want, 0, w[i * COLS + j]);
                assert_int_equal(out[i / 2 * 2 * COLS + 2 * j + i % 2], want);
            }
        uint16_t *const joined = guard_alloc(g, bytes, 4, GUARD_OUTPUT);
        for (int64_t i = 0; i < k * COLS; i++)
            w[i] =
                cmoe__load(CMOE_BF16, out, i / COLS / 2 * 2 * COLS + i % COLS * 2 + i / COLS % 2);
        ops->join(k, w, joined);
        assert_same_bytes(joined, out, bytes);
        assert_true(guard_check(g));
        guard_reset(g);
    }
}

static void panels_become_pairs(void **state)
{
    (void)state;
    for_tables(check_pairs);
}

/* --- codes ---------------------------------------------------------------------------------- */

/* Formats whose panels a table may decode: codes alone, or with the scales that go into them. */
static const struct {
    cmoe_format f;
    bool codes;
} coded[] = {
    {{.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_CHANNEL}, true},
    {{.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_BLOCK}, true},
    {{.dtype = CMOE_E5M2, .scaling = CMOE_SCALE_CHANNEL}, true},
    {{.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX}, false},
    {{.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_NV}, false},
    {{.dtype = CMOE_I4, .scaling = CMOE_SCALE_GROUP, .group = 32, .scale_dtype = CMOE_BF16}, false},
    {{.dtype = CMOE_U4, .scaling = CMOE_SCALE_GROUP, .group = 64, .zero = true}, false},
    {{.dtype = CMOE_I4, .scaling = CMOE_SCALE_CHANNEL}, true},
};
enum { CODED = sizeof coded / sizeof *coded };

/* Any codes and plausible scales. ends: some powers of two at the ends of their range. */
static void *make_panel(struct guard *g, struct rng *rng, const struct cmoe_cpu_panel *l, bool ends)
{
    uint8_t *const panel = guard_alloc(g, (size_t)l->bytes, 4, GUARD_INPUT);
    for (int64_t i = 0; i < l->bytes; i++)
        panel[i] = (uint8_t)rng_below(rng, 256);
    for (int64_t at = l->head; at < l->bytes; at += l->group)
        for (int j = 0; j < COLS; j++) {
            const uint8_t any = (uint8_t)rng_between(rng, 2, 247);
            if (l->scale == CMOE_E8M0)
                panel[at + j] = ends && j % 9 == 0 ? (uint8_t)(any & 1 ? 0 : 254) : any;
            else if (l->scale == CMOE_E4M3)
                panel[at + j] &= 0x7e;
            else
                cmoe__store(l->scale == CMOE_NONE ? CMOE_F32 : l->scale, panel + at, j,
                            0.5f + (float)rng_below(rng, 1000) / 700);
        }
    return panel;
}

static bool same_weight(uint16_t got, uint16_t want)
{
    const float a = cmoe__load(CMOE_BF16, &got, 0), b = cmoe__load(CMOE_BF16, &want, 0);
    return got == want || (a == 0 && b == 0) || (isnan(a) && isnan(b));
}

/* k's [first, first + k) as the generic table decodes them, each rounded. */
static void expect_codes(const struct cmoe_cpu_panel *l, const void *panel, int64_t first,
                         int64_t k, const uint16_t *got)
{
    float want[MOST_K * COLS];
    cmoe__cpu_quant_ops(CMOE_ISA_LEVEL_GENERIC)->decode(l, panel, first, k, want);
    for (int64_t i = 0; i < k; i++)
        for (int j = 0; j < COLS; j++) {
            uint16_t rounded;
            cmoe__store(CMOE_BF16, &rounded, 0, want[i * COLS + j]);
            const uint16_t code = got[i / 2 * 2 * COLS + 2 * j + i % 2];
            if (!same_weight(code, rounded))
                fail_with("code %d, K=%ld: weight (%ld, %d) is %04x, not %04x", l->code, (long)l->k,
                          (long)(first + i), j, code, rounded);
        }
}

/* c = a . panel (+ c when more); apart: by pairs of k's in turn, added at the end. */
static void expect_sums(const struct cmoe_cpu_tile_ops *ops, const struct call *t, bool apart,
                        bool more, float *c)
{
    enum { WORDS = (MOST_K + 1) / 2 * COLS };
    uint32_t turn[2][WORDS] = {{0}};
    float second[MOST_ROWS * COLS];
    const struct cmoe_cpu_ahead none = {0};
    const int64_t words = (t->k + 1) / 2 * COLS;
    if (!apart) {
        ops->dot_bf16(t->m, t->k, t->a, t->panel, c, COLS, more, none);
        return;
    }
    for (int64_t i = 0; i < words; i++)
        memcpy(&turn[i / COLS % 2][i], t->panel + 2 * i, sizeof turn[0][0]);
    ops->dot_bf16(t->m, t->k, t->a, turn[0], c, COLS, more, none);
    ops->dot_bf16(t->m, t->k, t->a, turn[1], second, COLS, false, none);
    for (int i = 0; i < t->m * COLS; i++)
        c[i] += second[i];
}

/* Few rows by codes have the bits of dot_bf16 by what decode gives. */
static void expect_stream(const struct cmoe_cpu_tile_ops *ops, const struct cmoe_cpu_panel *l,
                          const void *panel, int64_t first, const struct call *t)
{
    float want[MOST_ROWS * COLS];
    for (int more = 0; more < 2; more++) {
        for (int i = 0; i < t->m * COLS; i++)
            want[i] = t->c[i] = (float)i;
        expect_sums(ops, t, t->m <= ops->few_apart, more, want);
        assert_true(ops->stream(l, panel, first, t->k, t->m, t->a, t->c, COLS, more));
        for (int i = 0; i < t->m * COLS; i++)
            assert_true(t->c[i] == want[i] || (isnan(t->c[i]) && isnan(want[i])));
    }
}

static void check_coded(const struct cmoe_cpu_tile_ops *ops, struct guard *g, struct rng *rng,
                        int format, int64_t depth, int64_t first, bool ends)
{
    const cmoe_problem p = {.hidden = (int32_t)depth, .inter = 32, .w = coded[format].f};
    const int64_t k = depth - first;
    const int m = 1 + (int)rng_below(rng, (uint64_t)cmoe__max64(1, ops->few));
    struct cmoe_cpu_panel l;
    struct call t;
    cmoe__cpu_panel_layout(&p, 1, &l);
    const void *const panel = make_panel(g, rng, &l, ends);
    l.global = false;
    if (coded[format].codes) l.scale = CMOE_NONE;
    uint16_t *const pairs =
        guard_alloc(g, (size_t)(cmoe__round_up(k, 2) * COLS) * 2, 4, GUARD_OUTPUT);
    const bool done = ops->decode(&l, panel, first, k, pairs);
    assert_true(done || ends);
    if (done) expect_codes(&l, panel, first, k, pairs);
    make_call(ops, g, rng, m, k, true, &t);
    t.panel = pairs;
    ops->pack(t.rows, m, 2 * k, t.a);
    if (done && ops->stream) expect_stream(ops, &l, panel, first, &t);
    assert_true(guard_check(g));
    guard_reset(g);
}

static void check_codes(const struct cmoe_cpu_tile_ops *ops, struct guard *g, struct rng *rng)
{
    for (int format = 0; format < CODED && ops->decode; format++)
        for (int d = 0; d < DEPTHS; d++)
            for (int64_t first = 0; first < depths[d]; first += 32)
                for (int ends = 0; ends < 2; ends++)
                    check_coded(ops, g, rng, format, depths[d], first, ends);
}

static void codes_become_pairs(void **state)
{
    (void)state;
    for_tables(check_codes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_lie_within_the_bound), cmocka_unit_test(rows_are_alone),
        cmocka_unit_test(subnormals_are_small),          cmocka_unit_test(quads_are_exact),
        cmocka_unit_test(panels_become_pairs),           cmocka_unit_test(codes_become_pairs),
        cmocka_unit_test(values_are_packed_alike),       cmocka_unit_test(sums_are_scaled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
