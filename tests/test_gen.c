/* SPDX-License-Identifier: MIT
 * ctest: labels=portable
 * The generator of check, bench and the property tests: same seed, same bytes; every kind of damage
 * to a call is noticed; exact inputs are what they claim. */
#include "cli/gen.h"
#include "harness.h"

#include <stdio.h>
#include <string.h>

static void make(const char *text, enum gen_kind kind, uint64_t seed, struct gen_call *out)
{
    cmoe_problem p;
    cmoe_problem_init(&p);
    assert_int_equal(cmoe_problem_parse(&p, text), CMOE_OK);
    assert_int_equal(cmoe_problem_check(&p), CMOE_OK);
    const struct gen_options options = {.kind = kind, .seed = seed};
    assert_int_equal(gen_call_create(&p, &options, out), CMOE_OK);
}

static const char layer[] = "t=6 e=5 k=2 h=40 i=36 b1 b2 scheme=int4-w4a16:zp";

static void same_seed_same_bytes(void **state)
{
    (void)state;
    struct gen_call a, b, c;
    make(layer, GEN_REAL, 7, &a);
    make(layer, GEN_REAL, 7, &b);
    make(layer, GEN_REAL, 8, &c);
    const size_t row = (size_t)a.weights.gate_up[4].row_stride;
    assert_int_equal(a.tensors.x_stride, b.tensors.x_stride);
    assert_memory_equal(a.tensors.x, b.tensors.x, 80);
    assert_memory_equal(a.weights.gate_up[4].data, b.weights.gate_up[4].data, row);
    assert_memory_equal(a.weights.down[4].scale, b.weights.down[4].scale, 8);
    assert_memory_not_equal(a.tensors.x, c.tensors.x, 80);
    assert_memory_not_equal(a.weights.gate_up[4].data, c.weights.gate_up[4].data, 20);
    gen_call_free(&a);
    gen_call_free(&b);
    gen_call_free(&c);
}

static void expect_aligned(const struct gen_call *call, size_t to)
{
    struct gen_span span;
    for (int i = 0; gen_span_at(call, i, &span); i++)
        assert_int_equal((uintptr_t)span.data % to, 0);
    const cmoe_tensors *const t = &call->tensors;
    const cmoe_weights_desc *const w = &call->weights;
    const int bits = cmoe_dtype_bits((cmoe_dtype)call->problem.logits);
    assert_int_equal((t->x_stride | t->y_stride | t->logits_stride * bits / 8) % 16, 0);
    for (int e = 0; e < cmoe_problem_local_experts(&call->problem); e++)
        assert_int_equal((w->gate_up[e].row_stride | w->down[e].row_stride) % 16, 0);
}

/* One kind of every problem's inputs is for copy engines, the other is not; another seed changes them about. */
static void checks_take_turns(void **state)
{
    (void)state;
    int aligned = 0;
    for (uint64_t seed = 0; seed < 200; seed++) {
        cmoe_problem p;
        gen_problem(seed, &p);
        const struct gen_options real = gen_check_options(&p, GEN_REAL, seed),
                                 exact = gen_check_options(&p, GEN_EXACT, seed),
                                 next = gen_check_options(&p, GEN_REAL, seed + 1);
        assert_true(real.aligned != exact.aligned && real.aligned != next.aligned);
        assert_true(real.kind == GEN_REAL && exact.kind == GEN_EXACT && exact.seed == seed);
        aligned += real.aligned;
        struct gen_call call;
        assert_int_equal(gen_call_create(&p, real.aligned ? &real : &next, &call), CMOE_OK);
        expect_aligned(&call, 64);
        gen_call_free(&call);
    }
    assert_in_range(aligned, 50, 150);
}

/* Change one byte, and see that it is noticed and what is said. */
static void damage(struct gen_call *call, const void *at, const char *what)
{
    unsigned char *byte = (unsigned char *)(uintptr_t)at;
    assert_null(gen_call_damage(call));
    *byte ^= 1;
    const char *said = gen_call_damage(call);
    assert_non_null(said);
    assert_non_null(strstr(said, what));
    *byte ^= 1;
    assert_null(gen_call_damage(call));
}

static void damage_is_noticed(void **state)
{
    (void)state;
    struct gen_call call;
    /* A seed whose rows of y have gaps. */
    uint64_t seed = 0;
    for (make(layer, GEN_REAL, ++seed, &call); call.tensors.y_stride <= call.y_row;
         make(layer, GEN_REAL, ++seed, &call))
        gen_call_free(&call);
    const unsigned char *y = call.tensors.y;
    const size_t bytes = (size_t)(call.y_rows * call.tensors.y_stride);
    damage(&call, y - 1, "before the start");
    damage(&call, y + bytes, "past the end");
    damage(&call, y + call.y_row, "between the rows");
    damage(&call, call.tensors.x, "changed an input");
    damage(&call, call.tensors.logits, "changed an input");
    damage(&call, call.weights.gate_up[0].data, "changed an input");
    damage(&call, call.weights.down[4].zero, "changed an input");
    damage(&call, call.weights.down[4].bias, "changed an input");
    /* Writing y itself is no damage, and a reset poisons it again. */
    memset(gen_y_row(&call, 3), 0, (size_t)call.y_row);
    assert_null(gen_call_damage(&call));
    gen_call_reset(&call);
    assert_int_equal(*(unsigned char *)gen_y_row(&call, 3), 0xff);
    gen_call_free(&call);
}

