/* SPDX-License-Identifier: MIT
 * ctest: labels=kernels
 * What broke elsewhere: one test for each published failure class that a CPU library can have, named
 * after the thread it was reported in. docs/field-failures.md lists them. */
#include "harness_call.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- a layer whose inputs a test may change -----------------------------------------------------*/

struct layer {
    struct rig *rig;
    struct prepared made;
    cmoe_tensors t; /* starts as the generated call's */
    int32_t *ids;   /* [T, S], writable; what topk_ids points to unless the plan routes */
};

static void layer_make(struct layer *l, struct rig *rig, const char *text)
{
    const cmoe_problem p = test_problem(text);
    struct gen_options options = call_options(&rig->guard, GEN_REAL, test_seed());
    options.plain = true;
    l->rig = rig;
    expect_ok(call_prepare(rig, &p, &options, &l->made));
    l->t = l->made.call.tensors;
    const size_t n = (size_t)(p.max_tokens * cmoe_problem_slots(&p));
    l->ids = guard_alloc(&rig->guard, n * 4, 4, GUARD_OUTPUT);
    if (p.first == CMOE_STAGE_ROUTE) return;
    for (size_t i = 0; i < n; i++) {
        l->ids[i] = l->t.topk_ids64 ? (int32_t)l->t.topk_ids64[i] : l->t.topk_ids[i];
    }
    l->t.topk_ids = l->ids;
    l->t.topk_ids64 = NULL;
}

/* A writable copy of x. */
static void *own_x(struct layer *l)
{
    const cmoe_problem *const p = &l->made.call.problem;
    const size_t n = (size_t)p->max_tokens * cmoe_dtype_bytes((cmoe_dtype)p->in, p->hidden);
    void *const x = guard_alloc(&l->rig->guard, n, 4, GUARD_OUTPUT);
    memcpy(x, l->t.x, n);
    l->t.x = x;
    return x;
}

/* Both devices against the reference for the changed inputs; y stays as cpu left it. */
static void layer_check(struct layer *l)
{
    struct prepared *const m = &l->made;
    expect_ok(
        cmoe_reference(l->rig->ctx, &m->call.problem, m->canonical, &l->t, m->want, m->bound));
    cmoe_device *const devices[] = {l->rig->ref, l->rig->cpu};
    for (int d = 0; d < 2; d++) {
        call_reset_y(l->rig, &m->call);
        call_execute(l->rig, devices[d], &m->call.problem, m->canonical, NULL, &l->t);
        const struct outcome out = call_judge(&m->call, GEN_REAL, m->want, m->bound);
        if (out.kind == OUTCOME_WRONG) fail_with("%s: %s", d ? "cpu" : "ref", out.why);
    }
}

static void layer_free(struct layer *l)
{
    call_done(&l->made);
}

static float y_at(const struct layer *l, int row, int column)
{
    uint32_t code = 0;
    const cmoe_problem *const p = &l->made.call.problem;
    const size_t size = cmoe_dtype_bytes((cmoe_dtype)p->y, 1);
    memcpy(&code, (char *)gen_y_row(&l->made.call, row) + (size_t)column * size, size);
    return cmoe_decode((cmoe_dtype)p->y, code);
}

static bool row_is(const struct layer *l, int row, bool (*what)(double))
{
    for (int c = 0; c < l->made.call.problem.hidden; c++) {
        if (!what((double)y_at(l, row, c))) return false;
    }
    return true;
}

static bool is_zero(double v)
{
    return v == 0;
}

static bool is_finite(double v)
{
    return isfinite(v);
}

static bool is_nan(double v)
{
    return isnan(v);
}

/* --- ids ----------------------------------------------------------------------------------------*/

/* Stale slots held ids past the last expert; kernels checked only the sign before they read the map. */
static void vllm_50845_ids_past_experts(void **state)
{
    struct layer l;
    layer_make(&l, *state, "t=6 e=8 k=3 h=32 i=48 local=5 map stages=sort..combine");
    static const int32_t garbage[] = {8, 9, 1 << 20, INT32_MAX, INT32_MAX - 7, 1000};
    for (int i = 0; i < 6; i++) {
        l.ids[3 * i + i % 3] = garbage[i];
    }
    layer_check(&l);
    layer_free(&l);
}

