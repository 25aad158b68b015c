/* SPDX-License-Identifier: MIT
 * Parallel loops and teams over whatever runs n bodies: the caller's executor, a borrowed OpenMP
 * runtime, or the own pool.
 *
 * Whenever an executor cannot take a job, the calling thread does all of it. That is never a
 * special case: how many threads take part is unknown to every body anyway. */
#include "core/threads.h"

#include "core/context.h"
#include "core/fail.h"
#include "core/numa.h"
#include "core/spin.h"
#include "core/threads_openmp.h"
#include "core/threads_pool.h"

#include <assert.h>
#include <sched.h>
#include <stdatomic.h>

enum {
    LINE = 64,
    COUNTERS = 8,
    BARRIER_SPINS = 1000, /* about 25 microseconds */
};

struct cmoe_threads {
    cmoe_context *ctx;
    int count;
    bool crowded; /* more threads than CPUs: whoever waits must let others run */
    int nodes;
    struct cmoe_openmp openmp;
    struct cmoe_pool *pool;
    struct cmoe_numa numa; /* one node when they are made up */
};

/* The machine's nodes, or as many as the options say; without threads that run at the same time, one. */
static void choose_nodes(struct cmoe_threads *threads)
{
    const cmoe_context_options *const options = &threads->ctx->options;
    const struct cmoe_cpus allowed = cmoe__cpus_allowed();
    cmoe__numa_read("", &allowed, &threads->numa);
    const int own = threads->numa.nodes <= threads->count ? threads->numa.nodes : 1;
    threads->nodes = options->nodes > 0 ? options->nodes : own;
    if (options->run && !options->run_is_concurrent) threads->nodes = 1;
    if (threads->nodes != threads->numa.nodes) threads->numa.nodes = 1;
    if (threads->nodes > 1)
        cmoe__log(threads->ctx, 2, "weights are divided among %d memory nodes", threads->nodes);
}

static cmoe_status start(cmoe_context *ctx, struct cmoe_threads *threads)
{
    threads->ctx = ctx;
    threads->count = ctx->options.n_threads;
    threads->crowded = threads->count > cmoe__threads_default();
    choose_nodes(threads);
    if (ctx->options.run) return CMOE_OK;
    if (cmoe__openmp_find(&threads->openmp)) {
        cmoe__log(ctx, 2, "using the threads of %s", threads->openmp.name);
    }
    CMOE_TRY(
        cmoe__pool_create(ctx, threads->count, !threads->crowded, &threads->numa, &threads->pool));
    return CMOE_OK;
}

cmoe_status cmoe__threads_create(cmoe_context *ctx, struct cmoe_threads **out)
{
    struct cmoe_threads *const threads = cmoe__calloc(ctx, sizeof *threads, LINE);
    if (!threads) return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "No memory for the context's threads.");
    const cmoe_status status = start(ctx, threads);
    if (status != CMOE_OK) {
        cmoe__threads_destroy(ctx, threads);
        CMOE_FAIL_TRACE();
        return status;
    }
    *out = threads;
    return CMOE_OK;
}

void cmoe__threads_destroy(cmoe_context *ctx, struct cmoe_threads *threads)
{
    if (!threads) return;
    cmoe__pool_destroy(ctx, threads->pool);
    cmoe__openmp_release(&threads->openmp);
    cmoe__free(ctx, threads);
}

int cmoe__threads_count(const struct cmoe_threads *threads)
{
    return threads->count;
}

const char *cmoe__threads_name(const struct cmoe_threads *threads)
{
    if (threads->ctx->options.run) return "caller";
    return threads->openmp.library ? threads->openmp.name : "own pool";
}

int cmoe__threads_nodes(const struct cmoe_threads *threads)
{
    return threads->nodes;
}

/* Run n bodies; `together`: they wait for each other. False when the executor cannot. */
static bool run(struct cmoe_threads *threads, int n, bool together, cmoe_body body, void *arg)
{
    const cmoe_context_options *const options = &threads->ctx->options;
    if (n < 2) return false;
    if (options->run) {
        if (together && !options->run_is_concurrent) return false;
        options->run(options->user, n, body, arg);
        return true;
    }
    if (threads->openmp.library && cmoe__openmp_run(&threads->openmp, n, body, arg)) return true;
    return cmoe__pool_run(threads->pool, n, together, body, arg);
}

static int threads_for(const struct cmoe_threads *threads, int limit)
{
    return limit > 0 && limit < threads->count ? limit : threads->count;
}

/* --- loops ---------------------------------------------------------------------------------- */

