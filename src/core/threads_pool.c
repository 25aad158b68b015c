/* SPDX-License-Identifier: MIT
 * A pool of threads that serves one job at a time.
 *
 * A job is offered to each worker on its own cache line, so workers that a small job leaves out are
 * not touched. A worker takes the offer or, if the job was over before it got to run, finds it
 * withdrawn: on a crowded machine a loop waits for nobody who has not begun. Sleeping follows one pattern on both sides: announce that you will sleep, look
 * again, sleep; the other side changes the value first and looks for the announcement second. With
 * sequentially consistent order one of the two always sees the other.
 *
 * After a fork only the forking thread exists in the child: the process id tells, and the child
 * starts with a pool that has no workers yet. */
#include "core/threads_pool.h"

#include "core/context.h"
#include "core/fail.h"
#include "core/size.h"
#include "core/spin.h"

#include <signal.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

enum {
    LINE = 64,           /* workers' counters are kept on their own cache lines */
    SPIN_NS = 60 * 1000, /* about what sleeping and waking costs */
    NO_PROCESS = 0,
    ADOPTING = -1,
};

enum offer {
    NONE,
    OFFERED, /* by the caller; becomes TAKEN, or NONE again when withdrawn */
    TAKEN,   /* by the worker; becomes NONE when it is done */
    STOP,
};

struct worker {
    CMOE_ALIGNED(LINE) atomic_int offer;
    atomic_int parked;
    int index;
    struct cmoe_pool *pool;
    pthread_t thread;
    pthread_cond_t wake;
};

struct cmoe_pool {
    int size;    /* threads wanted, with the caller */
    int most;    /* threads that can be had in this process */
    int started; /* workers running; belongs to whoever holds `busy` */
    bool spin;
    const struct cmoe_numa *numa;
    atomic_int owner; /* process whose threads the workers are */
    atomic_int busy;
    pthread_mutex_t lock; /* for sleeping only */
    pthread_cond_t done;

    cmoe_body body;
    void *arg;
    int n;
    CMOE_ALIGNED(LINE) atomic_int pending; /* workers that are not done yet */
    atomic_int waiting;                    /* the caller sleeps on `done` */

    struct worker worker[]; /* size - 1 of them; the i-th is thread i + 1 of a job */
};

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Whether it is still worth spinning: asks the clock at every 16th call. */
static bool keep_spinning(unsigned *turn, int64_t *end)
{
    cmoe__spin_pause();
    if (++*turn % 16 != 0) return true;
    const int64_t now = now_ns();
    if (*end == 0) *end = now + SPIN_NS;
    return now < *end;
}

static int wait_for_offer(struct cmoe_pool *pool, struct worker *w)
{
    unsigned turn = 0;
    int64_t end = 0;
    int offer;
    while (pool->spin && keep_spinning(&turn, &end)) {
        offer = atomic_load_explicit(&w->offer, memory_order_relaxed);
        if (offer != NONE) return offer;
    }
    pthread_mutex_lock(&pool->lock);
    atomic_store(&w->parked, 1);
    while ((offer = atomic_load(&w->offer)) == NONE)
        pthread_cond_wait(&w->wake, &pool->lock);
    atomic_store(&w->parked, 0);
    pthread_mutex_unlock(&pool->lock);
    return offer;
}

/* n workers are done with the job, or will not take part in it. */
static void leave(struct cmoe_pool *pool, int n)
{
    if (atomic_fetch_sub(&pool->pending, n) == n && atomic_load(&pool->waiting)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_signal(&pool->done);
        pthread_mutex_unlock(&pool->lock);
    }
}

/* Stay near the node's memory. A system that does not allow it changes where, not what. */
static void settle(const struct cmoe_numa *numa, int index)
{
    if (!numa || numa->nodes < 2) return;
    const struct cmoe_cpus *const cpus = &numa->cpus[index % numa->nodes];
    (void)sched_setaffinity(0, sizeof cpus->set, cpus->set);
}

static void *work(void *arg)
{
    struct worker *const w = arg;
    struct cmoe_pool *const pool = w->pool;
    settle(pool->numa, w->index);
    while (wait_for_offer(pool, w) != STOP) {
        int offered = OFFERED;
        if (!atomic_compare_exchange_strong(&w->offer, &offered, TAKEN)) continue;
        pool->body(pool->arg, w->index, pool->n);
        atomic_store(&w->offer, NONE);
        leave(pool, 1);
    }
    return NULL;
}

/* Set the first n workers' offer and wake those that sleep. */
static void send(struct cmoe_pool *pool, int n, enum offer offer)
{
    bool asleep = false;
    for (int i = 0; i < n; i++) {
        atomic_store(&pool->worker[i].offer, (int)offer);
        asleep = atomic_load(&pool->worker[i].parked) || asleep;
    }
    if (!asleep) return;
    pthread_mutex_lock(&pool->lock);
    for (int i = 0; i < n; i++) {
        if (atomic_load(&pool->worker[i].parked)) pthread_cond_signal(&pool->worker[i].wake);
    }
    pthread_mutex_unlock(&pool->lock);
}

