/* SPDX-License-Identifier: MIT
 * Element types: every code, and encoders at every boundary, in every floating-point environment.
 *
 * The oracle knows a type as the sorted list of its magnitudes, built with ldexp from the fields;
 * a value belongs to the code whose neighbours' midpoints enclose it. */
/* ctest: labels=portable cost=10 */
#include "core/numeric.h"
#include "harness.h"
#include "harness_env.h"

#include <cmoe/convert.h>
#include <fenv.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CODES = 0x7f82, RANDOM_INPUTS = 1000000 };

struct oracle {
    cmoe_dtype dtype;
    int bits, n; /* magnitudes are codes 0 .. n - 1 */
    bool integer, is_signed;
    bool overflows; /* the last magnitude is where infinity begins */
    double *magnitude;
};

static const struct spec {
    cmoe_dtype dtype;
    int bits, mantissa, bias, n; /* floats: n finite magnitudes */
    bool overflows;
} specs[] = {
    {CMOE_F16, 16, 10, 15, 0x7c00, true}, {CMOE_BF16, 16, 7, 127, 0x7f80, true},
    {CMOE_E4M3, 8, 3, 7, 0x7f, false},    {CMOE_E4M3FNUZ, 8, 3, 8, 0x80, false},
    {CMOE_E5M2, 8, 2, 15, 0x7c, false},   {CMOE_E2M1, 4, 1, 1, 8, false},
    {CMOE_I8, 8, 0, 0, 128, false},       {CMOE_U8, 8, 0, 0, 256, false},
    {CMOE_I4, 4, 0, 0, 8, false},         {CMOE_U4, 4, 0, 0, 16, false},
};
enum { SPECS = sizeof specs / sizeof specs[0] };

static bool is_integer(cmoe_dtype dtype)
{
    return dtype == CMOE_I8 || dtype == CMOE_U8 || dtype == CMOE_I4 || dtype == CMOE_U4;
}

static double field_value(const struct spec *s, int code)
{
    if (is_integer(s->dtype)) return code;
    const int exponent = code >> s->mantissa;
    const int fraction = code & ((1 << s->mantissa) - 1);
    if (exponent == 0) return ldexp(fraction, 1 - s->bias - s->mantissa);
    return ldexp(fraction + (1 << s->mantissa), exponent - s->bias - s->mantissa);
}

static struct oracle oracle_make(const struct spec *s)
{
    struct oracle o = {.dtype = s->dtype,
                       .bits = s->bits,
                       .n = s->n + s->overflows,
                       .integer = is_integer(s->dtype),
                       .is_signed = s->dtype != CMOE_U8 && s->dtype != CMOE_U4,
                       .overflows = s->overflows,
                       .magnitude = malloc(MAX_CODES * sizeof(double))};
    assert_non_null(o.magnitude);
    for (int code = 0; code < o.n; code++)
        o.magnitude[code] = field_value(s, code);
    return o;
}

static uint32_t oracle_nan(const struct oracle *o, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    const uint32_t sign = bits >> 31;
    if (o->dtype == CMOE_F16) /* quiet, with the payload's upper bits */
        return sign << 15 | 0x7e00 | (bits >> 13 & 0x3ff);
    if (o->dtype == CMOE_BF16) return bits >> 16 | 0x40;
    if (o->dtype == CMOE_E4M3 || o->dtype == CMOE_E5M2) return sign << 7 | 0x7f;
    return o->dtype == CMOE_E4M3FNUZ ? 0x80 : 0;
}

/* Index of the magnitude that |x| rounds to. */
static int oracle_index(const struct oracle *o, double x, cmoe_rounding rounding)
{
    int low = 0, high = o->n - 1; /* magnitude[low] <= x, or low is 0 */
    if (x >= o->magnitude[high]) return high;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        *(o->magnitude[middle] <= x ? &low : &high) = middle;
    }
    const double half = (o->magnitude[low] + o->magnitude[high]) / 2;
    if (rounding == CMOE_ROUND_TRUNCATE) return low;
    if (x != half) return x < half ? low : high;
    return rounding == CMOE_ROUND_HALF_AWAY || low % 2 ? high : low;
}

