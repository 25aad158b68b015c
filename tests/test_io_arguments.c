/* SPDX-License-Identifier: MIT
 * NULL arguments of libcmoe-io are refused by name, and releasing nothing is fine.
 * ctest: labels=portable */
#include "harness.h"

#include <cmoe/io.h>

static void test_null_is_named(void **state)
{
    (void)state;
    cmoe_array array = {0};
    cmoe_checkpoint *checkpoint;
    cmoe_model_config config = {0};
    cmoe_layer layer = {0};
    cmoe_quantized *quantized;
    cmoe_replay replay;
    cmoe_record call = {0};
    const cmoe_status bad = CMOE_ERR_INVALID;
    expect_error(cmoe_npy_read(NULL, &array), bad, "cmoe_npy_read: path is NULL");
    expect_error(cmoe_npy_read("a", NULL), bad, "cmoe_npy_read: out is NULL");
    expect_error(cmoe_npy_parse(NULL, 0, &array), bad, "image is NULL");
    expect_error(cmoe_npy_parse("a", 1, NULL), bad, "out is NULL");
    expect_error(cmoe_npy_write(NULL, &array), bad, "path is NULL");
    expect_error(cmoe_npy_write("a", NULL), bad, "array is NULL");
    expect_error(cmoe_safetensors_check(NULL, 8, 8), bad, "image is NULL");
    expect_error(cmoe_checkpoint_open(NULL, &checkpoint), bad, "path is NULL");
    expect_error(cmoe_checkpoint_open("a", NULL), bad, "out is NULL");
    expect_error(cmoe_config_parse(NULL, 0, &config), bad, "json is NULL");
    expect_error(cmoe_config_parse("{}", 2, NULL), bad, "out is NULL");
    expect_error(cmoe_config_read(NULL, &config), bad, "path is NULL");
    expect_error(cmoe_config_read("a", NULL), bad, "out is NULL");
    expect_error(cmoe_layer_open(NULL, &config, 0, &layer), bad, "c is NULL");
    expect_error(cmoe_layer_quantize(NULL, &config.problem, &quantized), bad, "layer is NULL");
    expect_error(cmoe_layer_quantize(&layer, NULL, &quantized), bad, "p is NULL");
    expect_error(cmoe_layer_quantize(&layer, &config.problem, NULL), bad, "out is NULL");
    expect_error(cmoe_record_read(NULL, &replay), bad, "dir is NULL");
    expect_error(cmoe_record_read("a", NULL), bad, "out is NULL");
    expect_error(cmoe_record_write(NULL, &call), bad, "dir is NULL");
    expect_error(cmoe_record_write("a", NULL), bad, "call is NULL");
    expect_error(cmoe_record_write("a", &call), bad, "call->problem is NULL");
    call.problem = &config.problem;
    expect_error(cmoe_record_write("a", &call), bad, "call->tensors is NULL");
}

static void test_releasing_nothing(void **state)
{
    (void)state;
    cmoe_array array = {0};
    cmoe_layer layer = {0};
    cmoe_replay replay = {0};
    cmoe_array_free(NULL);
    cmoe_array_free(&array);
    cmoe_checkpoint_close(NULL);
    cmoe_layer_free(NULL);
    cmoe_layer_free(&layer);
    cmoe_quantized_free(NULL);
    cmoe_replay_free(NULL);
    cmoe_replay_free(&replay);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_null_is_named),
        cmocka_unit_test(test_releasing_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
