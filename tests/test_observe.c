/* SPDX-License-Identifier: MIT
 * Calibration sees the largest |x| of routed tokens and the largest |h|, whatever the formats. */
#include "harness.h"

#include <string.h>

/* identity, one expert, w1 = w2 = rows of constants: h = g*u is known by hand. */
static void magnitudes_are_those_of_the_layer(void **state)
{
    (void)state;
    enum { T = 3, H = 4, I = 2 };
    static const char *const schemes[] = {"f32", "bf16", "fp8-tensor:static", "mxfp4-w4a8"};
    /* Token 1 has the largest x, but no expert. */
    const float x[T * H] = {1, -2, 0.5F, 0, 64, 64, 64, 64, 0, 0, 0, -3};
    const float gate_up[2 * I * H] = {1, 1, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0.5F};
    const float down[H * I] = {0};
    const int32_t ids[T] = {0, -1, 0};
    const float weights[T] = {1, 1, 1};
    cmoe_context *const ctx = test_context(1, NULL);
    cmoe_device *const dev = test_device(ctx, "ref");
    for (size_t s = 0; s < sizeof schemes / sizeof schemes[0]; s++) {
        cmoe_problem p = test_problem("t=3 e=1 k=1 h=4 i=2 act=identity stages=quant..combine");
        expect_ok(cmoe_problem_scheme(&p, schemes[s]));
        /* Weights as a calibration has them: before they are quantised. */
        p.w = (cmoe_format){.dtype = CMOE_F32};
        const cmoe_matrix w1 = {.data = gate_up}, w2 = {.data = down};
        const cmoe_weights_desc desc = {.struct_size = sizeof desc, .gate_up = &w1, .down = &w2};
        cmoe_weights *w;
        expect_ok(cmoe_weights_create(dev, &p, &desc, &w));
        uint8_t rows[sizeof x];
        expect_ok(cmoe_convert((cmoe_dtype)p.in, rows, CMOE_F32, x, T * H));
        cmoe_tensors t = {.struct_size = sizeof t, .n_tokens = T, .x = rows};
        int32_t own_ids[T];
        float own_weights[T];
        memcpy(own_ids, ids, sizeof ids);
        memcpy(own_weights, weights, sizeof weights);
        t.topk_ids = own_ids;
        t.topk_weights = own_weights;
        cmoe_observation seen = {.struct_size = sizeof seen};
        expect_ok(cmoe_observe(dev, &p, w, &t, &seen));
        /* Token 0: g = (-1, 0), u = (2, 0); token 2: g = (0, -3), u = (0, -1.5). */
        assert_int_equal(seen.tokens, 2);
        assert_true(seen.x_amax == 3.0F);
        assert_true(seen.mid_amax == 4.5F);
        cmoe_weights_destroy(w);
    }
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
}

static void scales_bring_the_largest_value_to_the_top(void **state)
{
    (void)state;
    const cmoe_format e4m3 = {.dtype = CMOE_E4M3, .scaling = CMOE_SCALE_TENSOR, .fixed = 1};
    const cmoe_format nv = {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_NV, .fixed = 1};
    assert_true(cmoe_static_scale(e4m3, 448.0F) == 1.0F);
    assert_true(cmoe_static_scale(e4m3, 3.0F) == 3.0F / 448.0F);
    assert_true(cmoe_static_scale(nv, 2688.0F) == 1.0F);
    assert_true(cmoe_static_scale(e4m3, 0.0F) == 1.0F);
}

static void missing_arguments_are_named(void **state)
{
    (void)state;
    cmoe_context *const ctx = test_context(1, NULL);
    cmoe_device *const dev = test_device(ctx, "ref");
    const cmoe_problem p = test_problem("t=3 e=1 k=1 h=4 i=2");
    cmoe_observation seen = {.struct_size = sizeof seen};
    expect_error(cmoe_observe(NULL, &p, NULL, NULL, &seen), CMOE_ERR_INVALID, "dev is NULL");
    expect_error(cmoe_observe(dev, NULL, NULL, NULL, &seen), CMOE_ERR_INVALID, "p is NULL");
    expect_error(cmoe_observe(dev, &p, NULL, NULL, &seen), CMOE_ERR_INVALID, "w is NULL");
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(magnitudes_are_those_of_the_layer),
        cmocka_unit_test(scales_bring_the_largest_value_to_the_top),
        cmocka_unit_test(missing_arguments_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
