/* SPDX-License-Identifier: MIT
 * Elements in memory: single codes beside their neighbours, conversions between all types, and the
 * sentences for wrong arguments. */
/* ctest: labels=portable */
#include "core/numeric.h"
#include "harness.h"

#include <cmoe/convert.h>
#include <math.h>
#include <string.h>

static const cmoe_dtype dtypes[] = {CMOE_F32,      CMOE_F16,  CMOE_BF16, CMOE_E4M3,
                                    CMOE_E4M3FNUZ, CMOE_E5M2, CMOE_I8,   CMOE_U8,
                                    CMOE_I4,       CMOE_U4,   CMOE_E2M1};
enum { DTYPES = sizeof dtypes / sizeof dtypes[0], N = 700 };

/* A store changes one element and no other bit. */
static void test_store_code(void **state)
{
    (void)state;
    struct rng rng = {test_seed()};
    for (int d = 0; d < DTYPES; d++) {
        const int bits = cmoe_dtype_bits(dtypes[d]);
        const uint32_t mask = bits == 32 ? UINT32_MAX : (1U << bits) - 1;
        uint8_t buffer[1 + 4 * 16 + 1], *const row = buffer + 1; /* not aligned */
        uint32_t shadow[16];
        for (size_t i = 0; i < sizeof buffer; i++)
            buffer[i] = (uint8_t)rng_u64(&rng);
        for (int i = 0; i < 16; i++)
            shadow[i] = cmoe__load_code(dtypes[d], row, i);
        for (int round = 0; round < 200; round++) {
            const int at = (int)rng_below(&rng, 16);
            shadow[at] = (uint32_t)rng_u64(&rng) & mask;
            cmoe__store_code(dtypes[d], row, at, shadow[at]);
            for (int i = 0; i < 16; i++)
                assert_int_equal(cmoe__load_code(dtypes[d], row, i), shadow[i]);
        }
    }
    uint8_t row[2] = {0xff, 0xff};
    assert_int_equal(cmoe__load_code(CMOE_I4, (const uint8_t[]){0x21, 0x43}, 2), 3);
    cmoe__append_code(CMOE_U4, row, 0, 5); /* clears what it has not written yet */
    assert_int_equal(row[0], 0x05);
    cmoe__append_code(CMOE_U4, row, 1, 6);
    assert_int_equal(row[0], 0x65);
    assert_int_equal(row[1], 0xff);
}

static void test_rows(void **state)
{
    (void)state;
    struct rng rng = {test_seed()};
    for (int d = 0; d < DTYPES; d++) {
        uint8_t codes[4 * N + 1], again[4 * N + 1];
        float values[N];
        const size_t bytes = cmoe_dtype_bytes(dtypes[d], N - 1);
        for (size_t i = 0; i < sizeof codes; i++)
            codes[i] = (uint8_t)rng_u64(&rng);
        cmoe__load_row(dtypes[d], codes + 1, N - 1, values); /* odd count, odd address */
        for (int i = 0; i < N - 1; i++) {
            const float one = cmoe__load(dtypes[d], codes + 1, i);
            assert_true(isnan(one) ? isnan(values[i]) : values[i] == one);
        }
        memset(again, 0xaa, sizeof again);
        cmoe__store_row(dtypes[d], again + 1, N - 1, values);
        for (int i = 0; i < N - 1; i++)
            assert_int_equal(cmoe__load_code(dtypes[d], again + 1, i),
                             cmoe_encode(dtypes[d], values[i]));
        assert_true(again[0] == 0xaa && again[1 + bytes] == 0xaa);
        if (cmoe_dtype_bits(dtypes[d]) == 4) assert_int_equal(again[bytes] >> 4, 0);
    }
}

static void test_convert(void **state)
{
    (void)state;
    struct rng rng = {test_seed()};
    struct guard g;
    guard_init(&g);
    for (int from = 0; from < DTYPES; from++)
        for (int to = 0; to < DTYPES; to++)
            for (int n = 1; n <= N; n = 3 * n + 1) {
                uint8_t *const src =
                    guard_alloc(&g, cmoe_dtype_bytes(dtypes[from], n), 1, GUARD_INPUT);
                uint8_t *const dst =
                    guard_alloc(&g, cmoe_dtype_bytes(dtypes[to], n), 1, GUARD_OUTPUT);
                for (int i = 0; i < n; i++)
                    cmoe__store_code(dtypes[from], src, i, (uint32_t)rng_u64(&rng));
                guard_freeze(&g);
                expect_ok(cmoe_convert(dtypes[to], dst, dtypes[from], src, n));
                for (int i = 0; i < n; i++) {
                    const uint32_t code = cmoe__load_code(dtypes[from], src, i);
                    const uint32_t want =
                        from == to ? code
                                   : cmoe_encode(dtypes[to], cmoe_decode(dtypes[from], code));
                    assert_int_equal(cmoe__load_code(dtypes[to], dst, i), want);
                }
                assert_true(guard_check(&g));
                guard_reset(&g);
            }
    guard_end(&g);
}

