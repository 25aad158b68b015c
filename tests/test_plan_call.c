/* SPDX-License-Identifier: MIT
 * One execution of a plan: its arguments, its workspace, its statistics, and what it must leave
 * alone. Results are compared with the reference by way of call_judge, or bit for bit with the same
 * plan run plainly. */
#include "harness_call.h"

#include "plan/plan.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A prepared call with a plan on the cpu device. */
struct run {
    struct rig *rig;
    struct prepared made;
    cmoe_plan *plan;
    cmoe_weights *w;
    cmoe_tensors t;
    void *workspace;
    size_t size;
};

static void run_open(struct run *run, struct rig *rig, const char *text, enum gen_kind kind,
                     size_t limit)
{
    const cmoe_problem p = test_problem(text);
    struct gen_options options = call_options(&rig->guard, kind, test_seed());
    options.plain = true;
    run->rig = rig;
    expect_ok(call_prepare(rig, &p, &options, &run->made));
    const cmoe_plan_options choose = {.struct_size = sizeof choose, .workspace_limit = limit};
    expect_ok(cmoe_plan_create(rig->cpu, &p, NULL, &choose, &run->plan));
    expect_ok(call_weights(rig->cpu, &run->made.call, run->plan, &run->w));
    run->t = run->made.call.tensors;
    run->t.weights = run->w;
    run->size = cmoe_plan_workspace_size(run->plan);
    run->workspace = test_workspace(&rig->guard, run->plan);
}

static cmoe_status run_again(struct run *run)
{
    call_reset_y(run->rig, &run->made.call);
    return cmoe_execute(run->plan, &run->t, run->workspace, run->size, NULL);
}

static void expect_right(struct run *run)
{
    const struct outcome out =
        call_judge(&run->made.call, run->made.kind, run->made.want, run->made.bound);
    if (out.kind != OUTCOME_OK) fail_with("%s", out.why);
    assert_true(guard_check(&run->rig->guard));
}

static void run_close(struct run *run)
{
    cmoe_plan_destroy(run->plan);
    cmoe_weights_destroy(run->w);
    call_done(&run->made);
}

/* --- arguments ----------------------------------------------------------------------------------*/

#define NEEDED(text, field)                                                                        \
    {                                                                                              \
        text, offsetof(cmoe_tensors, field), #field                                                \
    }
static const struct {
    const char *problem;
    size_t offset;
    const char *name;
} needed[] = {
    NEEDED("t=3 e=4 k=2 h=32 i=32", logits),
    NEEDED("t=3 e=4 k=2 h=32 i=32", x),
    NEEDED("t=3 e=4 k=2 h=32 i=32", y),
    NEEDED("t=3 e=4 k=2 h=32 i=32", weights),
    NEEDED("t=3 e=4 k=2 h=32 i=32 rbias", route_bias),
    NEEDED("t=3 e=4 k=2 h=32 i=32 hash", hash_table),
    NEEDED("t=3 e=4 k=2 h=32 i=32 hash", token_ids),
    NEEDED("t=3 e=4 k=2 h=32 i=32 rx", router_w),
    NEEDED("t=3 e=4 k=2 h=32 i=32 local=3 map", expert_map),
    NEEDED("t=3 e=4 k=2 h=32 i=32 scheme=fp8-tensor:static", x_scale),
    NEEDED("t=3 e=4 k=2 h=32 i=32 scheme=fp8-tensor:static", mid_scale),
    NEEDED("t=3 e=4 k=2 h=32 i=32 scheme=fp8-token xq", x_scale),
    NEEDED("t=3 e=4 k=2 h=32 i=32 scheme=nvfp4-w4a4 xq", x_global),
    NEEDED("t=3 e=4 k=2 h=32 i=32 stages=quant..combine", topk_ids),
    NEEDED("t=3 e=4 k=2 h=32 i=32 stages=route", topk_ids),
    NEEDED("t=3 e=4 k=2 h=32 i=32 stages=route", topk_weights),
    NEEDED("t=3 e=4 k=2 h=32 i=32 stages=quant scheme=fp8-token", xq),
    NEEDED("t=3 e=4 k=2 h=32 i=32 stages=quant scheme=fp8-token", xq_scale),
    NEEDED("t=3 e=4 k=2 h=32 i=32 stages=sort", sorted_ids),
    NEEDED("t=3 e=4 k=2 h=32 i=32 stages=sort", expert_offsets),
    NEEDED("t=3 e=4 k=2 h=32 i=32 stages=sort sort=packed", block_experts),
    NEEDED("t=3 e=4 k=2 h=32 i=32 stages=sort sort=flat", num_valid),
    NEEDED("t=3 e=4 k=2 h=32 i=32 stages=gemm1", gate_up),
    NEEDED("t=3 e=4 k=2 h=32 i=32 stages=act", gate_up),
    NEEDED("t=3 e=4 k=2 h=32 i=32 stages=act", mid),
    NEEDED("t=3 e=4 k=2 h=32 i=32 stages=requant scheme=fp8-token", mid_q),
    NEEDED("t=3 e=4 k=2 h=32 i=32 stages=gemm2", z),
    NEEDED("t=3 e=4 k=2 h=32 i=32 stages=combine", z),
};

