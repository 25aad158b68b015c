/* SPDX-License-Identifier: MIT
 * Quantising weight matrices. The oracle goes over elements and asks which scale each belongs to;
 * scales, zero points and codes then follow from plain float operations. */
/* ctest: labels=portable */
#include "core/numeric.h"
#include "harness.h"
#include "harness_env.h"

#include <cmoe/convert.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const cmoe_format formats[] = {
    {.dtype = CMOE_BF16, .scaling = CMOE_SCALE_NONE},
    {.dtype = CMOE_F16, .scaling = CMOE_SCALE_NONE},
    {.dtype = CMOE_F32, .scaling = CMOE_SCALE_NONE},
    {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_TENSOR},
    {.dtype = CMOE_E4M3FNUZ, .scaling = CMOE_SCALE_CHANNEL},
    {.dtype = CMOE_E5M2, .scaling = CMOE_SCALE_CHANNEL},
    {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_BLOCK},
    {.dtype = CMOE_I8, .scaling = CMOE_SCALE_BLOCK},
    {.dtype = CMOE_I8, .scaling = CMOE_SCALE_CHANNEL},
    {.dtype = CMOE_U8, .scaling = CMOE_SCALE_CHANNEL},
    {.dtype = CMOE_U8, .scaling = CMOE_SCALE_CHANNEL, .zero = 1},
    {.dtype = CMOE_I8, .scaling = CMOE_SCALE_GROUP, .group = 128},
    {.dtype = CMOE_I4, .scaling = CMOE_SCALE_GROUP, .group = 32},
    {.dtype = CMOE_I4, .scaling = CMOE_SCALE_GROUP, .group = 16, .scale_dtype = CMOE_BF16},
    {.dtype = CMOE_I4, .scaling = CMOE_SCALE_GROUP, .group = 64, .scale_dtype = CMOE_F16},
    {.dtype = CMOE_I4, .scaling = CMOE_SCALE_CHANNEL},
    {.dtype = CMOE_I4, .scaling = CMOE_SCALE_TENSOR},
    {.dtype = CMOE_U4, .scaling = CMOE_SCALE_GROUP, .group = 32},
    {.dtype = CMOE_U4, .scaling = CMOE_SCALE_GROUP, .group = 32, .zero = 1},
    {.dtype = CMOE_U4,
     .scaling = CMOE_SCALE_GROUP,
     .group = 64,
     .scale_dtype = CMOE_F16,
     .zero = 1},
    {.dtype = CMOE_U8,
     .scaling = CMOE_SCALE_GROUP,
     .group = 16,
     .scale_dtype = CMOE_BF16,
     .zero = 1},
    {.dtype = CMOE_U4, .scaling = CMOE_SCALE_CHANNEL, .zero = 1},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX, .mx_rounding = CMOE_MX_EVEN},
    {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_MX},
    {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_NV},
};
enum { FORMATS = sizeof formats / sizeof formats[0], MAX_SIZE = 150 * 200 };

static struct buffers {
    float v[MAX_SIZE], decoded[MAX_SIZE];
    uint8_t codes[4 * MAX_SIZE], scale[4 * MAX_SIZE], zero[MAX_SIZE];
    float global;
} plain, other;

/* What the oracle knows of the elements that share a scale. */
struct scope {
    float amax, low, high; /* amax NaN or infinite: broken */
    float scale;           /* what values are divided by */
    double exact; /* what codes are multiplied with: differs for NV, where a product is rounded */
    int zero;
};
static struct scope scopes[MAX_SIZE];

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int64_t scope_index(cmoe_format f, int64_t r, int64_t c, int64_t cols)
{
    switch ((cmoe_scaling)f.scaling) {
    case CMOE_SCALE_CHANNEL:
        return r;
    case CMOE_SCALE_BLOCK:
        return r / 128 * ceil_div(cols, 128) + c / 128;
    case CMOE_SCALE_GROUP:
        return r * ceil_div(cols, f.group) + c / f.group;
    case CMOE_SCALE_MX:
        return r * ceil_div(cols, 32) + c / 32;
    case CMOE_SCALE_NV:
        return r * ceil_div(cols, 16) + c / 16;
    case CMOE_SCALE_NONE:
    case CMOE_SCALE_TENSOR:
    case CMOE_SCALE_TOKEN:
    case CMOE_SCALE_SMOOTH:
    case CMOE_SCALING_COUNT:
        break;
    }
    return 0;
}

