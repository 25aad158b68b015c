/* SPDX-License-Identifier: MIT
 * ctest: labels=kernels,threads cost=20
 * Whole layers on the cpu backend: within the bound of the reference, the same bits for any number
 * of threads and any executor, the same bits for a token whatever tokens are beside it, and no
 * kernel above the cap. */
#include "harness.h"

#include "backends/cpu/cpuid.h"
#include "backends/cpu/gemm_item.h"
#include "core/device.h"
#include "core/numeric.h"
#include "harness_threads.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- a layer's inputs ----------------------------------------------------------------------- */

struct layer {
    cmoe_problem p;
    struct guard guard;
    cmoe_matrix *matrices; /* gate|up of every expert, then down */
    cmoe_weights_desc desc;
    cmoe_tensors t;
    size_t y_bytes;
    int64_t y_values;
};

static void *values(struct guard *g, struct rng *rng, cmoe_dtype dtype, int64_t n, double scale)
{
    const size_t size = (size_t)cmoe_dtype_bits(dtype) / 8;
    void *const data = guard_alloc(g, (size_t)n * size, size, GUARD_INPUT);
    for (int64_t i = 0; i < n; i++)
        cmoe__store(dtype, data, i, (float)(rng_normal(rng) * scale));
    return data;
}

static cmoe_matrix matrix(struct layer *l, struct rng *rng, int64_t rows, int64_t cols, bool biased)
{
    const cmoe_dtype dtype = (cmoe_dtype)l->p.w.dtype;
    return (cmoe_matrix){
        .data = values(&l->guard, rng, dtype, rows * cols, 0.3),
        .bias = biased ? values(&l->guard, rng, CMOE_F32, rows, 0.5) : NULL,
    };
}

static void layer_make(struct layer *l, const char *text)
{
    struct rng rng = {test_seed()};
    *l = (struct layer){.p = test_problem(text)};
    const cmoe_problem *const p = &l->p;
    const int experts = cmoe_problem_local_experts(p);
    const int64_t slots = cmoe_problem_slots(p);
    guard_init(&l->guard);
    l->matrices = calloc(2 * (size_t)experts, sizeof *l->matrices);
    assert_non_null(l->matrices);
    for (int e = 0; e < experts; e++) {
        l->matrices[e] = matrix(l, &rng, cmoe_problem_rows1(p), p->hidden, p->flags & CMOE_BIAS1);
        l->matrices[experts + e] = matrix(l, &rng, p->hidden, p->inter, p->flags & CMOE_BIAS2);
    }
    l->desc = (cmoe_weights_desc){
        .struct_size = sizeof l->desc, .gate_up = l->matrices, .down = l->matrices + experts};
    l->y_values = p->max_tokens * (p->flags & CMOE_NO_REDUCE ? slots : 1) * p->hidden;
    l->y_bytes = cmoe_dtype_bytes((cmoe_dtype)p->y, l->y_values);
    l->t = (cmoe_tensors){
        .struct_size = sizeof l->t,
        .n_tokens = p->max_tokens,
        .logits =
            values(&l->guard, &rng, (cmoe_dtype)p->logits, (int64_t)p->max_tokens * p->experts, 2),
        .router_w = values(&l->guard, &rng, CMOE_F32, (int64_t)p->experts * p->hidden, 0.2),
        .x = values(&l->guard, &rng, (cmoe_dtype)p->in, (int64_t)p->max_tokens * p->hidden, 1),
        .y = guard_alloc(&l->guard, l->y_bytes, 4, GUARD_OUTPUT),
    };
    guard_freeze(&l->guard);
}

static void layer_free(struct layer *l)
{
    assert_true(guard_check(&l->guard));
    free(l->matrices);
    guard_end(&l->guard);
}

/* Run the layer on a context of the test's; path: the kernels' names, or NULL. */
static void layer_run(struct layer *l, cmoe_context *ctx, const char *format, const char *pin,
                      char *path, size_t path_size)
{
    struct guard g;
    cmoe_weights *w;
    cmoe_plan *plan;
    cmoe_device *const dev = test_device(ctx, "cpu");
    const cmoe_plan_options options = {.struct_size = sizeof options, .pin = pin};
    guard_init(&g);
    l->desc.format1 = l->desc.format2 = format;
    expect_ok(cmoe_weights_create(dev, &l->p, &l->desc, &w));
    expect_ok(cmoe_plan_create(dev, &l->p, w, &options, &plan));
    void *const workspace = test_workspace(&g, plan);
    guard_poison(&l->guard, l->t.y);
    expect_ok(cmoe_execute(plan, &l->t, workspace, cmoe_plan_workspace_size(plan), NULL));
    if (path) cmoe_plan_path(plan, l->t.n_tokens, path, path_size);
    assert_true(guard_check(&g));
    cmoe_plan_destroy(plan);
    cmoe_weights_destroy(w);
    cmoe_device_close(dev);
    guard_end(&g);
}