static void test_convert_errors(void **state)
{
    (void)state;
    float a[2] = {1, 2};
    uint16_t b[2];
    expect_error(cmoe_convert(CMOE_E8M0, b, CMOE_F32, a, 2), CMOE_ERR_INVALID, "e8m0");
    expect_error(cmoe_convert(CMOE_F16, b, CMOE_I32, a, 2), CMOE_ERR_INVALID, "i32");
    expect_error(cmoe_convert((cmoe_dtype)77, b, CMOE_F32, a, 2), CMOE_ERR_INVALID, "77");
    expect_error(cmoe_convert(CMOE_F16, b, CMOE_F32, a, -1), CMOE_ERR_INVALID, "-1");
    expect_error(cmoe_convert(CMOE_F16, NULL, CMOE_F32, a, 2), CMOE_ERR_INVALID, "dst is NULL");
    expect_error(cmoe_convert(CMOE_F16, b, CMOE_F32, NULL, 2), CMOE_ERR_INVALID, "src is NULL");
    expect_ok(cmoe_convert(CMOE_F16, NULL, CMOE_F32, NULL, 0));
}

static void test_row_errors(void **state)
{
    (void)state;
    const cmoe_format token = {.dtype = CMOE_I8, .scaling = CMOE_SCALE_TOKEN};
    const cmoe_format tensor = {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_TENSOR};
    const cmoe_format fixed = {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_TENSOR, .fixed = 1};
    const cmoe_format nv = {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_NV};
    const cmoe_format channel = {.dtype = CMOE_I8, .scaling = CMOE_SCALE_CHANNEL};
    const cmoe_format u4 = {.dtype = CMOE_U4, .scaling = CMOE_SCALE_TOKEN};
    const cmoe_format i8_nv = {.dtype = CMOE_I8, .scaling = CMOE_SCALE_NV};
    const cmoe_format trunc = {
        .dtype = CMOE_E4M3, .scaling = CMOE_SCALE_TOKEN, .rounding = CMOE_ROUND_TRUNCATE};
    const cmoe_format half = {
        .dtype = CMOE_I8, .scaling = CMOE_SCALE_GROUP, .group = 32, .scale_dtype = CMOE_BF16};
    float v[32] = {0}, s[32], out[32];
    uint8_t q[32];
    static const struct {
        const char *part;
        int format;
    } refused[] = {{"channel is not for activations", 0},
                   {"u4 is for weights only", 1},
                   {"i8 has no scaling nv16", 2},
                   {"nearest even only", 3},
                   {"no scales of type bf16", 4}};
    const cmoe_format bad[] = {channel, u4, i8_nv, trunc, half};
    for (int i = 0; i < 5; i++)
        expect_error(cmoe_quantize_rows(bad[refused[i].format], v, 1, 32, NULL, q, s, NULL),
                     CMOE_ERR_INVALID, refused[i].part);
    expect_error(cmoe_quantize_rows(token, v, 1, 32, NULL, q, NULL, NULL), CMOE_ERR_INVALID,
                 "scale is NULL");
    expect_error(cmoe_quantize_rows(tensor, v, 1, 32, NULL, q, NULL, NULL), CMOE_ERR_INVALID,
                 "both NULL");
    expect_error(cmoe_quantize_rows(fixed, v, 1, 32, NULL, q, s, NULL), CMOE_ERR_INVALID,
                 "fixed is NULL");
    expect_error(cmoe_quantize_rows(nv, v, 1, 32, NULL, q, s, NULL), CMOE_ERR_INVALID,
                 "global is NULL");
    expect_error(cmoe_quantize_rows(token, NULL, 1, 32, NULL, q, s, NULL), CMOE_ERR_INVALID,
                 "src is NULL");
    expect_error(cmoe_quantize_rows(token, v, -1, 32, NULL, q, s, NULL), CMOE_ERR_INVALID, "-1");
    expect_error(cmoe_quantize_rows(token, v, INT64_MAX / 8, 32, NULL, q, s, NULL),
                 CMOE_ERR_OVERFLOW, "fit");
    expect_ok(cmoe_quantize_rows(token, NULL, 0, 32, NULL, NULL, NULL, NULL));
    expect_error(cmoe_dequantize_rows(tensor, q, NULL, NULL, 1, 32, out), CMOE_ERR_INVALID,
                 "scale is NULL");
    expect_error(cmoe_dequantize_rows(nv, q, s, NULL, 1, 32, out), CMOE_ERR_INVALID, "global");
    expect_error(cmoe_dequantize_rows(token, NULL, s, NULL, 1, 32, out), CMOE_ERR_INVALID,
                 "codes is NULL");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_store_code), cmocka_unit_test(test_rows),
        cmocka_unit_test(test_convert),    cmocka_unit_test(test_convert_errors),
        cmocka_unit_test(test_row_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