static bool is_integer(cmoe_format f)
{
    return f.dtype == CMOE_I8 || f.dtype == CMOE_U8 || f.dtype == CMOE_I4 || f.dtype == CMOE_U4;
}

static int limit(cmoe_format f)
{
    return f.dtype == CMOE_I8 || f.dtype == CMOE_U8 ? 127 : 7;
}

static int clamp(float v, int low, int high)
{
    if (isnan(v)) return 0 < low ? low : 0;
    return v < (float)low ? low : v > (float)high ? high : (int)nearbyintf(v);
}

/* A scale as its 16-bit type holds it. */
static float stored(cmoe_format f, float s)
{
    if (f.scale_dtype == CMOE_NONE || isnan(s)) return s;
    const cmoe_dtype dtype = (cmoe_dtype)f.scale_dtype;
    const float rounded = cmoe_decode(dtype, cmoe_encode(dtype, s));
    if (rounded == 0) return 1;
    return isinf(rounded) ? 65504 : rounded;
}

static void find_scale(cmoe_format f, struct scope *s, float matrix_amax)
{
    const int levels = f.dtype == CMOE_U4 ? 15 : 255;
    const float largest = is_integer(f) ? (float)limit(f) : cmoe__dtype_max((cmoe_dtype)f.dtype);
    const float range = s->high - s->low;
    float scale = f.zero ? range / (float)levels : s->amax / largest;
    if (scale < FLT_MIN) scale = 1;
    if (!isfinite(s->amax) || !isfinite(scale)) scale = NAN;
    s->scale = stored(f, scale);
    s->exact = (double)s->scale;
    if (f.zero) s->zero = clamp(-s->low / s->scale, 0, levels);
    if (f.scaling == CMOE_SCALE_MX) {
        const int code =
            cmoe__scale_e8m0((cmoe_dtype)f.dtype, s->amax, (cmoe_mx_rounding)f.mx_rounding);
        s->scale = code == 255 ? NAN : ldexpf(1, code - 127);
        s->exact = (double)s->scale;
    } else if (f.scaling == CMOE_SCALE_NV) {
        const float g = matrix_amax / 2688 < FLT_MIN ? 1 : matrix_amax / 2688;
        const float b = cmoe_decode(CMOE_E4M3, cmoe_encode(CMOE_E4M3, s->amax / (6 * g)));
        s->scale = b * g;
        s->exact = (double)b * (double)g;
    }
}

static uint32_t expected_code(cmoe_format f, const struct scope *s, float v)
{
    const int n = limit(f);
    if (f.scaling == CMOE_SCALE_NONE) return cmoe_encode((cmoe_dtype)f.dtype, v);
    if (f.zero) return (uint32_t)clamp(nearbyintf(v / s->scale) + (float)s->zero, 0, 2 * n + 1);
    if (f.dtype == CMOE_U4 || f.dtype == CMOE_U8)
        return (uint32_t)(clamp(v / s->scale, -n, n) + n + 1);
    if (is_integer(f))
        return (uint32_t)clamp(v / s->scale, -n, n) & (f.dtype == CMOE_I4 ? 15U : 255U);
    if (s->scale == 0) return 0; /* NV: a block far below the matrix's largest */
    return cmoe_encode((cmoe_dtype)f.dtype, v / s->scale);
}

