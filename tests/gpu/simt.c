/* SPDX-License-Identifier: MIT */
#include "simt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#    define ADDRESSES 1
#elif defined(__has_feature)
#    if __has_feature(address_sanitizer)
#        define ADDRESSES 1
#    endif
#endif
#ifdef ADDRESSES
#    include <sanitizer/asan_interface.h>
#else
#    define ASAN_POISON_MEMORY_REGION(at, bytes)   ((void)(at), (void)(bytes))
#    define ASAN_UNPOISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#endif

enum { STACK = 64 * 1024 };

struct fiber {
    ucontext_t context;
    char *stack;
    enum simt_meeting waits;
    uint32_t brings;
};

static struct {
    struct fiber fiber[SIMT_THREADS];
    ucontext_t scheduler;
    const struct simt_launch *launch;
    const struct simt_kernel *kernel;
    void **params;
    struct simt_index block;
    int n, now;                                        /* threads of a block; which of them runs */
    uint32_t met[SIMT_THREADS / SIMT_WARP][SIMT_WARP]; /* what the lanes of a warp brought last */
} run;

static struct simt_kernel *kernels;

void simt_add(struct simt_kernel *kernel)
{
    kernel->next = kernels;
    kernels = kernel;
}

static _Noreturn void wrong(int thread, const char *what)
{
    fprintf(stderr, "simt: %s: block %u,%u thread %d: %s\n", run.kernel->name, run.block.x,
            run.block.y, thread, what);
    abort();
}

struct simt_index simt_thread(void)
{
    const unsigned n = (unsigned)run.now, x = run.launch->block.x;
    return (struct simt_index){n % x, n / x, 0};
}

struct simt_index simt_block(void)
{
    return run.block;
}

struct simt_index simt_block_size(void)
{
    return run.launch->block;
}

struct simt_index simt_grid_size(void)
{
    return run.launch->grid;
}

static void wait_for(enum simt_meeting what, uint32_t value)
{
    struct fiber *f = &run.fiber[run.now];
    f->waits = what;
    f->brings = value;
    swapcontext(&f->context, &run.scheduler);
}

const uint32_t *simt_meet(enum simt_meeting what, uint32_t value)
{
    wait_for(what, value);
    return run.met[run.now / SIMT_WARP];
}

void simt_meet_block(void)
{
    wait_for(SIMT_BLOCK_BARRIER, 0);
}

static void thread_main(void)
{
    run.kernel->run(run.params);
    wait_for(SIMT_ENDED, 0);
}

static void start(int thread)
{
    struct fiber *f = &run.fiber[thread];
    if (!f->stack) f->stack = malloc(STACK); /* kept for later blocks */
    if (!f->stack || getcontext(&f->context) != 0) wrong(thread, "no memory");
    f->waits = SIMT_GOES_ON;
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK;
    f->context.uc_link = NULL;
    makecontext(&f->context, thread_main, 0);
}

/* Threads of the warp until each waits; whether any ran. */
static bool run_warp(int first, int n)
{
    bool ran = false;
    for (int i = 0; i < n; i++) {
        run.now = first + (run.launch->last_first ? n - 1 - i : i);
        if (run.fiber[run.now].waits != SIMT_GOES_ON) continue;
        swapcontext(&run.scheduler, &run.fiber[run.now].context);
        ran = true;
    }
    return ran;
}

/* Where all lanes wait for the warp they go on with what they brought. */
static bool let_meet(int first, int n)
{
    const enum simt_meeting what = run.fiber[first].waits;
    for (int i = first; i < first + n; i++)
        if (run.fiber[i].waits != what) {
            const enum simt_meeting other = run.fiber[i].waits;
            if (what != SIMT_BLOCK_BARRIER && other != SIMT_BLOCK_BARRIER)
                wrong(i, "its warp waits for something else");
            return false;
        }
    if (what == SIMT_ENDED || what == SIMT_BLOCK_BARRIER) return false;
    for (int i = 0; i < n; i++) {
        run.met[first / SIMT_WARP][i] = run.fiber[first + i].brings;
        run.fiber[first + i].waits = SIMT_GOES_ON;
    }
    return true;
}

/* All that have not ended wait for the block. */
static bool let_block_meet(void)
{
    int waiting = 0;
    for (int i = 0; i < run.n; i++) {
        waiting += run.fiber[i].waits == SIMT_BLOCK_BARRIER;
        if (run.fiber[i].waits == SIMT_ENDED) continue;
        if (run.fiber[i].waits != SIMT_BLOCK_BARRIER) wrong(i, "nobody can go on");
    }
    for (int i = 0; i < run.n; i++)
        if (run.fiber[i].waits == SIMT_BLOCK_BARRIER) run.fiber[i].waits = SIMT_GOES_ON;
    return waiting > 0;
}

static void run_block(void)
{
    memset(run.kernel->shared, 0xa5, run.launch->shared_bytes);
    for (int i = 0; i < run.n; i++)
        start(i);
    do {
        bool ran = true;
        while (ran) {
            ran = false;
            for (int first = 0; first < run.n; first += SIMT_WARP) {
                const int n = run.n - first < SIMT_WARP ? run.n - first : SIMT_WARP;
                ran = run_warp(first, n) || ran;
                ran = let_meet(first, n) || ran;
            }
        }
    } while (let_block_meet());
}

bool simt_run(const char *kernel, void **params, const struct simt_launch *launch)
{
    run.kernel = kernels;
    while (run.kernel && strcmp(run.kernel->name, kernel) != 0)
        run.kernel = run.kernel->next;
    if (!run.kernel) return false;
    run.launch = launch;
    run.params = params;
    run.n = (int)(launch->block.x * launch->block.y);
    if (run.n > SIMT_THREADS || launch->shared_bytes > SIMT_SHARED) wrong(0, "too large");
    char *const behind = (char *)run.kernel->shared + launch->shared_bytes;
    ASAN_POISON_MEMORY_REGION(behind, SIMT_SHARED - launch->shared_bytes);
    for (unsigned y = 0; y < launch->grid.y; y++)
        for (unsigned x = 0; x < launch->grid.x; x++) {
            run.block = (struct simt_index){x, y, 0};
            run_block();
        }
    ASAN_UNPOISON_MEMORY_REGION(behind, SIMT_SHARED - launch->shared_bytes);
    return true;
}