/* With every pointer set the call gets past the checks of pointers: only the one that is NULL is
 * named. Nothing runs, because the workspace is refused first or the pointer is. */
static void null_arguments_are_named(void **state)
{
    struct rig *const rig = *state;
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        const cmoe_problem p = test_problem(needed[i].problem);
        cmoe_plan *plan = NULL;
        expect_ok(cmoe_plan_create(rig->cpu, &p, NULL, NULL, &plan));
        guard_reset(&rig->guard);
        void *const workspace = test_workspace(&rig->guard, plan);
        cmoe_tensors t;
        memset(&t, 0, sizeof t);
        const size_t first = offsetof(cmoe_tensors, weights);
        for (size_t at = first; at + sizeof(void *) <= sizeof t; at += sizeof(void *)) {
            void *const fake = (void *)(uintptr_t)(0x10000 + 0x10000 * at);
            memcpy((char *)&t + at, &fake, sizeof fake);
        }
        t.struct_size = sizeof t;
        t.n_tokens = 3;
        t.logits_stride = t.x_stride = t.y_stride = 0;
        t.vocab = 1;
        t.topk_ids64 = NULL;
        t.n_tokens_dev = NULL;
        void *const none = NULL;
        memcpy((char *)&t + needed[i].offset, &none, sizeof none);
        char name[64];
        snprintf(name, sizeof name, "%s", needed[i].name);
        const cmoe_status status =
            cmoe_execute(plan, &t, workspace, cmoe_plan_workspace_size(plan), NULL);
        if (status != CMOE_ERR_INVALID || !strstr(cmoe_last_error(), name)) {
            fail_with("\"%s\" without %s: %s \"%s\"", needed[i].problem, name,
                      cmoe_status_name(status), cmoe_last_error());
        }
        cmoe_plan_destroy(plan);
    }
    const cmoe_tensors t = {.struct_size = sizeof t};
    expect_error(cmoe_execute(NULL, &t, NULL, 0, NULL), CMOE_ERR_INVALID, "plan");
    cmoe_plan *plan = NULL;
    const cmoe_problem p = test_problem("t=3 e=4 k=2 h=32 i=32");
    expect_ok(cmoe_plan_create(rig->cpu, &p, NULL, NULL, &plan));
    expect_error(cmoe_execute(plan, NULL, NULL, 0, NULL), CMOE_ERR_INVALID, "tensors");
    cmoe_plan_destroy(plan);
    expect_error(cmoe_plan_create(NULL, &p, NULL, NULL, &plan), CMOE_ERR_INVALID, "dev");
    expect_error(cmoe_plan_create(rig->cpu, NULL, NULL, NULL, &plan), CMOE_ERR_INVALID, "p is");
    expect_error(cmoe_plan_create(rig->cpu, &p, NULL, NULL, NULL), CMOE_ERR_INVALID, "out");
}

static void token_counts(void **state)
{
    struct run run;
    run_open(&run, *state, "t=5 e=4 k=2 h=32 i=32", GEN_REAL, 0);
    run.t.n_tokens = 6;
    expect_error(run_again(&run), CMOE_ERR_INVALID, "6");
    run.t.n_tokens = -1;
    expect_error(run_again(&run), CMOE_ERR_INVALID, "-1");
    /* No tokens: nothing has to be there, nothing is written. */
    const cmoe_tensors none = {.struct_size = sizeof none};
    expect_ok(cmoe_execute(run.plan, &none, NULL, 0, NULL));
    /* Fewer than planned: the rows past them are left alone. */
    const unsigned char *const y = run.t.y;
    run.t.n_tokens = 3;
    expect_ok(run_again(&run));
    for (int i = 3 * 64; i < 5 * 64; i++) {
        assert_int_equal(y[i], 0xff);
    }
    run.t.n_tokens = 5;
    expect_ok(run_again(&run));
    expect_right(&run);
    run_close(&run);
}