static void wrong_orders_are_noticed(void **state)
{
    (void)state;
    const char *const formats[] = {"index", "packed", "flat"};
    for (int f = 0; f < 3; f++) {
        char text[128];
        snprintf(text, sizeof text, "t=9 e=5 k=2 h=8 i=8 stages=gemm1..combine sort=%s bm=4",
                 formats[f]);
        struct gen_call call;
        make(text, GEN_EXACT, 3, &call);
        assert_null(gen_sort_difference(&call));
        /* Two entries change places. */
        int32_t *ids = call.tensors.sorted_ids;
        const int32_t first = ids[0];
        ids[0] = ids[1];
        ids[1] = first;
        assert_non_null(gen_sort_difference(&call));
        gen_call_free(&call);
    }
}

/* Dynamic scales come out as powers of two, and the values quantise without loss. */
static void exact_rows_have_exact_scales(void **state)
{
    (void)state;
    const char *const schemes[] = {"int8-w8a8", "fp8-token", "fp8-token:fnuz", "fp8-token:e5m2",
                                   "fp8-block"};
    for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++) {
        char text[128];
        snprintf(text, sizeof text, "t=5 e=3 k=2 h=140 i=20 scheme=%s:f32", schemes[i]);
        if (strchr(schemes[i], ':'))
            snprintf(text, sizeof text, "t=5 e=3 k=2 h=140 i=20 scheme=%s,f32", schemes[i]);
        struct gen_call call;
        make(text, GEN_EXACT, 11, &call);
        const cmoe_problem *p = &call.problem;
        float x[140], back[140], scale[2] = {0};
        unsigned char codes[140];
        assert_int_equal(p->in, CMOE_F32);
        memcpy(x, call.tensors.x, sizeof x);
        assert_int_equal(cmoe_quantize_rows(p->x, x, 1, 140, NULL, codes, scale, NULL), CMOE_OK);
        assert_int_equal(cmoe_dequantize_rows(p->x, codes, scale, NULL, 1, 140, back), CMOE_OK);
        assert_memory_equal(x, back, sizeof x);
        uint32_t bits;
        memcpy(&bits, &scale[0], sizeof bits);
        assert_int_equal(bits & 0x7fffff, 0);
        gen_call_free(&call);
    }
}

static void impossible_exact_inputs_have_a_reason(void **state)
{
    (void)state;
    const char *const texts[] = {"e=2 k=1 h=64 i=8 act=situv2", "e=2 k=1 h=64 i=8 limit=7",
                                 "e=2 k=1 h=64 i=8 scale=2.827", "e=2 k=1 h=3 i=8",
                                 "e=2 k=1 h=64 i=8 act=relu2 scheme=f16"};
    const char *why = NULL;
    cmoe_problem p;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        cmoe_problem_init(&p);
        assert_int_equal(cmoe_problem_parse(&p, texts[i]), CMOE_OK);
        assert_false(gen_exact_possible(&p, &why));
        assert_non_null(why);
    }
    cmoe_problem_init(&p);
    assert_int_equal(cmoe_problem_parse(&p, "e=2 k=1 h=64 i=8"), CMOE_OK);
    assert_true(gen_exact_possible(&p, &why));
}

static void random_problems_are_valid_and_varied(void **state)
{
    (void)state;
    uint32_t flags = 0;
    unsigned acts = 0, weights = 0;
    for (uint64_t seed = 0; seed < 500; seed++) {
        cmoe_problem p;
        gen_problem(seed, &p);
        assert_int_equal(cmoe_problem_check(&p), CMOE_OK);
        flags |= p.flags;
        acts |= 1u << p.act;
        weights |= 1u << p.w.dtype;
    }
    assert_int_equal(acts, (1u << CMOE_ACTIVATION_COUNT) - 1);
    const uint32_t rare = CMOE_NONDETERMINISTIC | CMOE_REDUCED | CMOE_FAST_SUMS;
    for (int bit = 0; bit < 20; bit++)
        if ((rare >> bit & 1) == 0) assert_true((flags >> bit & 1) != 0);
    for (int dtype = CMOE_F32; dtype <= CMOE_E2M1; dtype++)
        if (dtype != CMOE_E8M0) assert_true((weights >> dtype & 1) != 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_seed_same_bytes),
        cmocka_unit_test(checks_take_turns),
        cmocka_unit_test(damage_is_noticed),
        cmocka_unit_test(wrong_orders_are_noticed),
        cmocka_unit_test(exact_rows_have_exact_scales),
        cmocka_unit_test(impossible_exact_inputs_have_a_reason),
        cmocka_unit_test(random_problems_are_valid_and_varied),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
