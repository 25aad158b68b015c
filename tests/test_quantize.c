/* SPDX-License-Identifier: MIT
 * Quantising activation rows: scales at every boundary, every format's rounding, broken rows, and
 * the same bits in every floating-point environment. */
/* ctest: labels=portable */
#include "core/numeric.h"
#include "harness.h"
#include "harness_env.h"

#include <cmoe/convert.h>
#include <cmoe/observe.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_COLS = 300, MAX_ROWS = 4 };

static const cmoe_format formats[] = {
    {.dtype = CMOE_BF16, .scaling = CMOE_SCALE_NONE},
    {.dtype = CMOE_F16, .scaling = CMOE_SCALE_NONE},
    {.dtype = CMOE_F32, .scaling = CMOE_SCALE_NONE},
    {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_TENSOR},
    {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_TENSOR, .fixed = 1},
    {.dtype = CMOE_I8, .scaling = CMOE_SCALE_TENSOR},
    {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_TOKEN},
    {.dtype = CMOE_E4M3FNUZ, .scaling = CMOE_SCALE_TOKEN},
    {.dtype = CMOE_E5M2, .scaling = CMOE_SCALE_TOKEN},
    {.dtype = CMOE_I8, .scaling = CMOE_SCALE_TOKEN},
    {.dtype = CMOE_I8, .scaling = CMOE_SCALE_TOKEN, .rounding = CMOE_ROUND_TRUNCATE},
    {.dtype = CMOE_I8, .scaling = CMOE_SCALE_SMOOTH, .rounding = CMOE_ROUND_HALF_AWAY},
    {.dtype = CMOE_I4, .scaling = CMOE_SCALE_TOKEN},
    {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_GROUP, .group = 128},
    {.dtype = CMOE_I8, .scaling = CMOE_SCALE_GROUP, .group = 16},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_GROUP, .group = 32},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX, .rounding = CMOE_ROUND_HALF_AWAY},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX, .mx_rounding = CMOE_MX_DOWN},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX, .mx_rounding = CMOE_MX_EVEN},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX, .mx_rounding = CMOE_MX_CEIL},
    {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_MX},
    {.dtype = CMOE_E4M3FNUZ, .scaling = CMOE_SCALE_MX},
    {.dtype = CMOE_E5M2, .scaling = CMOE_SCALE_MX},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_NV},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_NV, .fixed = 1},
};
enum { FORMATS = sizeof formats / sizeof formats[0] };

/* Everything one call writes; bytes it does not write stay 0xaa. */
struct result {
    uint8_t codes[MAX_ROWS * MAX_COLS * 4];
    uint8_t scale[MAX_ROWS * MAX_COLS];
    float global[MAX_ROWS];
};

static void quantize(cmoe_format f, const float *v, int64_t rows, int64_t cols, const float *fixed,
                     struct result *out)
{
    memset(out, 0xaa, sizeof *out);
    expect_ok(cmoe_quantize_rows(f, v, rows, cols, f.fixed ? fixed : NULL, out->codes, out->scale,
                                 f.scaling == CMOE_SCALE_NV && !f.fixed ? out->global : NULL));
}

static void dequantize(cmoe_format f, const struct result *r, int64_t rows, int64_t cols,
                       const float *fixed, float *out)
{
    expect_ok(
        cmoe_dequantize_rows(f, r->codes, r->scale, f.fixed ? fixed : r->global, rows, cols, out));
}

/* --- power-of-two scales -----------------------------------------------------------------------*/

static const struct mx {
    cmoe_dtype dtype;
    int emax, mantissa;
    double largest;
} mxs[] = {{CMOE_E2M1, 2, 1, 6},
           {CMOE_E4M3, 8, 3, 448},
           {CMOE_E4M3FNUZ, 7, 3, 240},
           {CMOE_E5M2, 15, 2, 57344}};