static uint32_t oracle_encode(const struct oracle *o, float v, cmoe_rounding rounding)
{
    if (isnan(v)) return oracle_nan(o, v);
    const bool negative = signbit(v);
    const bool rounds_so = o->integer || (o->dtype == CMOE_E2M1 && rounding != CMOE_ROUND_TRUNCATE);
    int index = oracle_index(o, fabs((double)v), rounds_so ? rounding : CMOE_ROUND_NEAREST_EVEN);
    if (o->integer) {
        if (negative && !o->is_signed) index = 0;
        /* i4 reaches -8, to which 7.5 is a tie; i8 stays at -127 */
        const double reach = rounding == CMOE_ROUND_TRUNCATE ? 8 : 7.5;
        if (negative && o->dtype == CMOE_I4 && -(double)v >= reach) index = 8;
        return (uint32_t)(negative ? -index : index) & ((1U << o->bits) - 1);
    }
    if (o->dtype == CMOE_E4M3FNUZ && index == 0) return 0;
    return (uint32_t)index | (negative ? 1U << (o->bits - 1) : 0);
}

/* --- inputs ------------------------------------------------------------------------------------*/

struct inputs {
    float *v;
    size_t n, capacity;
    size_t
        everywhere; /* the first ones are tried in every environment, the others in the default */
};

static void add(struct inputs *in, float v)
{
    if (in->n == in->capacity) {
        in->capacity = in->capacity ? 2 * in->capacity : 1 << 16;
        in->v = realloc(in->v, in->capacity * sizeof *in->v);
        assert_non_null(in->v);
    }
    in->v[in->n++] = v;
}