static void check_oracle(cmoe_format f, const struct buffers *b, int64_t rows, int64_t cols)
{
    const int64_t last = scope_index(f, rows - 1, cols - 1, cols);
    memset(scopes, 0, (size_t)(last + 1) * sizeof scopes[0]);
    for (int64_t i = 0; i < rows * cols; i++) {
        struct scope *const s = &scopes[scope_index(f, i / cols, i % cols, cols)];
        const float v = b->v[i];
        s->amax = isnan(v) || isnan(s->amax) ? NAN : fmaxf(s->amax, fabsf(v));
        s->low = fminf(s->low, v);
        s->high = fmaxf(s->high, v);
    }
    const float matrix_amax = cmoe__amax(b->v, rows * cols);
    for (int64_t k = 0; k <= last; k++) {
        find_scale(f, &scopes[k], matrix_amax);
        if (f.scaling == CMOE_SCALE_NONE) continue;
        cmoe_dtype dtype = f.scale_dtype ? (cmoe_dtype)f.scale_dtype : CMOE_F32;
        if (f.scaling == CMOE_SCALE_MX) dtype = CMOE_E8M0;
        if (f.scaling == CMOE_SCALE_NV) dtype = CMOE_E4M3;
        float got = cmoe__load(dtype, b->scale, k);
        if (f.scaling == CMOE_SCALE_NV) got *= b->global;
        if (isnan(got) ? !isnan(scopes[k].scale) : got != scopes[k].scale)
            fail_with("scale %lld is %a, expected %a", (long long)k, (double)got,
                      (double)scopes[k].scale);
        if (f.zero) assert_int_equal(b->zero[k], scopes[k].zero);
    }
    const size_t row_bytes = cmoe_dtype_bytes((cmoe_dtype)f.dtype, cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        const struct scope *const s = &scopes[scope_index(f, i / cols, i % cols, cols)];
        const uint32_t want = expected_code(f, s, b->v[i]);
        const uint32_t got = cmoe__load_code((cmoe_dtype)f.dtype,
                                             b->codes + (size_t)(i / cols) * row_bytes, i % cols);
        double value = (double)cmoe_decode((cmoe_dtype)f.dtype, got);
        if (f.dtype == CMOE_U4 || f.dtype == CMOE_U8) value -= f.zero ? s->zero : limit(f) + 1;
        if (f.scaling != CMOE_SCALE_NONE) value *= s->exact;
        if (got != want || (isnan(value) ? !isnan(b->decoded[i]) : b->decoded[i] != (float)value))
            fail_with("element %lld of %a: code 0x%x, expected 0x%x; decoded %a, expected %a",
                      (long long)i, (double)b->v[i], got, want, (double)b->decoded[i], value);
        if (!isfinite(s->scale) || s->scale == 0 || f.scaling == CMOE_SCALE_NONE) continue;
        /* the point of it all: close to the value, in units of the scope's largest */
        const double unit = is_integer(f) ? (double)s->scale : fmax((double)s->amax / 4, 0x1p-110);
        assert_true(fabs(value - (double)b->v[i]) <= unit * 1.0001 || f.scale_dtype);
    }
}

static void quantize(cmoe_format f, struct buffers *b, int64_t rows, int64_t cols)
{
    memset(b->codes, 0xaa, sizeof b->codes);
    memset(b->scale, 0xaa, sizeof b->scale);
    memset(b->zero, 0xaa, sizeof b->zero);
    expect_ok(cmoe_quantize_weight(
        f, b->v, rows, cols, b->codes, f.scaling == CMOE_SCALE_NONE ? NULL : b->scale,
        f.zero ? b->zero : NULL, f.scaling == CMOE_SCALE_NV ? &b->global : NULL));
    const cmoe_matrix m = {
        .data = b->codes, .scale = b->scale, .zero = b->zero, .global = &b->global};
    expect_ok(cmoe_dequantize_weight(f, &m, rows, cols, b->decoded));
}

