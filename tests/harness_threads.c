/* SPDX-License-Identifier: MIT
 * Executors a caller may bring. */
#include "harness_threads.h"

#include "harness.h"

#include <pthread.h>
#include <stdatomic.h>

struct call {
    cmoe_body body;
    void *arg;
    int i, n;
};

static void *run_call(void *arg)
{
    const struct call *const call = arg;
    call->body(call->arg, call->i, call->n);
    return NULL;
}

void test_run_together(void *user, int n, cmoe_body body, void *arg)
{
    pthread_t threads[TEST_MOST_THREADS];
    struct call calls[TEST_MOST_THREADS];
    if (user) atomic_fetch_add((atomic_int *)user, 1);
    assert_in_range(n, 1, TEST_MOST_THREADS);
    for (int i = 0; i < n; i++) {
        calls[i] = (struct call){.body = body, .arg = arg, .i = i, .n = n};
        assert_int_equal(pthread_create(&threads[i], NULL, run_call, &calls[i]), 0);
    }
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
}

void test_run_in_turn(void *user, int n, cmoe_body body, void *arg)
{
    if (user) atomic_fetch_add((atomic_int *)user, 1);
    for (int i = n - 1; i >= 0; i--)
        body(arg, i, n);
}