static float from_bits(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* Every code of the 16-bit types, around every value and midpoint of `o`, and random bits. */
static struct inputs inputs_make(const struct oracle *o)
{
    struct inputs in = {0};
    struct rng rng = {test_seed()};
    for (uint32_t code = 0; code < 0x10000; code++) {
        add(&in, from_bits(code << 16));
        add(&in, cmoe_decode(CMOE_F16, code));
    }
    for (int i = 0; i < RANDOM_INPUTS / 8; i++) /* within the range of the small types */
        add(&in, (float)(rng_normal(&rng) * exp2(rng_between(&rng, -30, 17))));
    for (int code = 0; code + 1 < o->n; code++) {
        const double points[] = {o->magnitude[code],
                                 (o->magnitude[code] + o->magnitude[code + 1]) / 2};
        for (int i = 0; i < 2; i++) {
            const float v = (float)points[i];
            const float near[] = {v, nextafterf(v, INFINITY), nextafterf(v, -INFINITY)};
            for (int j = 0; j < 3; j++) {
                add(&in, near[j]);
                add(&in, -near[j]);
            }
        }
    }
    for (int i = 0; i < RANDOM_INPUTS; i++) {
        if (i == RANDOM_INPUTS / 8) in.everywhere = in.n;
        add(&in, from_bits((uint32_t)rng_u64(&rng)));
    }
    return in;
}

static void check_encoder(const struct oracle *o, const struct inputs *in, cmoe_rounding rounding)
{
    uint32_t *const want = malloc(in->n * sizeof *want), *const got = malloc(in->n * sizeof *got);
    assert_non_null(want);
    assert_non_null(got);
    for (size_t i = 0; i < in->n; i++)
        want[i] = oracle_encode(o, in->v[i], rounding);
    struct float_env env;
    for (int e = 0; float_env_at(e, &env); e++) {
        const size_t n = e == 0 ? in->n : in->everywhere;
        float_env_enter(&env);
        for (size_t i = 0; i < n; i++)
            got[i] = cmoe__encode(o->dtype, in->v[i], rounding);
        float_env_leave();
        for (size_t i = 0; i < n; i++)
            if (got[i] != want[i])
                fail_with("%s of %a, rounding %d, %s: 0x%x, expected 0x%x",
                          cmoe_dtype_name(o->dtype), (double)in->v[i], (int)rounding, env.name,
                          got[i], want[i]);
    }
    free(want);
    free(got);
}

static void test_encode(void **state)
{
    (void)state;
    for (int s = 0; s < SPECS; s++) {
        struct oracle o = oracle_make(&specs[s]);
        struct inputs in = inputs_make(&o);
        check_encoder(&o, &in, CMOE_ROUND_NEAREST_EVEN);
        if (o.integer || o.dtype == CMOE_E2M1) check_encoder(&o, &in, CMOE_ROUND_HALF_AWAY);
        if (o.integer) check_encoder(&o, &in, CMOE_ROUND_TRUNCATE);
        if (!o.integer && o.dtype != CMOE_E2M1) /* the variants are for integers and e2m1 */
            assert_int_equal(cmoe__encode(o.dtype, 1.99F, CMOE_ROUND_TRUNCATE),
                             cmoe_encode(o.dtype, 1.99F));
        free(in.v);
        free(o.magnitude);
    }
}

/* --- decoding ----------------------------------------------------------------------------------*/

/* What a code means, by its fields; NaN for NaN. */
static double meaning(const struct spec *s, uint32_t code)
{
    const uint32_t sign = code >> (s->bits - 1), rest = code & ((1U << (s->bits - 1)) - 1);
    if (s->dtype == CMOE_U8 || s->dtype == CMOE_U4) return code;
    if (is_integer(s->dtype)) return sign ? (double)code - (1 << s->bits) : code;
    if (s->dtype == CMOE_E4M3FNUZ && code == 0x80) return NAN;
    double v = NAN;
    if (rest < (uint32_t)s->n)
        v = field_value(s, (int)rest);
    else if (rest == (uint32_t)s->n && s->dtype != CMOE_E4M3)
        v = INFINITY;
    return sign ? -v : v;
}

static bool same(double a, double b)
{
    return isnan(a) ? isnan(b) : a == b && signbit(a) == signbit(b);
}

static void test_decode(void **state)
{
    (void)state;
    struct float_env env;
    for (int s = 0; s < SPECS; s++) {
        for (uint32_t code = 0; code < 1U << specs[s].bits; code++) {
            const double want = meaning(&specs[s], code);
            for (int e = 0; float_env_at(e, &env); e++) {
                float_env_enter(&env);
                const float got = cmoe__decode(specs[s].dtype, code | ~((1U << specs[s].bits) - 1));
                const double wide = cmoe__f32_to_f64(got);
                float_env_leave();
                if (!same(wide, want))
                    fail_with("%s code 0x%x in %s: %a, expected %a",
                              cmoe_dtype_name(specs[s].dtype), code, env.name, wide, want);
            }
        }
    }
    for (uint32_t code = 0; code < 255; code++)
        assert_true((double)cmoe_decode(CMOE_E8M0, code) == ldexp(1, (int)code - 127));
    assert_true(isnan(cmoe_decode(CMOE_E8M0, 255)));
    assert_true(cmoe_decode(CMOE_F32, 0xc0490fdb) == -0x1.921fb6p1F);
    assert_true(cmoe_decode(CMOE_I64, 1) == 0 && cmoe_decode(CMOE_DTYPE_COUNT, 1) == 0);
}

/* A code survives its value, unless the type has two codes for it or never encodes it. */
static uint32_t canonical(cmoe_dtype dtype, uint32_t code)
{
    if (dtype == CMOE_F16) return (code & 0x7fff) > 0x7c00 ? code | 0x200 : code; /* quiet NaN */
    if (dtype == CMOE_BF16) return (code & 0x7fff) > 0x7f80 ? code | 0x40 : code;
    if (dtype == CMOE_E5M2 && (code & 0x7f) == 0x7c) return code - 1; /* infinity saturates */
    if (dtype == CMOE_E5M2) return (code & 0x7f) > 0x7c ? code | 3 : code;
    return dtype == CMOE_I8 && code == 0x80 ? 0x81 : code;
}

static void test_round_trip(void **state)
{
    (void)state;
    for (int s = 0; s < SPECS; s++)
        for (uint32_t code = 0; code < 1U << specs[s].bits; code++)
            assert_int_equal(cmoe_encode(specs[s].dtype, cmoe_decode(specs[s].dtype, code)),
                             canonical(specs[s].dtype, code));
    for (uint32_t code = 0; code < 256; code++)
        assert_int_equal(cmoe_encode(CMOE_E8M0, cmoe_decode(CMOE_E8M0, code)), code);
    for (uint32_t code = 0; code < 0x10000; code++) {
        const float half = cmoe__f16_to_f32((uint16_t)code);
        assert_true(same(half, cmoe_decode(CMOE_F16, code)));
        assert_int_equal(cmoe__f32_to_f16(half), canonical(CMOE_F16, code));
        assert_int_equal(cmoe__f32_to_bf16(cmoe__bf16_to_f32((uint16_t)code)),
                         canonical(CMOE_BF16, code));
    }
}

static void test_e8m0_encode(void **state)
{
    (void)state;
    assert_int_equal(cmoe_encode(CMOE_E8M0, 1.49F), 127);
    assert_int_equal(cmoe_encode(CMOE_E8M0, 1.5F), 128);
    assert_int_equal(cmoe_encode(CMOE_E8M0, 0), 0);
    assert_int_equal(cmoe_encode(CMOE_E8M0, FLT_TRUE_MIN), 0);
    assert_int_equal(cmoe_encode(CMOE_E8M0, FLT_MAX), 254);
    assert_int_equal(cmoe_encode(CMOE_E8M0, INFINITY), 254);
    assert_int_equal(cmoe_encode(CMOE_E8M0, -1), 255);
    assert_int_equal(cmoe_encode(CMOE_E8M0, NAN), 255);
}

/* --- operations --------------------------------------------------------------------------------*/

static bool same_bits(float a, float b)
{
    return isnan(a) ? isnan(b) : memcmp(&a, &b, sizeof a) == 0;
}

/* The machine's own operations in the default environment are the oracle. */
static void test_operations(void **state)
{
    (void)state;
    struct rng rng = {test_seed()};
    struct float_env env;
    for (int i = 0; i < 300000; i++) {
        uint32_t bits[2] = {(uint32_t)rng_u64(&rng), (uint32_t)rng_u64(&rng)};
        if (i % 4 == 0) bits[0] &= 0x807fffff; /* denormals */
        if (i % 8 == 1) bits[1] &= 0xff800000 | (uint32_t)rng_below(&rng, 8);
        const float a = from_bits(bits[0]), b = from_bits(bits[1]);
        double wide; /* a neighbourhood of f32's midpoints */
        uint64_t wide_bits;
        memcpy(&wide, &(double){(double)a}, sizeof wide);
        memcpy(&wide_bits, &wide, sizeof wide_bits);
        wide_bits += (UINT64_C(1) << 28) + (uint64_t)(rng_below(&rng, 3) - 1);
        memcpy(&wide, &wide_bits, sizeof wide);
        const float quotient = a / b, product = a * b, narrow = (float)wide;
        for (int e = 0; float_env_at(e, &env); e++) {
            float_env_enter(&env);
            const float q = cmoe__div_f32(a, b), p = cmoe__mul_f32(a, b);
            const float n = cmoe__f64_to_f32(wide);
            float_env_leave();
            if (!same_bits(q, quotient) || !same_bits(p, product) || !same_bits(n, narrow))
                fail_with("%s: %a and %a: / %a (%a) * %a (%a); %a to f32 %a (%a)", env.name,
                          (double)a, (double)b, (double)q, (double)quotient, (double)p,
                          (double)product, wide, (double)n, (double)narrow);
        }
    }
    assert_true(signbit(cmoe__div_f32(-NAN, 1)) != 0); /* a NaN operand stays */
    assert_true(signbit(cmoe__div_f32(0, 0)) == 0);    /* made here: positive everywhere */
}

static void test_amax(void **state)
{
    (void)state;
    const float v[] = {-0.0F, 0x1p-149F, -3.0F, 2.0F, -INFINITY, NAN, 1.0F};
    struct float_env env;
    for (int e = 0; float_env_at(e, &env); e++) {
        float_env_enter(&env);
        const float amax[] = {cmoe__amax(NULL, 0), cmoe__amax(v, 1), cmoe__amax(v, 2),
                              cmoe__amax(v, 4),    cmoe__amax(v, 5), cmoe__amax(v, 7)};
        float_env_leave();
        assert_true(same_bits(amax[0], 0) && same_bits(amax[1], 0));
        assert_true(same_bits(amax[2], 0x1p-149F));
        assert_true(amax[3] == 3 && isinf(amax[4]) && isnan(amax[5]));
    }
}

static void test_largest(void **state)
{
    (void)state;
    for (int s = 0; s < SPECS; s++) {
        double largest = 0;
        for (uint32_t code = 0; code < 1U << specs[s].bits; code++) {
            const double v = meaning(&specs[s], code);
            if (isfinite(v) && v > largest) largest = v;
        }
        assert_true((double)cmoe__dtype_max(specs[s].dtype) == largest);
    }
    assert_true(cmoe__dtype_max(CMOE_F32) == FLT_MAX && cmoe__dtype_max(CMOE_NONE) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encode),     cmocka_unit_test(test_decode),
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_e8m0_encode),
        cmocka_unit_test(test_operations), cmocka_unit_test(test_amax),
        cmocka_unit_test(test_largest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