/* Routers mark padding with -1, and an expert's address was computed from it. */
static void gguf_plugin_130_rows_of_minus_one(void **state)
{
    struct layer l;
    layer_make(&l, *state, "t=6 e=8 k=2 h=32 i=48 stages=sort..combine");
    for (int i = 0; i < 6; i++) {
        l.ids[4 + i % 2] = l.ids[10 + i % 2] = -1;
    }
    layer_check(&l);
    assert_true(row_is(&l, 2, is_zero) && row_is(&l, 5, is_zero));
    assert_false(row_is(&l, 1, is_zero));
    layer_free(&l);
}

/* The sort compared a signed id with the number of experts only, and stored before its table. */
static void aiter_4839_negative_ids_in_the_sort(void **state)
{
    struct layer l;
    layer_make(&l, *state, "t=40 e=8 k=2 h=32 i=48 stages=sort..combine");
    for (int i = 0; i < 80; i += 3) {
        l.ids[i] = i % 2 ? INT32_MIN : -1 - i;
    }
    layer_check(&l);
    layer_free(&l);
}

/* The combine looked up slots of other ranks, and read what nobody had written for them. */
static void vllm_48371_combine_of_skipped_slots(void **state)
{
    struct rig *const rig = *state;
    const cmoe_problem p = test_problem("t=3 e=6 k=2 h=16 i=16 local=3 map y=f32 stages=combine");
    int32_t ids[6] = {0, -1, 4, 1, 7, -3}, map[6] = {2, 0, 1, -1, -1, 9};
    float weights[6] = {2, 2, 2, 2, 2, 2}, z[6 * 16], y[3 * 16];
    for (int i = 0; i < 6 * 16; i++) {
        const bool computed = i / 16 == 0 || i / 16 == 3;
        z[i] = computed ? 1.5f : NAN;
    }
    const cmoe_tensors t = {.struct_size = sizeof t,
                            .n_tokens = 3,
                            .topk_ids = ids,
                            .topk_weights = weights,
                            .expert_map = map,
                            .z = z,
                            .y = y};
    cmoe_device *const devices[] = {rig->ref, rig->cpu};
    for (int d = 0; d < 2; d++) {
        memset(y, 0xff, sizeof y);
        guard_reset(&rig->guard);
        call_execute(rig, devices[d], &p, NULL, NULL, &t);
        for (int i = 0; i < 3 * 16; i++) {
            assert_true(y[i] == (i / 16 < 2 ? 3.0f : 0.0f));
        }
    }
}

/* Rows of padding held NaN logits: one expert came out k times, and its list overflowed. */
static void vllm_39391_nan_logits(void **state)
{
    struct layer l;
    layer_make(&l, *state, "t=5 e=8 k=4 h=32 i=48 renorm");
    float *const logits = guard_alloc(&l.rig->guard, 40 * 4, 4, GUARD_OUTPUT);
    memcpy(logits, l.t.logits, 40 * 4);
    logits[8 + 3] = NAN;
    for (int e = 0; e < 8; e++) {
        logits[24 + e] = NAN;
    }
    l.t.logits = logits;
    int32_t ids[20];
    float weights[20];
    l.t.topk_ids = ids;
    l.t.topk_weights = weights;
    layer_check(&l);
    for (int i = 0; i < 20; i++) {
        assert_in_range(ids[i], 0, 7);
        for (int j = i / 4 * 4; j < i; j++) {
            assert_int_not_equal(ids[i], ids[j]);
        }
    }
    /* The damage stays where it is, and shows. */
    assert_true(row_is(&l, 1, is_nan) && row_is(&l, 3, is_nan));
    assert_true(row_is(&l, 0, is_finite) && row_is(&l, 2, is_finite) && row_is(&l, 4, is_finite));
    layer_free(&l);
}

