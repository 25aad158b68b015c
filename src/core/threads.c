/* SPDX-License-Identifier: MIT
 * Parallel loops and teams over an executor that runs n bodies. */
#include "core/threads.h"

#include "core/context.h"
#include "core/fail.h"

#include <stdatomic.h>

struct cmoe_threads {
    cmoe_context *ctx;
    int count;
};

struct loop {
    cmoe_body body;
    void *arg;
    int n;
    atomic_int next;
};

struct team_state {
    atomic_int counter[8];
};

cmoe_status cmoe__threads_create(cmoe_context *ctx, struct cmoe_threads **out)
{
    *out = cmoe__calloc(ctx, sizeof **out, _Alignof(struct cmoe_threads));
    if (!*out) return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "No memory for the context's threads.");
    (*out)->ctx = ctx;
    (*out)->count = ctx->options.n_threads;
    return CMOE_OK;
}

void cmoe__threads_destroy(cmoe_context *ctx, struct cmoe_threads *threads)
{
    cmoe__free(ctx, threads);
}

int cmoe__threads_count(const struct cmoe_threads *threads)
{
    return threads->count;
}

const char *cmoe__threads_name(const struct cmoe_threads *threads)
{
    return threads->ctx->options.run ? "caller" : "serial";
}

static void run_items(void *arg, int i, int n)
{
    (void)i, (void)n;
    struct loop *const loop = arg;
    for (int item; (item = atomic_fetch_add(&loop->next, 1)) < loop->n;) {
        loop->body(loop->arg, item, loop->n);
    }
}

void cmoe__parallel(struct cmoe_threads *threads, int limit, int n, cmoe_body body, void *arg)
{
    struct loop loop = {.body = body, .arg = arg, .n = n};
    int workers = limit > 0 && limit < threads->count ? limit : threads->count;
    if (workers > n) workers = n;
    const cmoe_context_options *const options = &threads->ctx->options;
    if (options->run && workers > 1) {
        options->run(options->user, workers, run_items, &loop);
    } else {
        run_items(&loop, 0, 1);
    }
}

void cmoe__team_run(struct cmoe_threads *threads, int limit,
                    void (*body)(void *arg, struct cmoe_team *team), void *arg)
{
    (void)threads, (void)limit;
    struct team_state state = {0};
    struct cmoe_team team = {.size = 1, .rank = 0, .shared = &state};
    body(arg, &team);
}

void cmoe__team_barrier(struct cmoe_team *team)
{
    (void)team;
}

int cmoe__team_next(struct cmoe_team *team, int counter)
{
    struct team_state *const state = team->shared;
    return atomic_fetch_add(&state->counter[counter], 1);
}

void cmoe__team_reset(struct cmoe_team *team, int counter)
{
    struct team_state *const state = team->shared;
    atomic_store(&state->counter[counter], 0);
}