/* By search upwards; doubles hold every product here exactly. */
static int oracle_e8m0(const struct mx *mx, double a, cmoe_mx_rounding rounding)
{
    if (a == 0) return 0;
    int x = ilogb(a) - 20; /* below every answer */
    if (rounding == CMOE_MX_UP) {
        while (ldexp(mx->largest, x) < a)
            x++;
    } else if (rounding == CMOE_MX_CEIL) {
        while (ldexp(1, x + mx->emax) < a)
            x++;
    } else {
        if (rounding == CMOE_MX_EVEN) { /* to the element's mantissa, ties up */
            const double unit = ldexp(1, ilogb(a) - mx->mantissa);
            a = floor(a / unit + 0.5) * unit;
        }
        while (ldexp(1, x + 1 + mx->emax) <= a)
            x++;
    }
    return x + 127 < 0 ? 0 : x + 127 > 254 ? 254 : x + 127;
}

static void check_e8m0(float amax)
{
    static const char *const names[] = {"up", "down", "even", "ceil"};
    struct float_env env;
    for (size_t i = 0; i < sizeof mxs / sizeof mxs[0]; i++)
        for (int rounding = 0; rounding < CMOE_MX_ROUNDING_COUNT; rounding++) {
            const int want = oracle_e8m0(&mxs[i], (double)amax, (cmoe_mx_rounding)rounding);
            for (int e = 0; float_env_at(e, &env); e++) {
                float_env_enter(&env);
                const int got = cmoe__scale_e8m0(mxs[i].dtype, amax, (cmoe_mx_rounding)rounding);
                float_env_leave();
                if (got != want)
                    fail_with("%s %s, %s: the scale of %a is %d, expected %d",
                              cmoe_dtype_name(mxs[i].dtype), names[rounding], env.name,
                              (double)amax, got, want);
            }
        }
}

static void test_e8m0_boundaries(void **state)
{
    (void)state;
    /* powers of two, largest finite values, and the roundings of 1, 2 and 3 mantissa bits */
    static const double fractions[] = {1, 1.5, 1.75, 1.875, 1.9375, 1.25};
    for (int e = -149; e <= 127; e++)
        for (size_t i = 0; i < sizeof fractions / sizeof fractions[0]; i++) {
            const float v = (float)ldexp(fractions[i], e);
            if (!isfinite(v)) continue;
            check_e8m0(v);
            if (v < FLT_MAX) check_e8m0(nextafterf(v, INFINITY));
            check_e8m0(nextafterf(v, 0));
        }
    struct rng rng = {test_seed()};
    for (int i = 0; i < 20000; i++) {
        const uint32_t bits = (uint32_t)rng_below(&rng, 0x7f800000);
        float v;
        memcpy(&v, &bits, sizeof v);
        check_e8m0(v);
    }
    assert_int_equal(cmoe__scale_e8m0(CMOE_E2M1, INFINITY, CMOE_MX_UP), 255);
    assert_int_equal(cmoe__scale_e8m0(CMOE_E2M1, NAN, CMOE_MX_DOWN), 255);
    assert_int_equal(cmoe__scale_e8m0(CMOE_E4M3, 0, CMOE_MX_UP), 0);
}

/* Worked by hand. */
static void test_e8m0_examples(void **state)
{
    (void)state;
    static const struct {
        float amax;
        uint8_t up, down, even, ceil;
    } rows[] = {{6, 127, 127, 127, 128},    {7, 128, 127, 128, 128}, {6.9F, 128, 127, 127, 128},
                {4, 127, 127, 127, 127},    {3, 126, 126, 126, 127}, {8, 128, 128, 128, 128},
                {0.75F, 124, 124, 124, 125}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_int_equal(cmoe__scale_e8m0(CMOE_E2M1, rows[i].amax, CMOE_MX_UP), rows[i].up);
        assert_int_equal(cmoe__scale_e8m0(CMOE_E2M1, rows[i].amax, CMOE_MX_DOWN), rows[i].down);
        assert_int_equal(cmoe__scale_e8m0(CMOE_E2M1, rows[i].amax, CMOE_MX_EVEN), rows[i].even);
        assert_int_equal(cmoe__scale_e8m0(CMOE_E2M1, rows[i].amax, CMOE_MX_CEIL), rows[i].ceil);
    }
}