/* A row of NaN only was routed to expert N + 1. */
static void sglang_30079_row_of_nan_only(void **state)
{
    struct rig *const rig = *state;
    for (int e = 1; e <= 9; e++) {
        char text[64];
        snprintf(text, sizeof text, "t=1 e=%d k=%d h=8 i=8 stages=route", e, e < 3 ? 1 : 3);
        const cmoe_problem p = test_problem(text);
        float logits[9], weights[3];
        int32_t ids[3] = {-7, -7, -7};
        for (int i = 0; i < 9; i++) {
            logits[i] = NAN;
        }
        const cmoe_tensors t = {.struct_size = sizeof t,
                                .n_tokens = 1,
                                .logits = logits,
                                .topk_ids = ids,
                                .topk_weights = weights};
        guard_reset(&rig->guard);
        call_execute(rig, rig->cpu, &p, NULL, NULL, &t);
        for (int i = 0; i < p.topk; i++) {
            assert_int_equal(ids[i], i);
        }
    }
}

/* --- expert counts ------------------------------------------------------------------------------*/

/* Kernels were instantiated for listed counts: 160 had none, 384 only failed for long prompts, and
 * (128, 8) had wrong weights. */
static void vllm_50982_aiter_2359_metax_270_expert_counts(void **state)
{
    static const struct {
        int experts, k, tokens;
    } counts[] = {{160, 6, 9},  {384, 8, 3}, {384, 8, 700}, {128, 8, 33},
                  {257, 9, 17}, {7, 7, 5},   {1, 1, 4},     {2048, 32, 5}};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        char text[128];
        struct layer l;
        snprintf(text, sizeof text, "t=%d e=%d k=%d h=16 i=16 renorm y=f32 in=f32 scheme=f32",
                 counts[i].tokens, counts[i].experts, counts[i].k);
        layer_make(&l, *state, text);
        layer_check(&l);
        assert_true(row_is(&l, counts[i].tokens - 1, is_finite));
        layer_free(&l);
    }
}

/* More experts were asked of the groups that stay than they have. */
static void vllm_29439_groups_too_small(void **state)
{
    (void)state;
    static const char *const refused[] = {
        "t=1 e=8 k=5 h=8 i=8 groups=4/2",
        "t=1 e=10 k=2 h=8 i=8 groups=4/2",
        "t=1 e=8 k=2 h=8 i=8 groups=4/5",
        "t=1 e=4 k=2 h=8 i=8 groups=4/2 gsum2",
        "t=1 e=4 k=5 h=8 i=8",
    };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        const cmoe_problem p = test_problem(refused[i]);
        if (cmoe_problem_check(&p) != CMOE_ERR_INVALID) fail_with("accepted: %s", refused[i]);
        assert_true(strlen(cmoe_last_error()) > 20);
    }
}

/* --- token counts -------------------------------------------------------------------------------*/

/* No tokens: a NULL pointer was refused, a power of two was missed, a quotient had divisor 0. */
static void sglang_38773_22455_tokenspeed_415_no_tokens(void **state)
{
    struct rig *const rig = *state;
    static const char *const problems[] = {
        "t=8 e=6 k=2 h=32 i=32", "t=8 e=6 k=2 h=8 i=8 stages=route",
        "t=8 e=6 k=2 h=32 i=32 scheme=mxfp4-w4a4", "t=0 e=6 k=2 h=32 i=32"};
    for (int i = 0; i < 4; i++) {
        const cmoe_problem p = test_problem(problems[i]);
        cmoe_plan *plan = NULL;
        expect_ok(cmoe_plan_create(rig->cpu, &p, NULL, NULL, &plan));
        const cmoe_tensors t = {.struct_size = sizeof t};
        expect_ok(cmoe_execute(plan, &t, NULL, 0, NULL));
        cmoe_plan_destroy(plan);
    }
}

/* Only some token counts were right: others faulted or shifted the expert's token list. */
static void tt_metal_50669_every_token_count(void **state)
{
    for (int tokens = 1; tokens <= 130; tokens += tokens < 70 ? 1 : 20) {
        char text[96];
        struct layer l;
        snprintf(text, sizeof text, "t=%d e=8 k=8 h=24 i=16 scheme=f32", tokens);
        layer_make(&l, *state, text);
        layer_check(&l);
        layer_free(&l);
    }
}