static void check_against_reference(struct layer *l, cmoe_context *ctx)
{
    cmoe_weights *w;
    cmoe_device *const dev = test_device(ctx, "cpu");
    double *const want = malloc((size_t)l->y_values * sizeof *want);
    double *const bound = malloc((size_t)l->y_values * sizeof *bound);
    assert_true(want && bound);
    l->desc.format1 = l->desc.format2 = NULL;
    expect_ok(cmoe_weights_create(dev, &l->p, &l->desc, &w));
    expect_ok(cmoe_reference(ctx, &l->p, w, &l->t, want, bound));
    assert_close((cmoe_dtype)l->p.y, l->t.y, want, bound, l->y_values);
    cmoe_weights_destroy(w);
    cmoe_device_close(dev);
    free(want);
    free(bound);
}

/* --- executors ------------------------------------------------------------------------------ */

static cmoe_context *executor_context(int threads, bool concurrent)
{
    const cmoe_context_options options = {.struct_size = sizeof options,
                                          .run = concurrent ? test_run_together : test_run_in_turn,
                                          .run_is_concurrent = concurrent,
                                          .n_threads = threads};
    cmoe_context *ctx;
    expect_ok(cmoe_context_create(&options, &ctx));
    return ctx;
}

/* --- tests ---------------------------------------------------------------------------------- */

/* Few tokens (whole-layer rows), several row blocks of an expert, matrices cut into runs of columns
 * and blocks of K, a router cut into blocks of tokens and of experts. */
static const char *const layers[] = {
    "t=1 e=8 k=4 h=96 i=70 w=bf16 rx",
    "t=13 e=6 k=2 h=131 i=45 in=f32 x=f32 w=f16 mid=f32 y=f32 b1 b2 renorm",
    "t=16 e=5 k=3 h=64 i=33 gate=none act=gelu won=act route=sigmoid",
    "t=61 e=3 k=2 h=77 i=129 w=f32 act=swiglu-oai gate=interleaved b1 b2 renorm topkfirst",
    "t=150 e=2 k=1 h=2100 i=35 in=f16 x=f16 w=f16 mid=f16 y=f16 won=gemm1",
    "t=7 e=4 k=2 h=40 i=1100 w=bf16 noreduce act=situv2",
    "t=20 e=70 k=3 h=131 i=17 rx route=sigmoid renorm",
    /* Rows of bf16 that all fit the second cache, and those of which blocks of K do. */
    "t=90 e=1 k=1 h=4100 i=50 w=bf16 b1 b2",
    "t=150 e=2 k=1 h=6300 i=35 w=bf16",
};
enum { LAYERS = sizeof layers / sizeof *layers };

static void layers_are_within_the_bound(void **state)
{
    cmoe_context *const ctx = test_context(3, NULL);
    (void)state;
    for (int i = 0; i < LAYERS; i++)
        for (int packed = 0; packed < 2; packed++) {
            struct layer l;
            layer_make(&l, layers[i]);
            layer_run(&l, ctx, packed ? "p32" : NULL, NULL, NULL, 0);
            check_against_reference(&l, ctx);
            layer_free(&l);
        }
    cmoe_context_destroy(ctx);
}

static void same_bits_on_any_threads(void **state)
{
    static const int threads[] = {1, 2, 3, 5, 8};
    (void)state;
    for (int i = 0; i < LAYERS; i++)
        for (int packed = 0; packed < 2; packed++) {
            struct layer l;
            layer_make(&l, layers[i]);
            void *const first = malloc(l.y_bytes);
            assert_non_null(first);
            for (int n = 0; n < 15; n++) { /* own pool, caller's threads, caller's loop */
                cmoe_context *const ctx = n < 5 ? test_context(threads[n], NULL)
                                                : executor_context(threads[n % 5], n < 10);
                layer_run(&l, ctx, packed ? "p32" : NULL, NULL, NULL, 0);
                if (n == 0)
                    memcpy(first, l.t.y, l.y_bytes);
                else
                    assert_same_bytes(l.t.y, first, l.y_bytes);
                cmoe_context_destroy(ctx);
            }
            free(first);
            layer_free(&l);
        }
}