/* --- f32 scales --------------------------------------------------------------------------------*/

static void test_f32_scales(void **state)
{
    (void)state;
    static const cmoe_dtype dtypes[] = {CMOE_E4M3, CMOE_E4M3FNUZ, CMOE_E5M2, CMOE_I8, CMOE_E2M1};
    static const float largest[] = {448, 240, 57344, 127, 6};
    struct rng rng = {test_seed()};
    for (int d = 0; d < 5; d++) {
        for (int i = 0; i < 4000; i++) {
            const uint32_t bits = (uint32_t)rng_below(&rng, 0x7f800000);
            float amax;
            memcpy(&amax, &bits, sizeof amax);
            if (i == 0) amax = 1e-44F;
            if (i == 1) amax = 1e-38F;
            if (i == 2) amax = largest[d] * FLT_MIN; /* the smallest that divides */
            if (i == 3) amax = nextafterf(largest[d] * FLT_MIN, 0);
            if (i == 4) amax = 0;
            const float quotient = amax / largest[d];
            const float want = quotient < FLT_MIN ? 1 : quotient;
            assert_true(cmoe__scale_f32(dtypes[d], amax) == want);
        }
        assert_true(isnan(cmoe__scale_f32(dtypes[d], INFINITY)));
        assert_true(isnan(cmoe__scale_f32(dtypes[d], NAN)));
    }
    const cmoe_format fp8 = {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_TENSOR};
    const cmoe_format nv = {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_NV};
    assert_true(cmoe_static_scale(fp8, 896) == 2 && cmoe_static_scale(fp8, 0) == 1);
    assert_true(cmoe_static_scale(nv, 2688) == 1 && cmoe_static_scale(nv, 0) == 1);
}

/* --- rows --------------------------------------------------------------------------------------*/

/* Distance of neighbouring values of a type around |q|. */
static double grid_step(cmoe_dtype dtype, double q)
{
    int mantissa = 23, least = -126;
    if (dtype == CMOE_I8 || dtype == CMOE_I4) return 1;
    if (dtype == CMOE_F16) mantissa = 10, least = -14;
    if (dtype == CMOE_BF16) mantissa = 7;
    if (dtype == CMOE_E4M3) mantissa = 3, least = -6;
    if (dtype == CMOE_E4M3FNUZ) mantissa = 3, least = -7;
    if (dtype == CMOE_E5M2) mantissa = 2, least = -14;
    if (dtype == CMOE_E2M1) mantissa = 1, least = 0;
    const int exponent = q == 0 ? least : ilogb(q);
    return ldexp(1, (exponent < least ? least : exponent) - mantissa);
}

/* The scale that column i of row r ended up with. */
static double scale_of(cmoe_format f, const struct result *r, int64_t row, int64_t i, int64_t cols,
                       float fixed)
{
    const int64_t blocks = (cols + 31) / 32, small = (cols + 15) / 16;
    const float *const f32 = (const float *)(const void *)r->scale;
    switch ((cmoe_scaling)f.scaling) {
    case CMOE_SCALE_TENSOR:
        return (double)f32[0];
    case CMOE_SCALE_TOKEN:
    case CMOE_SCALE_SMOOTH:
        return (double)f32[row];
    case CMOE_SCALE_GROUP:
        return (double)f32[row * ((cols + f.group - 1) / f.group) + i / f.group];
    case CMOE_SCALE_MX:
        return ldexp(1, r->scale[row * blocks + i / 32] - 127);
    case CMOE_SCALE_NV:
        return (double)cmoe_decode(CMOE_E4M3, r->scale[row * small + i / 16]) *
               (double)(f.fixed ? fixed : r->global[row]);
    case CMOE_SCALE_NONE:
    case CMOE_SCALE_CHANNEL:
    case CMOE_SCALE_BLOCK:
    case CMOE_SCALING_COUNT:
        break;
    }
    return 1;
}