static void device_side_token_count(void **state)
{
    struct run run;
    run_open(&run, *state, "t=5 e=4 k=2 h=32 i=32", GEN_REAL, 0);
    unsigned char whole[5 * 64];
    expect_ok(run_again(&run));
    memcpy(whole, run.t.y, sizeof whole);
    static const int32_t counts[] = {0, 1, 4, 5, 6, 1000, -1, INT32_MIN};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        const int32_t count = counts[i];
        const size_t rows = count < 0 ? 0 : (size_t)(count > 5 ? 5 : count);
        run.t.n_tokens_dev = &count;
        expect_ok(run_again(&run));
        assert_same_bytes(run.t.y, whole, rows * 64);
        for (size_t b = rows * 64; b < sizeof whole; b++) {
            assert_int_equal(((const unsigned char *)run.t.y)[b], 0xff);
        }
    }
    run_close(&run);
}

static cmoe_status call(const struct run *run)
{
    return cmoe_execute(run->plan, &run->t, run->workspace, run->size, NULL);
}

static void aliasing(void **state)
{
    struct rig *const rig = *state;
    struct run run;
    run_open(&run, rig, "t=5 e=4 k=2 h=32 i=32", GEN_REAL, 0);
    expect_ok(run_again(&run));
    expect_right(&run);
    unsigned char *const y = run.t.y, *const both = malloc(7 * 64);
    /* in place */
    memcpy(both, run.t.x, 5 * 64);
    run.t.x = run.t.y = both;
    expect_ok(call(&run));
    assert_same_bytes(both, y, 5 * 64);
    /* partly */
    for (int64_t off = -64; off <= 64; off += 32) {
        if (off == 0) continue;
        run.t.x = both + 64;
        run.t.y = both + 64 + off;
        expect_error(call(&run), CMOE_ERR_INVALID, "overlap");
    }
    free(both);
    run_close(&run);
}

/* Behind the last row of columns of a wider matrix lies what is not theirs: x or y may begin there. */
static void views_end_with_their_last_row(void **state)
{
    enum { ROW = 64, STRIDE = 96, SPAN = 4 * STRIDE + ROW };
    struct run run;
    _Alignas(64) unsigned char memory[2 * SPAN] = {0};
    run_open(&run, *state, "t=5 e=4 k=2 h=32 i=32", GEN_REAL, 0);
    for (int y_first = 0; y_first < 2; y_first++) {
        run.t.x_stride = y_first ? ROW : STRIDE;
        run.t.y_stride = y_first ? STRIDE : ROW;
        run.t.x = memory + (y_first ? SPAN : 0);
        run.t.y = memory + (y_first ? 0 : SPAN);
        expect_ok(call(&run));
        run.t.x = memory + (y_first ? SPAN - 32 : 0);
        run.t.y = memory + (y_first ? 0 : SPAN - 32);
        expect_error(call(&run), CMOE_ERR_INVALID, "overlap");
    }
    run_close(&run);
}

/* --- workspace ----------------------------------------------------------------------------------*/

static void workspace_errors(void **state)
{
    struct run run;
    run_open(&run, *state, "t=5 e=4 k=2 h=32 i=32 scheme=fp8-token", GEN_REAL, 0);
    char needs[32], has[32];
    snprintf(needs, sizeof needs, "%zu", run.size);
    snprintf(has, sizeof has, "%zu", run.size - 1);
    assert_true(run.size > 0);
    expect_error(cmoe_execute(run.plan, &run.t, run.workspace, run.size - 1, NULL),
                 CMOE_ERR_WORKSPACE, needs);
    assert_non_null(strstr(cmoe_last_error(), has));
    char *const misaligned = (char *)guard_alloc(&run.rig->guard, run.size + 64, 256, GUARD_OUTPUT);
    expect_error(cmoe_execute(run.plan, &run.t, misaligned + 64, run.size, NULL),
                 CMOE_ERR_WORKSPACE, "256");
    expect_error(cmoe_execute(run.plan, &run.t, NULL, run.size, NULL), CMOE_ERR_WORKSPACE, needs);
    expect_ok(run_again(&run));
    expect_right(&run);
    run_close(&run);
}

/* A limit that the first buckets keep and a later one does not; 0: none such. */
static size_t limit_within(const cmoe_plan *plan, int skip)
{
    size_t most = 0;
    for (int b = 0; b + 1 < plan->n_buckets; b++) {
        if (plan->path[b].arena.total > most) most = plan->path[b].arena.total;
        if (plan->path[b + 1].arena.total > most && skip-- == 0) return most;
    }
    return 0;
}