struct loop {
    cmoe_body body;
    void *arg;
    int n;
    atomic_int next;
};

static void take_items(void *arg, int i, int n)
{
    (void)i, (void)n;
    struct loop *const loop = arg;
    for (;;) {
        const int item = atomic_fetch_add_explicit(&loop->next, 1, memory_order_relaxed);
        if (item >= loop->n) return;
        loop->body(loop->arg, item, loop->n);
    }
}

void cmoe__parallel(struct cmoe_threads *threads, int limit, int n, cmoe_body body, void *arg)
{
    struct loop loop = {.body = body, .arg = arg, .n = n};
    int workers = threads_for(threads, limit);
    if (workers > n) workers = n;
    if (!run(threads, workers, false, take_items, &loop)) take_items(&loop, 0, 1);
}

/* --- teams ---------------------------------------------------------------------------------- */

struct counter {
    CMOE_ALIGNED(LINE) atomic_int next;
};

struct team_state {
    void (*body)(void *arg, struct cmoe_team *team);
    void *arg;
    bool crowded;
    bool pooled; /* by the own pool, but for calls from inside a parallel region of OpenMP */
    CMOE_ALIGNED(LINE) atomic_int arrived;
    CMOE_ALIGNED(LINE) atomic_uint phase; /* steps when everyone has arrived */
    atomic_uint resets;                   /* counters to restart at the next barrier, a bit each */
    struct counter counter[COUNTERS];
};

static void join_team(void *arg, int i, int n)
{
    struct team_state *const state = arg;
    struct cmoe_team team = {.size = n, .rank = i, .shared = state};
    state->body(state->arg, &team);
}

void cmoe__team_run(struct cmoe_threads *threads, int limit,
                    void (*body)(void *arg, struct cmoe_team *team), void *arg)
{
    struct team_state state = {.body = body, .arg = arg, .crowded = threads->crowded};
    state.pooled = !threads->ctx->options.run && !threads->openmp.library;
    const int n = threads_for(threads, limit);
    if (!run(threads, n, true, join_team, &state)) join_team(&state, 0, 1);
}

/* What the last one to arrive does before it lets the others go. */
static void restart_counters(struct team_state *state)
{
    const unsigned resets = atomic_exchange_explicit(&state->resets, 0, memory_order_relaxed);
    for (int i = 0; i < COUNTERS; i++) {
        if (resets >> i & 1) {
            atomic_store_explicit(&state->counter[i].next, 0, memory_order_relaxed);
        }
    }
}

void cmoe__team_barrier(struct cmoe_team *team)
{
    struct team_state *const state = team->shared;
    const unsigned phase = atomic_load_explicit(&state->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&state->arrived, 1, memory_order_acq_rel) + 1 == team->size) {
        restart_counters(state);
        atomic_store_explicit(&state->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&state->phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = state->crowded ? BARRIER_SPINS : 0;; spins++) {
        if (atomic_load_explicit(&state->phase, memory_order_acquire) != phase) return;
        if (spins < BARRIER_SPINS) {
            cmoe__spin_pause();
        } else {
            spins = BARRIER_SPINS;
            sched_yield();
        }
    }
}

int cmoe__team_next(struct cmoe_team *team, int counter)
{
    struct team_state *const state = team->shared;
    assert(counter >= 0 && counter < COUNTERS);
    return atomic_fetch_add_explicit(&state->counter[counter].next, 1, memory_order_relaxed);
}

void cmoe__team_reset(struct cmoe_team *team, int counter)
{
    struct team_state *const state = team->shared;
    assert(counter >= 0 && counter < COUNTERS);
    atomic_fetch_or_explicit(&state->resets, 1U << counter, memory_order_relaxed);
}

/* --- shares of nodes ------------------------------------------------------------------------ */

static_assert((int)COUNTERS >= (int)CMOE_NODES, "a counter for every node");

int cmoe__team_node(const struct cmoe_team *team, int nodes)
{
    const struct team_state *const state = team->shared;
    if (team->size < nodes) return -1;
    return state->pooled ? team->rank % nodes : (int)((int64_t)team->rank * nodes / team->size);
}

int cmoe__team_take(struct cmoe_team *team, int nodes, int n)
{
    const int node = nodes > 1 ? cmoe__team_node(team, nodes) : -1;
    const int item = cmoe__team_next(team, node < 0 ? 0 : node);
    if (node < 0) return item < nodes * n ? item : -1;
    return item < n ? node * n + item : -1;
}

void cmoe__team_restart(struct cmoe_team *team, int nodes)
{
    for (int i = 0; i < nodes; i++)
        cmoe__team_reset(team, i);
}