/* |decoded - v| is at most half a step of the grid, a step when truncating, plus what v / s itself
 * was rounded by; beyond the largest value (DOWN, EVEN, NV's rounded scale) it saturates. */
static void check_row(cmoe_format f, const struct result *r, const float *v, const float *decoded,
                      int64_t row, int64_t cols, float fixed)
{
    for (int64_t i = 0; i < cols; i++) {
        const double s = scale_of(f, r, row, i, cols, fixed), x = (double)v[i];
        const double largest = (double)cmoe__dtype_max((cmoe_dtype)f.dtype);
        const double q = s == 0 ? 0 : fabs(x / s);
        const double got = (double)decoded[i];
        if (f.dtype == CMOE_F16 && q >= 65520 && isinf(got) && (got > 0) == (x > 0)) continue;
        double bound = grid_step((cmoe_dtype)f.dtype, fmin(q, largest)) / 2 * s;
        if (f.rounding == CMOE_ROUND_TRUNCATE) bound *= 2;
        bound = bound * (1 + 1e-6) + fabs(x) * 0x1p-22 + 0x1p-149;
        if (q > largest) bound += (q - largest) * s;
        if (f.rounding == CMOE_ROUND_TRUNCATE && fabs(got) > fabs(x) * (1 + 0x1p-22))
            fail_with("column %d: %a was truncated to %a", (int)i, x, got);
        if (s == 0 ? got != 0 : !(fabs(got - x) <= bound))
            fail_with("%s scaling %d, column %d of %d: %a became %a, scale %a, bound %a",
                      cmoe_dtype_name((cmoe_dtype)f.dtype), f.scaling, (int)i, (int)cols, x, got, s,
                      bound);
    }
}

static void fill(struct rng *rng, float *v, int64_t n)
{
    const int base = (int)rng_between(rng, -20, 20);
    for (int64_t i = 0; i < n; i++) {
        v[i] = (float)ldexp(rng_normal(rng), base + (int)rng_between(rng, -3, 3));
        if (rng_chance(rng, 5)) v[i] = 0;
        if (rng_chance(rng, 2)) v[i] = (float)ldexp(rng_normal(rng), -140);
    }
}

static void test_rows(void **state)
{
    (void)state;
    static const int widths[] = {1, 2, 15, 16, 17, 31, 32, 33, 127, 128, 129, 255, 257, 300};
    static struct result want, got;
    static float v[MAX_ROWS * MAX_COLS], decoded[MAX_ROWS * MAX_COLS];
    struct rng rng = {test_seed()};
    struct float_env env;
    for (int k = 0; k < FORMATS; k++)
        for (size_t w = 0; w < sizeof widths / sizeof widths[0]; w++) {
            const int64_t cols = widths[w], rows = 1 + (int64_t)w % MAX_ROWS;
            fill(&rng, v, rows * cols);
            const float fixed = formats[k].scaling == CMOE_SCALE_NV
                                    ? cmoe__amax(v, rows * cols) / 2688
                                    : cmoe__amax(v, rows * cols) / 448;
            quantize(formats[k], v, rows, cols, &fixed, &want);
            dequantize(formats[k], &want, rows, cols, &fixed, decoded);
            for (int64_t r = 0; r < rows; r++)
                check_row(formats[k], &want, v + r * cols, decoded + r * cols, r, cols, fixed);
            for (int e = 1; float_env_at(e, &env); e++) {
                static float again[MAX_ROWS * MAX_COLS];
                float_env_enter(&env);
                quantize(formats[k], v, rows, cols, &fixed, &got);
                dequantize(formats[k], &want, rows, cols, &fixed, again);
                float_env_leave();
                assert_same_bytes(&got, &want, sizeof got);
                assert_same_bytes(again, decoded, (size_t)(rows * cols) * sizeof again[0]);
            }
        }
}

