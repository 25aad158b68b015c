/* SPDX-License-Identifier: MIT
 * The published 4-bit packings: examples packed by hand from their descriptions, and round trips. */
/* ctest: labels=portable */
#include "harness.h"

#include <cmoe/convert.h>
#include <stdlib.h>
#include <string.h>

enum { PACKINGS = CMOE_PACK_AITER_U32 + 1 };

/* A word in memory as the machine has it. */
static void assert_words(const void *packed, const uint32_t *want, size_t n)
{
    assert_same_bytes(packed, want, n * sizeof *want);
}

/* One output of 32 inputs whose values are 0..15, 0..15. */
static void ramp(uint8_t *v, int n)
{
    for (int i = 0; i < n; i++)
        v[i] = (uint8_t)(i % 16);
}

/* gpt-oss and vLLM: the low nibble is the even column. */
static void test_nibble(void **state)
{
    (void)state;
    const uint8_t v[8] = {1, 2, 3, 4, 15, 0, 7, 8}, want[4] = {0x21, 0x43, 0x0f, 0x87};
    uint8_t packed[4];
    expect_ok(cmoe_pack4(CMOE_PACK_NIBBLE, v, 2, 4, packed));
    assert_same_bytes(packed, want, 4);
}

/* GPTQ: word (i / 8, o) holds inputs i .. i + 7 of output o, the first lowest. */
static void test_gptq(void **state)
{
    (void)state;
    uint8_t v[3 * 16];
    uint32_t packed[2 * 3];
    for (int o = 0; o < 3; o++)
        for (int i = 0; i < 16; i++)
            v[o * 16 + i] = (uint8_t)((i + o) % 16);
    expect_ok(cmoe_pack4(CMOE_PACK_GPTQ, v, 3, 16, packed));
    const uint32_t want[] = {0x76543210, 0x87654321, 0x98765432,
                             0xfedcba98, 0x0fedcba9, 0x10fedcba};
    assert_words(packed, want, 6);
}

/* AWQ: word (i, o / 8) holds outputs o .. o + 7 of input i; its nibbles, lowest first, are outputs
 * 0 2 4 6 1 3 5 7. */
static void test_awq(void **state)
{
    (void)state;
    uint8_t v[16 * 2];
    uint32_t packed[2 * 2];
    for (int o = 0; o < 16; o++) {
        v[o * 2] = (uint8_t)o;
        v[o * 2 + 1] = (uint8_t)(15 - o);
    }
    expect_ok(cmoe_pack4(CMOE_PACK_AWQ, v, 16, 2, packed));
    const uint32_t want[] = {0x75316420, 0xfdb9eca8, 0x8ace9bdf, 0x02461357};
    assert_words(packed, want, 4);
}

/* compressed-tensors: a row of words for each output, inputs in sequence. */
static void test_compressed(void **state)
{
    (void)state;
    uint8_t v[2 * 16];
    uint32_t packed[2 * 2];
    ramp(v, 16);
    for (int i = 0; i < 16; i++)
        v[16 + i] = (uint8_t)(15 - i);
    expect_ok(cmoe_pack4(CMOE_PACK_COMPRESSED, v, 2, 16, packed));
    const uint32_t want[] = {0x76543210, 0xfedcba98, 0x89abcdef, 0x01234567};
    assert_words(packed, want, 4);
}

/* GGUF: byte j of a block of 32 holds elements j (low) and j + 16. */
static void test_gguf(void **state)
{
    (void)state;
    uint8_t v[32], packed[16];
    for (int j = 0; j < 16; j++) {
        v[j] = (uint8_t)j;
        v[16 + j] = (uint8_t)(15 - j);
    }
    expect_ok(cmoe_pack4(CMOE_PACK_GGUF, v, 1, 32, packed));
    const uint8_t want[16] = {0xf0, 0xe1, 0xd2, 0xc3, 0xb4, 0xa5, 0x96, 0x87,
                              0x78, 0x69, 0x5a, 0x4b, 0x3c, 0x2d, 0x1e, 0x0f};
    assert_same_bytes(packed, want, 16);
}

