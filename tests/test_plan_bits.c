/* SPDX-License-Identifier: MIT
 * ctest: labels=threads
 * The same bits: run to run, for any number of threads, from eight threads at once on one plan and
 * one set of weights, and (binv) whatever other tokens are in the call and in which order. */
#include "harness_call.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const problems[] = {
    "t=37 e=7 k=3 h=80 i=48 scheme=bf16 renorm", "t=37 e=7 k=3 h=80 i=48 scheme=f32 b1 b2 shared=1",
    "t=5 e=7 k=3 h=80 i=48 scheme=f16",          "t=37 e=7 k=3 h=160 i=48 scheme=fp8-block",
    "t=37 e=7 k=3 h=80 i=48 scheme=fp8-tensor",  "t=21 e=7 k=3 h=80 i=48 scheme=int8-w8a8",
    "t=21 e=7 k=3 h=64 i=48 scheme=mxfp4-w4a16", "t=37 e=7 k=3 h=80 i=48 scheme=int4-w4a16:zp",
};
enum { PROBLEMS = sizeof problems / sizeof problems[0], AT_ONCE = 8 };

/* A call made once, for plans of any context. */
struct shared {
    struct guard guard;
    struct gen_call call;
};

static void shared_make(struct shared *s, const char *text)
{
    const cmoe_problem p = test_problem(text);
    guard_init(&s->guard);
    struct gen_options options = call_options(&s->guard, GEN_REAL, test_seed());
    options.plain = true;
    expect_ok(gen_call_create(&p, &options, &s->call));
    guard_freeze(&s->guard);
}

static void shared_free(struct shared *s)
{
    assert_true(guard_check(&s->guard));
    gen_call_free(&s->call);
    guard_end(&s->guard);
}

static size_t y_bytes(const struct gen_call *call)
{
    return (size_t)(call->y_rows * call->y_row);
}

/* Run with a workspace and y of its own. */
static cmoe_status execute(const cmoe_plan *plan, const cmoe_weights *w,
                           const struct gen_call *call, void *y)
{
    const size_t size = cmoe_plan_workspace_size(plan);
    void *const workspace = aligned_alloc(256, (size + 511) / 256 * 256);
    if (!workspace) abort();
    memset(workspace, 0x7f, size);
    cmoe_tensors t = call->tensors;
    if (call->problem.first == CMOE_STAGE_ROUTE) {
        t.topk_ids = NULL;
        t.topk_weights = NULL;
    }
    t.weights = w;
    t.y = y;
    const cmoe_status status = cmoe_execute(plan, &t, workspace, size, NULL);
    free(workspace);
    return status;
}

struct device {
    cmoe_context *ctx;
    cmoe_device *dev;
    cmoe_plan *plan;
    cmoe_weights *w;
};

static void device_open(struct device *d, int threads, const struct gen_call *call,
                        const cmoe_problem *p)
{
    d->ctx = test_context(threads, NULL);
    d->dev = test_device(d->ctx, "cpu");
    expect_ok(cmoe_plan_create(d->dev, p, NULL, NULL, &d->plan));
    expect_ok(call_weights(d->dev, call, d->plan, &d->w));
}

static void device_close(struct device *d)
{
    cmoe_plan_destroy(d->plan);
    cmoe_weights_destroy(d->w);
    cmoe_device_close(d->dev);
    cmoe_context_destroy(d->ctx);
}

/* Share of zero bytes in a result: bits of nothing are equal too easily. */
static void expect_content(const void *y, size_t n)
{
    size_t zeros = 0;
    for (size_t i = 0; i < n; i++) {
        zeros += ((const unsigned char *)y)[i] == 0;
    }
    assert_true(zeros < n / 2);
}

static void run_to_run_and_thread_counts(void **state)
{
    (void)state;
    static const int threads[] = {1, 2, 3, 4, 5, 7, 8, 16};
    for (int i = 0; i < PROBLEMS; i++) {
        struct shared s;
        shared_make(&s, problems[i]);
        const size_t n = y_bytes(&s.call);
        char *const first = calloc(2, n), *const y = first + n;
        for (size_t j = 0; j < sizeof threads / sizeof threads[0]; j++) {
            struct device d;
            device_open(&d, threads[j], &s.call, &s.call.problem);
            for (int again = 0; again < 3; again++) {
                memset(y, 0xff, n);
                expect_ok(execute(d.plan, d.w, &s.call, j + (size_t)again == 0 ? first : y));
                if (j + (size_t)again > 0) assert_same_bytes(y, first, n);
            }
            device_close(&d);
        }
        expect_content(first, n);
        free(first);
        shared_free(&s);
    }
}

/* --- eight threads at once ----------------------------------------------------------------------*/

struct worker {
    pthread_t thread;
    const struct device *device;
    const struct shared *shared;
    const char *want;
    int wrong;
    cmoe_status status;
};

static void *work(void *arg)
{
    struct worker *const w = arg;
    const size_t n = y_bytes(&w->shared->call);
    char *const y = malloc(n);
    for (int i = 0; i < 20 && w->status == CMOE_OK; i++) {
        memset(y, 0xff, n);
        w->status = execute(w->device->plan, w->device->w, &w->shared->call, y);
        w->wrong += memcmp(y, w->want, n) != 0;
    }
    free(y);
    return NULL;
}