static void test_formats(void **state)
{
    (void)state;
    static const int sizes[][2] = {{150, 200}, {1, 1}, {3, 33}, {128, 128}, {129, 17}};
    struct rng rng = {test_seed()};
    struct float_env env;
    for (int k = 0; k < FORMATS; k++)
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            const int64_t rows = sizes[i][0], cols = sizes[i][1];
            for (int64_t j = 0; j < rows * cols; j++) /* rows differ in size, some are one-sided */
                plain.v[j] = (float)ldexp(rng_normal(&rng), -4 + (int)(j / cols) % 5) +
                             (j / cols % 7 == 3 ? 9 : 0);
            quantize(formats[k], &plain, rows, cols);
            check_oracle(formats[k], &plain, rows, cols);
            memcpy(other.v, plain.v, sizeof other.v);
            other.global = plain.global;
            for (int e = 1; float_env_at(e, &env); e++) {
                float_env_enter(&env);
                quantize(formats[k], &other, rows, cols);
                float_env_leave();
                assert_memory_equal(&other.decoded, &plain.decoded, (size_t)(rows * cols) * 4);
                assert_memory_equal(&other.codes, &plain.codes, sizeof plain.codes);
                assert_memory_equal(&other.scale, &plain.scale, sizeof plain.scale);
                assert_memory_equal(&other.zero, &plain.zero, sizeof plain.zero);
            }
        }
}

/* Zero, tiny, huge and broken scopes side by side. */
static void test_extremes(void **state)
{
    (void)state;
    enum { COLS = 40 };
    static const float rows[][2] = {
        {0, 0}, {1e-44F, -1e-44F}, {1e-38F, 0}, {1e-9F, -1e-9F}, {1e30F, -1e30F}, {NAN, 1},
        {1, 2}, {INFINITY, 1},     {-3, -4},    {3e38F, -3e38F}};
    enum { ROWS = sizeof rows / sizeof rows[0] };
    for (int k = 0; k < FORMATS; k++) {
        const cmoe_format f = formats[k];
        if (f.scaling == CMOE_SCALE_TENSOR || f.scaling == CMOE_SCALE_BLOCK ||
            f.scaling == CMOE_SCALE_NV || f.scaling == CMOE_SCALE_MX)
            continue; /* scopes of several rows; MX shares its code with activations */
        for (int i = 0; i < ROWS * COLS; i++)
            plain.v[i] = rows[i / COLS][i % 2];
        quantize(f, &plain, ROWS, COLS);
        if (f.scaling != CMOE_SCALE_NONE) check_oracle(f, &plain, 4, COLS);
        check_oracle(f, &plain, ROWS, COLS);
        if (f.scaling == CMOE_SCALE_NONE) continue;
        for (int c = 0; c < COLS; c++) {
            assert_true(plain.decoded[c] == 0 && isfinite(plain.decoded[4 * COLS + c]));
            assert_true(isnan(plain.decoded[5 * COLS + c]) && isnan(plain.decoded[7 * COLS + c]));
        }
        /* next to a broken row */
        assert_true(fabsf(plain.decoded[6 * COLS + 1] - 2) < 0.02F);
    }
}

/* Worked by hand: -1 .. 2 in steps of .2 is u4 with zero point 5. */
static void test_zero_point_example(void **state)
{
    (void)state;
    const cmoe_format f = {.dtype = CMOE_U4, .scaling = CMOE_SCALE_CHANNEL, .zero = 1};
    const float v[6] = {-1, 2, 0, 0.2F, 0.31F, -0.5F};
    memcpy(plain.v, v, sizeof v);
    quantize(f, &plain, 1, 6);
    assert_true(((const float *)(const void *)plain.scale)[0] == 0.2F);
    assert_int_equal(plain.zero[0], 5);
    const uint8_t want[3] = {0xf0, 0x65, 0x37}; /* 0 15 | 5 6 | 7 3: -0.5 / 0.2 ties to -2 */
    assert_same_bytes(plain.codes, want, 3);
}