/* Take back the offers of the job that is over. */
static void withdraw(struct cmoe_pool *pool, int n)
{
    int withdrawn = 0;
    for (int i = 0; i < n; i++) {
        int offered = OFFERED;
        withdrawn += atomic_compare_exchange_strong(&pool->worker[i].offer, &offered, NONE);
    }
    if (withdrawn > 0) leave(pool, withdrawn);
}

static void wait_for_workers(struct cmoe_pool *pool)
{
    unsigned turn = 0;
    int64_t end = 0;
    while (pool->spin && keep_spinning(&turn, &end)) {
        if (atomic_load_explicit(&pool->pending, memory_order_acquire) == 0) return;
    }
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->waiting, 1);
    while (atomic_load(&pool->pending) != 0)
        pthread_cond_wait(&pool->done, &pool->lock);
    atomic_store(&pool->waiting, 0);
    pthread_mutex_unlock(&pool->lock);
}

/* Make the pool this process's. False while another thread is at it. */
static bool adopt(struct cmoe_pool *pool)
{
    const int self = (int)getpid();
    int owner = atomic_load_explicit(&pool->owner, memory_order_acquire);
    if (owner == self) return true;
    if (owner == ADOPTING || !atomic_compare_exchange_strong(&pool->owner, &owner, ADOPTING)) {
        return false;
    }
    /* Whatever state these were in belonged to threads that are not here. */
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->done, NULL);
    pool->most = pool->size;
    pool->started = 0;
    for (int i = 0; i < pool->size - 1; i++) {
        pthread_cond_init(&pool->worker[i].wake, NULL);
        atomic_store(&pool->worker[i].parked, 0);
        atomic_store(&pool->worker[i].offer, NONE);
    }
    atomic_store(&pool->waiting, 0);
    atomic_store(&pool->busy, 0);
    atomic_store_explicit(&pool->owner, self, memory_order_release);
    return true;
}

/* Have n - 1 workers, or as many as the system gives. Signals stay with the caller's threads. */
static void start(struct cmoe_pool *pool, int n)
{
    sigset_t all, old;
    sigfillset(&all);
    if (pthread_sigmask(SIG_SETMASK, &all, &old) != 0) return;
    while (pool->started + 1 < n) {
        struct worker *const w = &pool->worker[pool->started];
        w->pool = pool;
        w->index = pool->started + 1;
        if (pthread_create(&w->thread, NULL, work, w) != 0) {
            pool->most = pool->started + 1;
            break;
        }
        pool->started++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

bool cmoe__pool_run(struct cmoe_pool *pool, int n, bool together, cmoe_body body, void *arg)
{
    if (n < 2 || pool->size < 2 || !adopt(pool)) return false;
    if (atomic_exchange_explicit(&pool->busy, 1, memory_order_acquire)) return false;
    if (n > pool->most) n = pool->most;
    if (n > pool->started + 1) start(pool, n);
    if (n > pool->most) n = pool->most;
    if (n > 1) {
        pool->body = body;
        pool->arg = arg;
        pool->n = n;
        atomic_store(&pool->pending, n - 1);
        send(pool, n - 1, OFFERED);
        body(arg, 0, n);
        if (!together) withdraw(pool, n - 1);
        wait_for_workers(pool);
    }
    atomic_store_explicit(&pool->busy, 0, memory_order_release);
    return n > 1;
}

cmoe_status cmoe__pool_create(cmoe_context *ctx, int size, bool spin, const struct cmoe_numa *numa,
                              struct cmoe_pool **out)
{
    const size_t workers = (size_t)(size - 1);
    size_t bytes;
    struct cmoe_pool *pool = NULL;
    if (cmoe__mul_size(workers, sizeof pool->worker[0], &bytes) &&
        cmoe__add_size(bytes, sizeof *pool, &bytes)) {
        pool = cmoe__calloc(ctx, bytes, LINE);
    }
    if (!pool) return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "No memory for a pool of %d threads.", size);
    pool->size = size;
    pool->spin = spin;
    pool->numa = numa;
    atomic_store(&pool->owner, NO_PROCESS);
    *out = pool;
    return CMOE_OK;
}

void cmoe__pool_destroy(cmoe_context *ctx, struct cmoe_pool *pool)
{
    if (!pool) return;
    if (atomic_load(&pool->owner) == (int)getpid()) {
        send(pool, pool->started, STOP);
        for (int i = 0; i < pool->started; i++)
            pthread_join(pool->worker[i].thread, NULL);
        for (int i = 0; i < pool->size - 1; i++)
            pthread_cond_destroy(&pool->worker[i].wake);
        pthread_cond_destroy(&pool->done);
        pthread_mutex_destroy(&pool->lock);
    }
    cmoe__free(ctx, pool);
}