/* Calls cut into passes give the bits of one pass. */
static void workspace_limit(void **state)
{
    struct rig *const rig = *state;
    static const char *const problems[] = {
        "t=211 e=5 k=3 h=48 i=64 act=relu scheme=bf16",
        "t=211 e=5 k=3 h=48 i=64 act=relu scheme=fp8-token noreduce",
        "t=211 e=5 k=3 h=48 i=64 act=relu scheme=bf16 stages=sort..combine b1 b2 acc=1",
        "t=211 e=5 k=3 h=64 i=64 act=relu scheme=mxfp4-w4a4 stages=quant..combine xq",
    };
    for (int i = 0; i < 4; i++) {
        struct run run;
        run_open(&run, rig, problems[i], GEN_EXACT, 0);
        expect_ok(run_again(&run));
        expect_right(&run);
        size_t limits[3];
        for (int n = 0; n < 3; n++) {
            limits[n] = limit_within(run.plan, n);
        }
        run_close(&run);
        assert_true(limits[0] > 0);
        for (int n = 0; n < 3 && limits[n] > 0; n++) {
            run_open(&run, rig, problems[i], GEN_EXACT, limits[n]);
            assert_true(run.size <= limits[n] && run.plan->chunk < 211);
            expect_ok(run_again(&run));
            expect_right(&run);
            run_close(&run);
        }
        const cmoe_problem p = test_problem(problems[i]);
        const cmoe_plan_options tiny = {.struct_size = sizeof tiny, .workspace_limit = 10};
        cmoe_plan *plan = NULL;
        expect_error(cmoe_plan_create(rig->cpu, &p, NULL, &tiny, &plan), CMOE_ERR_WORKSPACE, "10");
        assert_null(plan);
    }
}

/* An executor that writes one byte past a region, once, after `wait` forks. */
struct saboteur {
    unsigned char *at;
    int wait;
};

static void sabotage(void *user, int n, cmoe_body body, void *arg)
{
    struct saboteur *const s = user;
    for (int i = 0; i < n; i++) {
        body(arg, i, n);
    }
    if (!s->at || s->wait-- > 0) return;
    *s->at ^= 1;
    s->at = NULL;
}

static void redzones(void **state)
{
    (void)state;
#ifndef CMOE_DEBUG
    skip(); /* builds without assertions have no redzones */
#endif
    struct saboteur saboteur = {.at = NULL};
    const cmoe_context_options options = {
        .struct_size = sizeof options, .run = sabotage, .user = &saboteur, .n_threads = 2};
    struct rig rig;
    expect_ok(cmoe_context_create(&options, &rig.ctx));
    rig.ref = test_device(rig.ctx, "ref");
    rig.cpu = test_device(rig.ctx, "cpu");
    guard_init(&rig.guard);
    struct run run;
    run_open(&run, &rig, "t=32 e=4 k=2 h=32 i=32 stages=sort..combine", GEN_REAL, 0);
    expect_ok(run_again(&run));
    expect_right(&run);
    const struct cmoe_path *const path = &run.plan->path[run.plan->n_buckets - 1];
    int region = 0; /* the first that this path has */
    while (region < CMOE_REGION_SCRATCH && path->arena.region[region].bytes == 0)
        region++;
    assert_true(region < CMOE_REGION_SCRATCH);
    const size_t end = path->arena.region[region].offset + path->arena.region[region].bytes;
    /* Armed on the n-th fork of a call: while the region lives, the step that runs is blamed. */
    int blamed = 0;
    for (int n = 0; n < 8; n++) {
        saboteur = (struct saboteur){(unsigned char *)run.workspace + end, n};
        const cmoe_status status = run_again(&run);
        if (status == CMOE_OK) continue;
        blamed++;
        assert_int_equal(status, CMOE_ERR_DEVICE);
        assert_non_null(strstr(cmoe_last_error(), "wrote outside"));
    }
    assert_true(blamed > 0);
    run_close(&run);
    guard_end(&rig.guard);
    cmoe_device_close(rig.cpu);
    cmoe_device_close(rig.ref);
    cmoe_context_destroy(rig.ctx);
}

/* An executor inside which the same workspace is asked for again. */
struct intruder {
    struct run *run;
    cmoe_status second;
};

static void intrude(void *user, int n, cmoe_body body, void *arg)
{
    struct intruder *const intruder = user;
    struct run *const run = intruder->run;
    if (run) {
        intruder->run = NULL;
        intruder->second = cmoe_execute(run->plan, &run->t, run->workspace, run->size, NULL);
    }
    for (int i = 0; i < n; i++) {
        body(arg, i, n);
    }
}