static void threads_share_plan_and_weights(void **state)
{
    (void)state;
    for (int i = 0; i < PROBLEMS; i++) {
        struct shared s;
        struct device d;
        shared_make(&s, problems[i]);
        device_open(&d, 3, &s.call, &s.call.problem);
        const size_t n = y_bytes(&s.call);
        char *const want = malloc(n);
        expect_ok(execute(d.plan, d.w, &s.call, want));
        expect_content(want, n);
        struct worker workers[AT_ONCE];
        for (int t = 0; t < AT_ONCE; t++) {
            workers[t] = (struct worker){.device = &d, .shared = &s, .want = want};
            assert_int_equal(pthread_create(&workers[t].thread, NULL, work, &workers[t]), 0);
        }
        for (int t = 0; t < AT_ONCE; t++) {
            pthread_join(workers[t].thread, NULL);
            assert_int_equal(workers[t].status, CMOE_OK);
            assert_int_equal(workers[t].wrong, 0);
        }
        free(want);
        device_close(&d);
        shared_free(&s);
    }
}

/* Plans made by several threads on one context. */
static void *plan_many(void *arg)
{
    struct worker *const w = arg;
    for (int i = 0; i < 20 && w->status == CMOE_OK; i++) {
        cmoe_plan *plan = NULL;
        w->status = cmoe_plan_create(w->device->dev, &w->shared->call.problem, NULL, NULL, &plan);
        cmoe_plan_destroy(plan);
    }
    return NULL;
}

static void threads_plan_at_once(void **state)
{
    (void)state;
    struct shared s;
    struct device d;
    shared_make(&s, problems[0]);
    device_open(&d, 2, &s.call, &s.call.problem);
    struct worker workers[AT_ONCE];
    for (int t = 0; t < AT_ONCE; t++) {
        workers[t] = (struct worker){.device = &d, .shared = &s};
        assert_int_equal(pthread_create(&workers[t].thread, NULL, plan_many, &workers[t]), 0);
    }
    for (int t = 0; t < AT_ONCE; t++) {
        pthread_join(workers[t].thread, NULL);
        assert_int_equal(workers[t].status, CMOE_OK);
    }
    device_close(&d);
    shared_free(&s);
}

/* --- batch invariance ---------------------------------------------------------------------------*/

/* The call's tokens order[0..n) as a call of their own; y rows land in out in that order. */
static void run_tokens(const struct device *d, const struct gen_call *call, const int *order, int n,
                       char *out)
{
    const cmoe_problem *const p = &call->problem;
    const size_t x_row = cmoe_dtype_bytes((cmoe_dtype)p->in, p->hidden),
                 y_row = (size_t)call->y_row;
    const size_t l_row = cmoe_dtype_bytes((cmoe_dtype)p->logits, p->experts);
    char *const x = malloc((size_t)n * (x_row + l_row)), *const logits = x + (size_t)n * x_row;
    for (int i = 0; i < n; i++) {
        memcpy(x + (size_t)i * x_row, (const char *)call->tensors.x + (size_t)order[i] * x_row,
               x_row);
        memcpy(logits + (size_t)i * l_row,
               (const char *)call->tensors.logits + (size_t)order[i] * l_row, l_row);
    }
    struct gen_call part = *call;
    part.tensors.x = x;
    part.tensors.logits = logits;
    part.tensors.n_tokens = n;
    memset(out, 0xff, (size_t)n * y_row);
    expect_ok(execute(d->plan, d->w, &part, out));
    free(x);
}

static void other_tokens_do_not_matter(void **state)
{
    (void)state;
    static const char *const invariant[] = {
        "t=65 e=7 k=3 h=80 i=48 scheme=bf16 binv",
        "t=65 e=7 k=3 h=80 i=48 scheme=f32 binv renorm b1 b2",
        "t=65 e=7 k=3 h=160 i=144 scheme=fp8-block binv",
        "t=65 e=7 k=3 h=80 i=48 scheme=fp8-token binv",
        "t=65 e=7 k=3 h=64 i=48 scheme=nvfp4-w4a4 binv",
        "t=65 e=7 k=3 h=80 i=48 scheme=int8-w8a8 binv",
        "t=65 e=7 k=3 h=80 i=48 scheme=int8-smooth binv",
        "t=65 e=7 k=3 h=160 i=48 scheme=int4-w4a16:zp binv",
        "t=65 e=7 k=3 h=64 i=48 scheme=mxfp4-w4a16 binv",
    };
    static const int sizes[] = {1, 2, 7, 16, 17, 64, 65};
    for (size_t i = 0; i < sizeof invariant / sizeof invariant[0]; i++) {
        struct shared s;
        struct device d;
        shared_make(&s, invariant[i]);
        device_open(&d, 2, &s.call, &s.call.problem);
        const size_t row = (size_t)s.call.y_row;
        char *const whole = malloc(y_bytes(&s.call)), *const part = malloc(y_bytes(&s.call));
        int order[65];
        for (int t = 0; t < 65; t++) {
            order[t] = t;
        }
        run_tokens(&d, &s.call, order, 65, whole);
        expect_content(whole, y_bytes(&s.call));
        struct rng r = {test_seed()};
        for (size_t j = 0; j < sizeof sizes / sizeof sizes[0]; j++) {
            for (int t = 0; t < 65; t++) { /* another order each time */
                const int other = (int)rng_below(&r, 65), kept = order[t];
                order[t] = order[other];
                order[other] = kept;
            }
            run_tokens(&d, &s.call, order, sizes[j], part);
            for (int t = 0; t < sizes[j]; t++) {
                assert_same_bytes(part + (size_t)t * row, whole + (size_t)order[t] * row, row);
            }
        }
        free(whole);
        free(part);
        device_close(&d);
        shared_free(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(run_to_run_and_thread_counts),
        cmocka_unit_test(threads_share_plan_and_weights),
        cmocka_unit_test(threads_plan_at_once),
        cmocka_unit_test(other_tokens_do_not_matter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