/* One token at a time gives the bits of all at once: whole-layer rows against separate stages. */
static void a_token_does_not_see_the_others(void **state)
{
    cmoe_context *const ctx = test_context(2, NULL);
    (void)state;
    for (int packed = 0; packed < 2; packed++) {
        struct layer l;
        layer_make(&l, "t=53 e=3 k=2 h=131 i=45 renorm b1 b2 rx binv");
        const char *const x = l.t.x, *const format = packed ? "p32" : NULL;
        const size_t row = l.y_bytes / 53;
        char *const all = malloc(l.y_bytes);
        assert_non_null(all);
        layer_run(&l, ctx, format, NULL, NULL, 0);
        memcpy(all, l.t.y, l.y_bytes);
        for (int t = 0; t < 53; t++) {
            l.t.n_tokens = 1;
            l.t.x = x + 2 * 131 * t;
            layer_run(&l, ctx, format, NULL, NULL, 0);
            assert_same_bytes(l.t.y, all + (size_t)t * row, row);
        }
        free(all);
        layer_free(&l);
    }
    cmoe_context_destroy(ctx);
}

/* z of more than 32 MiB is stored past the caches, tile by tile; of half the tokens it is not. */
static void far_results_are_the_same(void **state)
{
    enum { TOKENS = 2060, HALF = TOKENS / 2, HIDDEN = 2048 };
    cmoe_context *const ctx = test_context(2, NULL);
    struct layer l;
    (void)state;
    layer_make(&l, "t=2060 e=2 k=2 h=2048 i=16 renorm b2 rx binv");
    const char *const x = l.t.x;
    const size_t half = l.y_bytes / 2;
    char *const all = malloc(l.y_bytes);
    assert_non_null(all);
    layer_run(&l, ctx, "p32", NULL, NULL, 0);
    memcpy(all, l.t.y, l.y_bytes);
    for (int i = 0; i < 2; i++) {
        l.t.n_tokens = HALF;
        l.t.x = x + (size_t)2 * HIDDEN * HALF * (size_t)i;
        layer_run(&l, ctx, "p32", NULL, NULL, 0);
        assert_same_bytes(l.t.y, all + half * (size_t)i, half);
    }
    free(all);
    layer_free(&l);
    cmoe_context_destroy(ctx);
}

/* What tiles fetch together is what comes next, each line once. */
static void shares_leave_nothing_out(void **state)
{
    static const char next[1];
    (void)state;
    for (int m = 13; m <= 128; m++)
        for (int64_t k = 16; k <= 4096; k += 368) {
            const int64_t chunks = (k + 15) / 16, lines = chunks * 16;
            struct cmoe_cpu_share s = cmoe__cpu_share_ahead(m, 12, k, next, lines * 64);
            int64_t at = 0;
            for (int r = 0; r < m; r += 12) {
                const struct cmoe_cpu_ahead now = cmoe__cpu_next_share(&s);
                assert_int_equal((uintptr_t)now.at - (uintptr_t)next, at * 64);
                assert_int_equal(now.soon, 0);
                at += now.lines * chunks;
            }
            assert_int_equal(at, lines);
        }
}

/* Slots counted in several chunks come out as from one pass: by expert, then in order. */
static void many_slots_are_sorted(void **state)
{
    enum { TOKENS = 30000, TOPK = 3, EXPERTS = 11, SLOTS = TOKENS * TOPK };
    struct rng rng = {test_seed()};
    int32_t *const ids = malloc(SLOTS * sizeof *ids), *const want = malloc(SLOTS * sizeof *want);
    int32_t *const rows = malloc(SLOTS * sizeof *rows);
    int32_t want_offsets[EXPERTS + 1] = {0}, offsets[EXPERTS + 1];
    (void)state;
    assert_true(ids && want && rows);
    for (int i = 0; i < SLOTS; i++) /* some are nobody's */
        ids[i] = (int32_t)rng_between(&rng, -1, rng_chance(&rng, 30) ? 2 : EXPERTS);
    for (int e = 0; e < EXPERTS; e++) {
        want_offsets[e + 1] = want_offsets[e];
        for (int i = 0; i < SLOTS; i++)
            if (ids[i] == e) want[want_offsets[e + 1]++] = i;
    }
    for (int threads = 1; threads <= 4; threads += 3) {
        struct guard g;
        cmoe_plan *plan;
        cmoe_context *const ctx = test_context(threads, NULL);
        cmoe_device *const dev = test_device(ctx, "cpu");
        const cmoe_problem p =
            test_problem("t=30000 e=11 k=3 h=8 i=8 stages=sort..sort sort=index");
        const cmoe_tensors t = {.struct_size = sizeof t,
                                .n_tokens = TOKENS,
                                .topk_ids = ids,
                                .sorted_ids = rows,
                                .expert_offsets = offsets};
        char path[256];
        guard_init(&g);
        expect_ok(cmoe_plan_create(dev, &p, NULL, NULL, &plan));
        cmoe_plan_path(plan, TOKENS, path, sizeof path);
        assert_null(strstr(path, "ref"));
        memset(rows, 0xff, SLOTS * sizeof *rows);
        expect_ok(
            cmoe_execute(plan, &t, test_workspace(&g, plan), cmoe_plan_workspace_size(plan), NULL));
        assert_same_i32(offsets, want_offsets, EXPERTS + 1);
        assert_same_i32(rows, want, want_offsets[EXPERTS]);
        assert_true(guard_check(&g));
        guard_end(&g);
        cmoe_plan_destroy(plan);
        cmoe_device_close(dev);
        cmoe_context_destroy(ctx);
    }
    free(ids);
    free(want);
    free(rows);
}

