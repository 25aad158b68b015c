/* SPDX-License-Identifier: MIT
 * ctest: labels=portable
 * Element types: names both ways, bits, and bytes at the edge of a byte and of the address space. */
#include "core/device.h"
#include "harness.h"

#include <string.h>

static void names_go_both_ways(void **state)
{
    (void)state;
    static const char *const names[] = {
#define DTYPE(name, text, bits) [CMOE_##name] = text,
#include <cmoe/types.def>
#undef DTYPE
    };
    for (int i = 0; i < CMOE_DTYPE_COUNT; i++) {
        assert_string_equal(cmoe_dtype_name((cmoe_dtype)i), names[i]);
        assert_int_equal(cmoe_dtype_parse(names[i]), i);
        assert_null(strpbrk(names[i], "=/ ,:ABCDEFGHIJKLMNOPQRSTUVWXYZ"));
    }
    assert_string_equal(cmoe_dtype_name(CMOE_DTYPE_COUNT), "?");
    assert_string_equal(cmoe_dtype_name((cmoe_dtype)-1), "?");
    assert_int_equal(cmoe_dtype_parse("bf17"), CMOE_DTYPE_COUNT);
    assert_int_equal(cmoe_dtype_parse("BF16"), CMOE_DTYPE_COUNT);
    assert_int_equal(cmoe_dtype_parse(""), CMOE_DTYPE_COUNT);
    assert_int_equal(cmoe_dtype_parse(NULL), CMOE_DTYPE_COUNT);
}

static void stages_are_in_order(void **state)
{
    (void)state;
    static const char *const names[] = {"route", "quant",   "sort",  "gemm1",
                                        "act",   "requant", "gemm2", "combine"};
    assert_int_equal(CMOE_STAGE_COUNT, 8);
    for (int i = 0; i < CMOE_STAGE_COUNT; i++) {
        assert_string_equal(cmoe_stage_name((cmoe_stage)i), names[i]);
    }
    assert_string_equal(cmoe_stage_name(CMOE_STAGE_COUNT), "?");
    assert_string_equal(cmoe_stage_name((cmoe_stage)-1), "?");
}

static void isa_levels_have_names(void **state)
{
    (void)state;
    assert_string_equal(cmoe__isa_name(CMOE_ISA_LEVEL_GENERIC), "generic");
    assert_string_equal(cmoe__isa_name(CMOE_ISA_LEVEL_AVX2), "avx2");
    assert_string_equal(cmoe__isa_name(CMOE_ISA_LEVEL_AVX512), "avx512");
    assert_string_equal(cmoe__isa_name(CMOE_ISA_LEVEL_AVX512VNNI), "avx512vnni");
    assert_string_equal(cmoe__isa_name(CMOE_ISA_LEVEL_AVX512BF16), "avx512bf16");
    assert_string_equal(cmoe__isa_name(CMOE_ISA_LEVEL_AMX), "amx");
    assert_string_equal(cmoe__isa_name(CMOE_ISA_LEVELS), "?");
}

static void bytes_round_up_to_whole_ones(void **state)
{
    (void)state;
    static const cmoe_dtype four[] = {CMOE_I4, CMOE_U4, CMOE_E2M1};
    for (int i = 0; i < 3; i++) {
        for (int64_t n = 0; n < 40; n++) {
            assert_int_equal(cmoe_dtype_bytes(four[i], n), (n + 1) / 2);
        }
    }
    assert_int_equal(cmoe_dtype_bytes(CMOE_F32, 7), 28);
    assert_int_equal(cmoe_dtype_bytes(CMOE_BF16, 9), 18);
    assert_int_equal(cmoe_dtype_bytes(CMOE_I64, 3), 24);
    assert_int_equal(cmoe_dtype_bytes(CMOE_E8M0, 3), 3);
    assert_int_equal(cmoe_dtype_bytes(CMOE_NONE, 100), 0);
    assert_int_equal(cmoe_dtype_bytes(CMOE_F32, -5), 0);
    assert_int_equal(cmoe_dtype_bytes(CMOE_DTYPE_COUNT, 5), 0);
    assert_int_equal(cmoe_dtype_bits(CMOE_E4M3FNUZ), 8);
    assert_int_equal(cmoe_dtype_bits(CMOE_NONE), 0);
    assert_int_equal(cmoe_dtype_bits((cmoe_dtype)-1), 0);
}

static void bytes_do_not_wrap(void **state)
{
    (void)state;
    assert_int_equal(cmoe_dtype_bytes(CMOE_I8, INT64_MAX), (size_t)INT64_MAX);
    assert_int_equal(cmoe_dtype_bytes(CMOE_I4, INT64_MAX), (size_t)1 << 62);
    assert_true(cmoe_dtype_bytes(CMOE_F32, INT64_MAX) == SIZE_MAX);
    assert_true(cmoe_dtype_bytes(CMOE_I64, INT64_MAX) == SIZE_MAX);
    assert_true(cmoe_dtype_bytes(CMOE_BF16, INT64_MAX) == SIZE_MAX - 1); /* fits by one */
    assert_true(cmoe_dtype_bytes(CMOE_F32, INT64_C(1) << 61) == (size_t)1 << 63);
}

static void the_version_is_the_headers(void **state)
{
    (void)state;
    assert_string_equal(cmoe_version(), CMOE_VERSION_STRING);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_go_both_ways),    cmocka_unit_test(stages_are_in_order),
        cmocka_unit_test(isa_levels_have_names), cmocka_unit_test(bytes_round_up_to_whole_ones),
        cmocka_unit_test(bytes_do_not_wrap),     cmocka_unit_test(the_version_is_the_headers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