/* AITER's two: bytes of elements i and i + 4 of eight; words of nibbles 0 2 4 6 1 3 5 7. */
static void test_aiter(void **state)
{
    (void)state;
    uint8_t v[16], bytes[8];
    uint32_t words[2];
    ramp(v, 16);
    expect_ok(cmoe_pack4(CMOE_PACK_AITER_I4, v, 1, 16, bytes));
    const uint8_t want_bytes[8] = {0x40, 0x51, 0x62, 0x73, 0xc8, 0xd9, 0xea, 0xfb};
    assert_same_bytes(bytes, want_bytes, 8);
    expect_ok(cmoe_pack4(CMOE_PACK_AITER_U32, v, 1, 16, words));
    const uint32_t want_words[] = {0x75316420, 0xfdb9eca8};
    assert_words(words, want_words, 2);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct rng rng = {test_seed()};
    struct guard g;
    guard_init(&g);
    for (int packing = 0; packing < PACKINGS; packing++)
        for (int round = 0; round < 20; round++) {
            const int64_t rows =
                packing == CMOE_PACK_AWQ ? 8 * rng_between(&rng, 1, 5) : rng_between(&rng, 1, 9);
            const int64_t cols =
                packing == CMOE_PACK_AWQ ? rng_between(&rng, 1, 9) : 32 * rng_between(&rng, 1, 3);
            const size_t n = (size_t)(rows * cols);
            uint8_t *const v = guard_alloc(&g, n, 1, GUARD_INPUT);
            uint8_t *const packed = guard_alloc(&g, n / 2, 1, GUARD_OUTPUT);
            uint8_t *const again = guard_alloc(&g, n, 1, GUARD_OUTPUT);
            int histogram[16] = {0}, sum[16] = {0};
            for (size_t i = 0; i < n; i++)
                histogram[v[i] = (uint8_t)rng_below(&rng, 16)]++;
            guard_freeze(&g);
            expect_ok(cmoe_pack4((cmoe_packing)packing, v, rows, cols, packed));
            for (size_t i = 0; i < n / 2; i++) { /* every nibble is stored once */
                sum[packed[i] & 15]++;
                sum[packed[i] >> 4]++;
            }
            assert_memory_equal(sum, histogram, sizeof sum);
            expect_ok(cmoe_unpack4((cmoe_packing)packing, packed, rows, cols, again));
            assert_same_bytes(again, v, n);
            assert_true(guard_check(&g));
            guard_reset(&g);
        }
    guard_end(&g);
}

/* Only the low nibble of a source byte counts. */
static void test_high_bits(void **state)
{
    (void)state;
    const uint8_t v[2] = {0xf3, 0xa5};
    uint8_t packed = 0;
    expect_ok(cmoe_pack4(CMOE_PACK_NIBBLE, v, 1, 2, &packed));
    assert_int_equal(packed, 0x53);
}

static void test_errors(void **state)
{
    (void)state;
    uint8_t v[64] = {0}, out[64];
    expect_error(cmoe_pack4((cmoe_packing)PACKINGS, v, 1, 8, out), CMOE_ERR_INVALID, "packing 7");
    expect_error(cmoe_pack4(CMOE_PACK_NIBBLE, v, 1, 3, out), CMOE_ERR_INVALID,
                 "multiple of 2 columns, not 3");
    expect_error(cmoe_unpack4(CMOE_PACK_GPTQ, v, 1, 12, out), CMOE_ERR_INVALID,
                 "multiple of 8 columns, not 12");
    expect_error(cmoe_pack4(CMOE_PACK_AWQ, v, 12, 1, out), CMOE_ERR_INVALID,
                 "multiple of 8 rows, not 12");
    expect_error(cmoe_pack4(CMOE_PACK_GGUF, v, 1, 16, out), CMOE_ERR_INVALID,
                 "multiple of 32 columns, not 16");
    expect_error(cmoe_pack4(CMOE_PACK_NIBBLE, v, -1, 2, out), CMOE_ERR_INVALID, "negative");
    expect_error(cmoe_pack4(CMOE_PACK_NIBBLE, NULL, 1, 2, out), CMOE_ERR_INVALID, "src is NULL");
    expect_error(cmoe_unpack4(CMOE_PACK_NIBBLE, v, 1, 2, NULL), CMOE_ERR_INVALID, "dst is NULL");
    expect_error(cmoe_pack4(CMOE_PACK_NIBBLE, v, INT64_MAX, 4, out), CMOE_ERR_OVERFLOW, "fit");
    expect_ok(cmoe_pack4(CMOE_PACK_GPTQ, NULL, 0, 8, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nibble),     cmocka_unit_test(test_gptq),
        cmocka_unit_test(test_awq),        cmocka_unit_test(test_compressed),
        cmocka_unit_test(test_gguf),       cmocka_unit_test(test_aiter),
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_high_bits),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