/* One token in a block of 16: the rest of the block was read, and NaN came out. */
static void aiter_4032_one_token(void **state)
{
    static const char *const schemes[] = {"fp8-block", "mxfp4-w4a4", "nvfp4-w4a4", "int8-smooth"};
    for (int i = 0; i < 4; i++) {
        char text[96];
        struct layer l;
        snprintf(text, sizeof text, "t=1 e=8 k=2 h=160 i=96 scheme=%s", schemes[i]);
        layer_make(&l, *state, text);
        layer_check(&l);
        assert_true(row_is(&l, 0, is_finite));
        layer_free(&l);
    }
}

/* A rank that no token was routed to: its zero-size tensors broke the dispatcher. */
static void megatron_3626_rank_without_tokens(void **state)
{
    struct layer l;
    layer_make(&l, *state, "t=4 e=8 k=2 h=32 i=32 first=6 local=2 stages=sort..combine");
    for (int i = 0; i < 8; i++) {
        l.ids[i] = i % 6;
    }
    layer_check(&l);
    for (int row = 0; row < 4; row++) {
        assert_true(row_is(&l, row, is_zero));
    }
    layer_free(&l);
}

/* --- numbers ------------------------------------------------------------------------------------*/

static const char *const quantized[] = {"fp8-tensor", "fp8-token",  "fp8-block",  "int8-w8a8",
                                        "mxfp8",      "mxfp4-w4a4", "nvfp4-w4a4", "mxfp4-mxfp8"};
enum { QUANTIZED = sizeof quantized / sizeof quantized[0] };

/* Blocks of zeros had the scale 0, whose reciprocal is infinite; and rows near 1e-23 too. */
static void compressed_tensors_595_flashinfer_2595_dead_rows(void **state)
{
    for (int i = 0; i < QUANTIZED; i++) {
        char text[96];
        struct layer l;
        snprintf(text, sizeof text, "t=4 e=4 k=2 h=64 i=64 in=f32 scheme=%s:f32", quantized[i]);
        layer_make(&l, *state, text);
        float *const x = own_x(&l);
        for (int c = 0; c < 64; c++) {
            x[c] = 0;
            x[64 + c] = c % 3 ? 1e-23f : -3e-24f;
            x[128 + c] = c % 2 ? 1e-44f : 0; /* denormal */
        }
        layer_check(&l);
        for (int row = 0; row < 4; row++) {
            assert_true(row_is(&l, row, is_finite));
        }
        assert_true(row_is(&l, 0, is_zero));
        assert_false(row_is(&l, 3, is_zero));
        layer_free(&l);
    }
}

/* NaN in padding rows reached real rows through a scale they share. */
static void vllm_40047_padding_shares_no_scale(void **state)
{
    for (int i = 0; i < QUANTIZED; i++) {
        char text[96];
        struct layer l;
        snprintf(text, sizeof text, "t=4 e=4 k=2 h=64 i=64 stages=quant..combine scheme=%s:f32",
                 quantized[i]);
        layer_make(&l, *state, text);
        float *const x = own_x(&l);
        for (int c = 0; c < 64; c++) {
            x[64 + c] = c % 2 ? NAN : INFINITY;
        }
        l.ids[2] = -1;
        l.ids[3] = 99;
        layer_check(&l);
        assert_true(row_is(&l, 1, is_zero));
        assert_true(row_is(&l, 0, is_finite) && row_is(&l, 2, is_finite) &&
                    row_is(&l, 3, is_finite));
        layer_free(&l);
    }
}

/* The scale came from the exponent of the largest value alone, and values above 6 saturated. */
static void vllm_43557_largest_value_of_a_block(void **state)
{
    (void)state;
    const cmoe_format f = {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX};
    for (int step = 0; step <= 128; step++) {
        float v[32] = {0}, back[32];
        uint8_t codes[16], scale;
        v[5] = 4.0f + (float)step / 32; /* 4 .. 8: all mantissas of one exponent */
        expect_ok(cmoe_quantize_rows(f, v, 1, 32, NULL, codes, &scale, NULL));
        expect_ok(cmoe_dequantize_rows(f, codes, &scale, NULL, 1, 32, back));
        /* within half of the widest step, which is 2 of the scale's units */
        assert_true(fabsf(back[5] - v[5]) <= ldexpf(1, scale - 127));
    }
}