static void workspace_in_use(void **state)
{
    (void)state;
    struct intruder intruder = {.second = CMOE_OK};
    const cmoe_context_options options = {
        .struct_size = sizeof options, .run = intrude, .user = &intruder, .n_threads = 2};
    struct rig rig;
    expect_ok(cmoe_context_create(&options, &rig.ctx));
    rig.ref = test_device(rig.ctx, "ref");
    rig.cpu = test_device(rig.ctx, "cpu");
    guard_init(&rig.guard);
    struct run run;
    run_open(&run, &rig, "t=32 e=4 k=2 h=32 i=32 stages=sort..combine", GEN_REAL, 0);
    for (int i = 0; i < 2; i++) {
        intruder.run = &run;
        expect_ok(run_again(&run));
        assert_int_equal(intruder.second, CMOE_ERR_BUSY);
        assert_non_null(strstr(cmoe_last_error(), "another call is using the workspace"));
        expect_right(&run);
    }
    run_close(&run);
    guard_end(&rig.guard);
    cmoe_device_close(rig.cpu);
    cmoe_device_close(rig.ref);
    cmoe_context_destroy(rig.ctx);
}

/* --- statistics and memory ----------------------------------------------------------------------*/

static void statistics(void **state)
{
    struct run run;
    run_open(&run, *state, "t=23 e=6 k=3 shared=1 h=32 i=32 first=1 local=3", GEN_REAL, 0);
    int64_t load[4] = {0}, want[4] = {0};
    double us[CMOE_STAGE_COUNT] = {0};
    int32_t ids[23 * 4];
    float weights[23 * 4];
    run.t.topk_ids = ids;
    run.t.topk_weights = weights;
    run.t.expert_load = load;
    run.t.stage_us = us;
    for (int call = 1; call <= 2; call++) {
        expect_ok(run_again(&run));
        for (int i = 0; i < 23 * 4; i++) {
            const int32_t id = ids[i];
            if (id >= 1 && id < 4) want[id - 1]++;
            if (id == 6) want[3]++;
        }
        for (int e = 0; e < 4; e++) {
            if (load[e] != want[e]) {
                fail_with("expert %d: load %lld after %d calls, expected %lld", e,
                          (long long)load[e], call, (long long)want[e]);
            }
        }
    }
    assert_int_equal(want[3], 2 * 23);
    assert_true(us[CMOE_STAGE_COMBINE] > 0);
    run_close(&run);
}

static void execute_allocates_nothing(void **state)
{
    (void)state;
    struct counter counter = {0};
    struct rig rig;
    rig.ctx = test_context(3, &counter);
    rig.ref = test_device(rig.ctx, "ref");
    rig.cpu = test_device(rig.ctx, "cpu");
    guard_init(&rig.guard);
    static const char *const problems[] = {
        "t=40 e=6 k=2 h=64 i=48 scheme=bf16", "t=2 e=6 k=2 h=64 i=48 scheme=f16",
        "t=9 e=6 k=2 h=64 i=48 scheme=nvfp4-w4a4", "t=9 e=6 k=2 h=64 i=48 scheme=int8-smooth rx"};
    for (int i = 0; i < 4; i++) {
        struct run run;
        run_open(&run, &rig, problems[i], GEN_REAL, 0);
        expect_ok(run_again(&run)); /* the pool starts at its first use */
        const long calls = counter.calls, live = counter.live;
        for (int n = 0; n < 10; n++) {
            expect_ok(run_again(&run));
        }
        assert_int_equal(counter.calls, calls);
        assert_int_equal(counter.live, live);
        expect_right(&run);
        run_close(&run);
    }
    guard_end(&rig.guard);
    cmoe_device_close(rig.cpu);
    cmoe_device_close(rig.ref);
    cmoe_context_destroy(rig.ctx);
    assert_int_equal(counter.live, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(null_arguments_are_named),
        cmocka_unit_test(token_counts),
        cmocka_unit_test(device_side_token_count),
        cmocka_unit_test(aliasing),
        cmocka_unit_test(views_end_with_their_last_row),
        cmocka_unit_test(workspace_errors),
        cmocka_unit_test(workspace_limit),
        cmocka_unit_test(redzones),
        cmocka_unit_test(workspace_in_use),
        cmocka_unit_test(statistics),
        cmocka_unit_test(execute_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, rig_setup, rig_teardown);
}