/* The codes themselves, with the machine's division and the encoder that test_numeric covers. */
static void test_codes_of_f32_scales(void **state)
{
    (void)state;
    static struct result r;
    static float v[MAX_COLS];
    struct rng rng = {test_seed()};
    for (int k = 0; k < FORMATS; k++) {
        const cmoe_format f = formats[k];
        if (f.scaling != CMOE_SCALE_TOKEN && f.scaling != CMOE_SCALE_SMOOTH) continue;
        for (int round = 0; round < 50; round++) {
            fill(&rng, v, MAX_COLS);
            quantize(f, v, 1, MAX_COLS, NULL, &r);
            const float s = cmoe__amax(v, MAX_COLS) / cmoe__dtype_max((cmoe_dtype)f.dtype);
            for (int i = 0; i < MAX_COLS; i++)
                assert_int_equal(
                    cmoe__load_code((cmoe_dtype)f.dtype, r.codes, i),
                    cmoe__encode((cmoe_dtype)f.dtype, v[i] / s, (cmoe_rounding)f.rounding));
        }
    }
}

static bool all_nan(const float *v, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (!isnan(v[i])) return false;
    return true;
}

/* A NaN or infinity breaks its scale's scope and nothing else. */
static void test_broken_rows(void **state)
{
    (void)state;
    enum { COLS = 200, BAD = 70 };
    static struct result clean, broken;
    static float v[3 * COLS], want[3 * COLS], got[3 * COLS];
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    struct rng rng = {test_seed()};
    const float fixed = 0.5F;
    for (int k = 0; k < FORMATS; k++)
        for (int b = 0; b < 3; b++) {
            const cmoe_format f = formats[k];
            if (f.scaling == CMOE_SCALE_NONE || f.scaling == CMOE_SCALE_TENSOR) continue;
            fill(&rng, v, 3 * COLS);
            quantize(f, v, 3, COLS, &fixed, &clean);
            dequantize(f, &clean, 3, COLS, &fixed, want);
            v[COLS + BAD] = bad[b];
            quantize(f, v, 3, COLS, &fixed, &broken);
            dequantize(f, &broken, 3, COLS, &fixed, got);
            int64_t span = COLS;
            if (f.scaling == CMOE_SCALE_GROUP) span = f.group;
            if (f.scaling == CMOE_SCALE_MX) span = 32;
            if (f.scaling == CMOE_SCALE_NV && f.fixed) span = 16;
            const int64_t first = COLS + BAD / span * span;
            const int64_t end = first + span < 2 * COLS ? first + span : 2 * COLS;
            assert_same_bytes(got, want, (size_t)first * sizeof *got);
            assert_true(all_nan(got + first, end - first));
            assert_same_bytes(got + end, want + end, (size_t)(3 * COLS - end) * sizeof *got);
        }
}

static void test_broken_tensors(void **state)
{
    (void)state;
    static struct result r;
    float v[40] = {1, 2, 3}, got[40];
    v[17] = NAN;
    const cmoe_format dynamic = {.dtype = CMOE_I8, .scaling = CMOE_SCALE_TENSOR};
    quantize(dynamic, v, 2, 20, NULL, &r);
    dequantize(dynamic, &r, 2, 20, NULL, got);
    assert_true(all_nan(got, 40));
    const cmoe_format given = {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_TENSOR, .fixed = 1};
    const float fixed = 1;
    v[18] = -INFINITY;
    quantize(given, v, 2, 20, &fixed, &r);
    dequantize(given, &r, 2, 20, NULL, got);
    assert_true(got[0] == 1 && got[2] == 3 && isnan(got[17]) && got[18] == -448);
}

/* Codes that stand for 0 and scales that divide nothing by 0. */
static void test_zero_and_tiny_rows(void **state)
{
    (void)state;
    enum { COLS = 40 };
    static struct result r;
    static const float magnitudes[] = {0, 1e-44F, 1e-38F, 0x1p-126F, 1e-23F};
    float v[COLS], got[COLS];
    const float fixed = 1;
    for (int k = 0; k < FORMATS; k++)
        for (int m = 0; m < 5; m++) {
            for (int i = 0; i < COLS; i++)
                v[i] = i % 3 == 1 ? -magnitudes[m] : i % 3 ? 0 : magnitudes[m];
            quantize(formats[k], v, 1, COLS, &fixed, &r);
            dequantize(formats[k], &r, 1, COLS, &fixed, got);
            check_row(formats[k], &r, v, got, 0, COLS, fixed);
            for (int i = 0; i < COLS; i++)
                if (v[i] == 0) assert_true(got[i] == 0);
        }
    memset(v, 0, sizeof v);
    quantize(formats[6], v, 1, COLS, NULL, &r);
    assert_true(((const float *)(const void *)r.scale)[0] == 1 && r.codes[0] == 0);
    const cmoe_format mx = {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX};
    quantize(mx, v, 1, COLS, NULL, &r);
    assert_true(r.scale[0] == 0 && r.scale[1] == 0 && r.codes[0] == 0);
}