/* A zero block was given the scale 1, which overflowed the scales' own type to NaN. */
static void model_optimizer_1397_zero_block_scale(void **state)
{
    (void)state;
    const cmoe_format f = {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_NV};
    float w[64] = {0}, back[64];
    w[20] = 1e-6f;
    w[40] = -3e-7f;
    uint8_t codes[32], scales[4];
    float global = -1;
    expect_ok(cmoe_quantize_weight(f, w, 1, 64, codes, scales, NULL, &global));
    const cmoe_matrix m = {.data = codes, .scale = scales, .global = &global};
    expect_ok(cmoe_dequantize_weight(f, &m, 1, 64, back));
    for (int i = 0; i < 64; i++) {
        assert_true(isfinite(back[i]) && (w[i] != 0 || back[i] == 0));
    }
    assert_true(fabsf(back[20] - 1e-6f) < 1e-7f);
}

/* --- buffers and repetition ---------------------------------------------------------------------*/

/* The output was taken as it came from the allocator, and summed into. */
static void aiter_575_output_holds_garbage(void **state)
{
    struct layer l;
    layer_make(&l, *state, "t=9 e=4 k=2 h=32 i=32 scheme=f32");
    static const unsigned char garbage[] = {0xff, 0x7f, 0x00, 0x55};
    float first[9 * 32];
    for (int i = 0; i < 4; i++) {
        memset(l.t.y, garbage[i], sizeof first);
        call_execute(l.rig, l.rig->cpu, &l.made.call.problem, l.made.canonical, NULL, &l.t);
        if (i == 0) memcpy(first, l.t.y, sizeof first);
        assert_same_bytes(l.t.y, first, sizeof first);
    }
    layer_check(&l);
    layer_free(&l);
}

/* Partial sums met in the order in which workers finished: forty repeats, forty results. */
static void vllm_56887_flashinfer_5221_unsloth_1258_forty_repeats(void **state)
{
    (void)state;
    struct rig rig;
    rig_open(&rig, 5);
    struct layer l;
    layer_make(&l, &rig, "t=33 e=8 k=4 h=96 i=160 scheme=bf16");
    const size_t bytes = (size_t)(l.made.call.y_rows * l.made.call.y_row);
    unsigned char *const first = malloc(bytes);
    for (int i = 0; i < 40; i++) {
        call_reset_y(&rig, &l.made.call);
        call_execute(&rig, rig.cpu, &l.made.call.problem, l.made.canonical, NULL, &l.t);
        if (i == 0) memcpy(first, l.t.y, bytes);
        assert_same_bytes(l.t.y, first, bytes);
    }
    free(first);
    layer_check(&l);
    layer_free(&l);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vllm_50845_ids_past_experts),
        cmocka_unit_test(gguf_plugin_130_rows_of_minus_one),
        cmocka_unit_test(aiter_4839_negative_ids_in_the_sort),
        cmocka_unit_test(vllm_48371_combine_of_skipped_slots),
        cmocka_unit_test(vllm_39391_nan_logits),
        cmocka_unit_test(sglang_30079_row_of_nan_only),
        cmocka_unit_test(vllm_50982_aiter_2359_metax_270_expert_counts),
        cmocka_unit_test(vllm_29439_groups_too_small),
        cmocka_unit_test(sglang_38773_22455_tokenspeed_415_no_tokens),
        cmocka_unit_test(tt_metal_50669_every_token_count),
        cmocka_unit_test(aiter_4032_one_token),
        cmocka_unit_test(megatron_3626_rank_without_tokens),
        cmocka_unit_test(compressed_tensors_595_flashinfer_2595_dead_rows),
        cmocka_unit_test(vllm_40047_padding_shares_no_scale),
        cmocka_unit_test(vllm_43557_largest_value_of_a_block),
        cmocka_unit_test(model_optimizer_1397_zero_block_scale),
        cmocka_unit_test(aiter_575_output_holds_garbage),
        cmocka_unit_test(vllm_56887_flashinfer_5221_unsloth_1258_forty_repeats),
    };
    return cmocka_run_group_tests(tests, rig_setup, rig_teardown);
}