/* Kernels named in a path whose target is `isa`. */
static bool only_targets(const char *path, int most)
{
    for (int level = most + 1; level < CMOE_ISA_LEVELS; level++) {
        char suffix[32];
        snprintf(suffix, sizeof suffix, "__%s", cmoe__isa_name((enum cmoe_isa)level));
        if (strstr(path, suffix)) return false;
    }
    return true;
}

static void the_cap_is_honoured(void **state)
{
    (void)state;
    for (int level = 0; level <= (int)cmoe__cpuid_isa(); level++)
        for (int from_environment = 0; from_environment < 2; from_environment++) {
            const char *const cap = cmoe__isa_name((enum cmoe_isa)level);
            const cmoe_context_options options = {.struct_size = sizeof options,
                                                  .cpu = from_environment ? NULL : cap,
                                                  .n_threads = 2};
            char *const before = getenv("CMOE_CPU") ? strdup(getenv("CMOE_CPU")) : NULL;
            cmoe_context *ctx;
            if (from_environment) setenv("CMOE_CPU", cap, 1);
            expect_ok(cmoe_context_create(&options, &ctx));
            if (before)
                setenv("CMOE_CPU", before, 1);
            else
                unsetenv("CMOE_CPU");
            free(before);

            cmoe_device *const dev = test_device(ctx, "cpu");
            cmoe_device_info info = {.struct_size = sizeof info};
            cmoe_device_describe(dev, &info);
            assert_string_equal(info.isa, cap);
            cmoe_device_close(dev);

            for (int i = 0; i < LAYERS; i++) {
                if (test_short() && i % 2 != from_environment) continue;
                struct layer l;
                char path[1024];
                layer_make(&l, layers[i]);
                layer_run(&l, ctx, "p32", NULL, path, sizeof path);
                if (!only_targets(path, level)) fail_with("cap %s, but path %s", cap, path);
                check_against_reference(&l, ctx);
                layer_free(&l);
            }
            cmoe_context_destroy(ctx);
        }
}

/* Every row that can run a layer does, whatever the cost model thinks of it. */
static void every_target_can_be_pinned(void **state)
{
    cmoe_context *const ctx = test_context(2, NULL);
    cmoe_device *const dev = test_device(ctx, "cpu");
    const int most = (int)dev->props.isa; /* the environment may set a cap */
    cmoe_device_close(dev);
    (void)state;
    for (int level = 0; level <= most; level++) {
        /* have rows for int8 or bf16 only, which not every layer here has: test_kernels pins them */
        if (level >= CMOE_ISA_LEVEL_AVX512VNNI) continue;
        for (int i = 0; i < 2 * LAYERS; i++) {
            if (test_short() && (i + level) % 3 != 0) continue;
            struct layer l;
            char pin[64], path[1024];
            const char *const isa = cmoe__isa_name((enum cmoe_isa)level);
            snprintf(pin, sizeof pin, i < LAYERS ? "moe*__%s,*__%s" : "[rgac]*__%s,s*t__%s", isa,
                     isa);
            layer_make(&l, layers[i % LAYERS]);
            layer_run(&l, ctx, i % 2 ? "p32" : NULL, pin, path, sizeof path);
            if (!strstr(path, isa)) fail_with("pinned %s, but path %s", pin, path);
            check_against_reference(&l, ctx);
            layer_free(&l);
        }
    }
    cmoe_context_destroy(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_are_within_the_bound),
        cmocka_unit_test(same_bits_on_any_threads),
        cmocka_unit_test(a_token_does_not_see_the_others),
        cmocka_unit_test(far_results_are_the_same),
        cmocka_unit_test(shares_leave_nothing_out),
        cmocka_unit_test(many_slots_are_sorted),
        cmocka_unit_test(the_cap_is_honoured),
        cmocka_unit_test(every_target_can_be_pinned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