/* --- worked examples ---------------------------------------------------------------------------*/

static void test_two_level_example(void **state)
{
    (void)state;
    static struct result r;
    const cmoe_format nv = {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_NV};
    /* the row's largest is 2688, so g = 1; block 0 has b = 448, block 1 b = 1, block 2 b = 0.25 */
    float v[36] = {2688, -1344, 224, 112}, got[36];
    for (int i = 0; i < 16; i++)
        v[16 + i] = cmoe_decode(CMOE_E2M1, (uint32_t)i);
    v[32] = 1.5F;
    v[33] = -0.1F;
    quantize(nv, v, 1, 36, NULL, &r);
    assert_true(r.global[0] == 1);
    assert_int_equal(r.scale[0], 0x7e);
    assert_int_equal(r.scale[1], 0x38);
    assert_int_equal(r.scale[2], 0x28);
    assert_int_equal(r.codes[0], 0xd7); /* 6 and -3 */
    assert_int_equal(r.codes[1], 0x01); /* .5; .25 goes to the even code */
    for (int i = 0; i < 8; i++)
        assert_int_equal(r.codes[8 + i], (2 * i + 1) << 4 | 2 * i);
    assert_int_equal(r.codes[16], 0x97); /* 6 and -.4, which is nearest to -.5 */
    dequantize(nv, &r, 1, 36, NULL, got);
    assert_true(got[0] == 2688 && got[2] == 224 && got[33] == -0.125F);
    /* under a static g that leaves B * g = 0 or an infinity, codes are 0 and nothing is NaN */
    const cmoe_format fixed = {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_NV, .fixed = 1};
    const float large = 1e30F;
    quantize(fixed, v, 1, 36, &large, &r);
    dequantize(fixed, &r, 1, 36, &large, got);
    for (int i = 0; i < 36; i++)
        assert_true(got[i] == 0 && r.codes[i / 2] == 0);
}

static void test_rounding_example(void **state)
{
    (void)state;
    static struct result r;
    const float v[] = {127, 2.5F, -2.5F, 3.5F, -0.9F, 0.5F};
    static const struct {
        cmoe_rounding rounding;
        int8_t codes[6];
    } rows[] = {{CMOE_ROUND_NEAREST_EVEN, {127, 2, -2, 4, -1, 0}},
                {CMOE_ROUND_TRUNCATE, {127, 2, -2, 3, 0, 0}},
                {CMOE_ROUND_HALF_AWAY, {127, 3, -3, 4, -1, 1}}};
    for (int i = 0; i < 3; i++) {
        const cmoe_format f = {
            .dtype = CMOE_I8, .scaling = CMOE_SCALE_TOKEN, .rounding = (uint8_t)rows[i].rounding};
        quantize(f, v, 1, 6, NULL, &r);
        assert_same_bytes(r.codes, rows[i].codes, 6);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_e8m0_boundaries),     cmocka_unit_test(test_e8m0_examples),
        cmocka_unit_test(test_f32_scales),          cmocka_unit_test(test_rows),
        cmocka_unit_test(test_codes_of_f32_scales), cmocka_unit_test(test_broken_rows),
        cmocka_unit_test(test_broken_tensors),      cmocka_unit_test(test_zero_and_tiny_rows),
        cmocka_unit_test(test_two_level_example),   cmocka_unit_test(test_rounding_example),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