static void test_errors(void **state)
{
    (void)state;
    const cmoe_format i4 = formats[12], zp = formats[18], nv = formats[FORMATS - 1];
    const cmoe_format token = {.dtype = CMOE_I8, .scaling = CMOE_SCALE_TOKEN};
    const cmoe_format group = {.dtype = CMOE_I8, .scaling = CMOE_SCALE_GROUP, .group = 48};
    const cmoe_format f32 = {.dtype = CMOE_F32, .scaling = CMOE_SCALE_CHANNEL};
    const cmoe_format signed_zero = {.dtype = CMOE_I8, .scaling = CMOE_SCALE_CHANNEL, .zero = 1};
    float v[32] = {0}, g;
    uint8_t q[32], s[32], z[32];
    expect_error(cmoe_quantize_weight(token, v, 1, 32, q, s, z, &g), CMOE_ERR_INVALID,
                 "token is not for weights");
    expect_error(cmoe_quantize_weight(group, v, 1, 32, q, s, z, &g), CMOE_ERR_INVALID, "48");
    expect_error(cmoe_quantize_weight(f32, v, 1, 32, q, s, z, &g), CMOE_ERR_INVALID,
                 "f32 has no scaling channel");
    expect_error(cmoe_quantize_weight(signed_zero, v, 1, 32, q, s, z, &g), CMOE_ERR_INVALID,
                 "u4 or u8");
    expect_error(cmoe_quantize_weight(i4, NULL, 1, 32, q, s, z, &g), CMOE_ERR_INVALID, "src");
    expect_error(cmoe_quantize_weight(i4, v, 1, 32, NULL, s, z, &g), CMOE_ERR_INVALID, "codes");
    expect_error(cmoe_quantize_weight(i4, v, 1, 32, q, NULL, z, &g), CMOE_ERR_INVALID, "scale");
    expect_error(cmoe_quantize_weight(zp, v, 1, 32, q, s, NULL, &g), CMOE_ERR_INVALID, "zero");
    expect_error(cmoe_quantize_weight(nv, v, 1, 32, q, s, z, NULL), CMOE_ERR_INVALID, "global");
    expect_error(cmoe_quantize_weight(i4, v, -1, 32, q, s, z, &g), CMOE_ERR_INVALID, "negative");
    expect_error(cmoe_quantize_weight(i4, v, INT64_MAX / 4, INT64_MAX / 4, q, s, z, &g),
                 CMOE_ERR_OVERFLOW, "fit");
    expect_ok(cmoe_quantize_weight(i4, NULL, 0, 32, NULL, NULL, NULL, NULL));
    const cmoe_matrix m = {.data = q, .col_stride = 1};
    expect_error(cmoe_dequantize_weight(i4, &m, 1, 32, v), CMOE_ERR_INVALID, "scales");
    const cmoe_matrix strided = {.data = q, .scale = s, .col_stride = 1};
    expect_error(cmoe_dequantize_weight(i4, &strided, 1, 32, v), CMOE_ERR_INVALID, "column stride");
}

static void test_bytes(void **state)
{
    (void)state;
    static const struct {
        int format;
        size_t codes, scales, zeros; /* of 130 x 201 */
    } rows[] = {{0, 130 * 402, 0, 0},
                {3, 130 * 201, 4, 0},
                {4, 130 * 201, 4 * 130, 0},
                {6, 130 * 201, 4 * 2 * 2, 0},
                {10, 130 * 201, 4 * 130, 130},
                {13, 130 * 101, 2 * 130 * 13, 0},
                {18, 130 * 101, 4 * 130 * 7, 130 * 7},
                {22, 130 * 101, 130 * 7, 0},
                {25, 130 * 101, 130 * 13, 0}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t codes, scales, zeros;
        expect_ok(cmoe_format_bytes(formats[rows[i].format], 130, 201, &codes, &scales, &zeros));
        assert_int_equal(codes, rows[i].codes);
        assert_int_equal(scales, rows[i].scales);
        assert_int_equal(zeros, rows[i].zeros);
    }
    const cmoe_format token = {.dtype = CMOE_I8, .scaling = CMOE_SCALE_TOKEN};
    size_t scales;
    expect_ok(cmoe_format_bytes(token, 130, 201, NULL, &scales, NULL));
    assert_int_equal(scales, 4 * 130);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_zero_point_example),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
