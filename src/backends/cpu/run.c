/* SPDX-License-Identifier: MIT
 * Scratch of a row's loops, and the two ways of running them. */
#include "backends/cpu/run.h"

#include "backends/cpu/ops_quant.h"
#include "backends/cpu/ops_tile.h"
#include "core/size.h"
#include <math.h>
#include <stdatomic.h>
#include <string.h>

const struct cmoe_cpu_ops *cmoe__cpu_ops(enum cmoe_isa isa)
{
    switch (isa) {
#if defined __x86_64__
    case CMOE_ISA_LEVEL_AVX2:
        return &cmoe__cpu_ops_avx2;
    case CMOE_ISA_LEVEL_AVX512:
    case CMOE_ISA_LEVEL_AVX512VNNI:
    case CMOE_ISA_LEVEL_AVX512BF16:
    case CMOE_ISA_LEVEL_AMX:
        return &cmoe__cpu_ops_avx512;
#else
    case CMOE_ISA_LEVEL_AVX2:
    case CMOE_ISA_LEVEL_AVX512:
    case CMOE_ISA_LEVEL_AVX512VNNI:
    case CMOE_ISA_LEVEL_AVX512BF16:
    case CMOE_ISA_LEVEL_AMX:
        return NULL;
#endif
    case CMOE_ISA_LEVEL_GENERIC:
    case CMOE_ISA_LEVELS:
        break;
    }
    return &cmoe__cpu_ops_generic;
}

const struct cmoe_cpu_quant_ops *cmoe__cpu_quant_ops(enum cmoe_isa isa)
{
    switch (isa) {
#if defined __x86_64__
    case CMOE_ISA_LEVEL_AVX2:
        return &cmoe__cpu_quant_ops_avx2;
    case CMOE_ISA_LEVEL_AVX512:
        return &cmoe__cpu_quant_ops_avx512;
    case CMOE_ISA_LEVEL_AVX512VNNI:
    case CMOE_ISA_LEVEL_AVX512BF16:
    case CMOE_ISA_LEVEL_AMX:
        return &cmoe__cpu_quant_ops_avx512vnni;
#else
    case CMOE_ISA_LEVEL_AVX2:
    case CMOE_ISA_LEVEL_AVX512:
    case CMOE_ISA_LEVEL_AVX512VNNI:
    case CMOE_ISA_LEVEL_AVX512BF16:
    case CMOE_ISA_LEVEL_AMX:
        return NULL;
#endif
    case CMOE_ISA_LEVEL_GENERIC:
    case CMOE_ISA_LEVELS:
        break;
    }
    return &cmoe__cpu_quant_ops_generic;
}

const struct cmoe_cpu_tile_ops *cmoe__cpu_tile_ops(enum cmoe_isa isa)
{
#if defined __x86_64__
    if (isa == CMOE_ISA_LEVEL_AVX512BF16) return &cmoe__cpu_tile_ops_avx512bf16;
    if (isa == CMOE_ISA_LEVEL_AMX) return &cmoe__cpu_tile_ops_amx;
#endif
    (void)isa;
    return NULL;
}

bool cmoe__cpu_is_float(int dtype)
{
    return dtype == CMOE_F32 || dtype == CMOE_F16 || dtype == CMOE_BF16;
}

/* --- layout --------------------------------------------------------------------------------- */

/* Buffers one after the other at multiples of 64 bytes. Sizes saturate, so that what does not fit
 * is refused when the workspace is placed. */
struct layout {
    char *base; /* NULL: only count */
    size_t bytes;
};

static void *reserve(struct layout *l, int64_t count, size_t size)
{
    size_t bytes, end;
    if (!cmoe__mul_size((size_t)count, size, &bytes) || bytes > SIZE_MAX / 4 ||
        !cmoe__add_size(l->bytes, (bytes + 63) / 64 * 64, &end))
        end = SIZE_MAX / 4;
    void *const at = l->base ? l->base + l->bytes : NULL;
    l->bytes = end;
    return at;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* What lies between stages that the row covers itself. */
static void lay_out_edges(struct layout *l, const struct cmoe_kernel *k, const cmoe_problem *p,
                          const struct cmoe_shape *s, int64_t tokens, struct cmoe_exec *x)
{
    const int64_t rows = cmoe__shape_rows(p, s, tokens);
    if (k->first < k->last && k->last == CMOE_STAGE_REQUANT)
        x->h = reserve(l, rows * s->I, sizeof(float));
    if (k->last < CMOE_STAGE_COMBINE || k->first == k->last) return;
    x->rows = reserve(l, rows, sizeof *x->rows);
    x->offsets = reserve(l, (int64_t)s->local + 1, sizeof *x->offsets);
    if (!cmoe__cpu_reads_p32(k)) x->gu = reserve(l, rows * s->rows1, sizeof *x->gu);
    x->h = reserve(l, rows * s->I, cmoe_dtype_bytes(cmoe__shape_h_dtype(p), 1));
    x->hq = x->h;
    x->z = reserve(l, rows * s->H, sizeof *x->z);
}

bool cmoe__cpu_reads_p32(const struct cmoe_kernel *k)
{
    const char *const format = k->format1 ? k->format1 : k->format2;
    return format && strncmp(format, cmoe__cpu_p32.name, strlen(cmoe__cpu_p32.name)) == 0;
}

size_t cmoe__cpu_lay_out(const struct cmoe_kernel *k, const cmoe_problem *p,
                         const struct cmoe_shape *s, int64_t tokens, int workers,
                         struct cmoe_cpu_run *run, char *base)
{
    struct layout l = {.base = base};
    size_t worker = 0;
    lay_out_edges(&l, k, p, s, tokens, &run->x);
    if (k->first <= CMOE_STAGE_ROUTE) {
        run->logit_cols = p->experts + (p->flags & CMOE_SHARED_SIGMOID ? p->shared : 0);
        if (p->flags & CMOE_ROUTE_FROM_X)
            run->logits = reserve(&l, tokens * run->logit_cols, sizeof *run->logits);
        worker = larger(worker, cmoe__cpu_route_worker(p, s));
    }
    if (k->first <= CMOE_STAGE_SORT && k->last >= CMOE_STAGE_SORT) {
        run->sort_chunks = cmoe__cpu_sort_chunks(cmoe__shape_rows(p, s, tokens));
        run->counts = reserve(&l, (int64_t)run->sort_chunks * s->local, sizeof *run->counts);
    }
    if (k->last == CMOE_STAGE_QUANT || k->last == CMOE_STAGE_REQUANT) {
        run->amax = reserve(&l, cmoe__cpu_quant_items(p, s, tokens), sizeof *run->amax);
        worker = cmoe__cpu_quant_worker(k->last == CMOE_STAGE_QUANT ? s->H : s->I);
    }
    for (int matrix = 1; matrix <= 2; matrix++) {
        const int stage = matrix == 1 ? CMOE_STAGE_GEMM1 : CMOE_STAGE_GEMM2;
        if (k->first > stage || k->last < stage) continue;
        struct cmoe_cpu_gemm *const g = &run->gemm[matrix - 1];
        cmoe__cpu_gemm_plan(p, s, matrix, k, g);
        g->item_of = reserve(&l, (int64_t)s->local + 1, sizeof *g->item_of);
        worker = larger(worker, cmoe__cpu_gemm_worker(g));
    }
    run->packed = reserve(&l, workers, sizeof *run->packed);
    run->worker_bytes = (worker + 63) / 64 * 64;
    run->worker_scratch = reserve(&l, workers, run->worker_bytes);
    return l.bytes;
}

/* --- running -------------------------------------------------------------------------------- */

struct chain {
    struct cmoe_cpu_run *run;
    const struct cmoe_cpu_loop *loop[CMOE_CPU_LOOPS];
    int n_loops;
};

static void add_stage(struct chain *c, int stage)
{
    switch ((cmoe_stage)stage) {
    case CMOE_STAGE_ROUTE:
        if (c->run->x.p->flags & CMOE_ROUTE_FROM_X) c->loop[c->n_loops++] = &cmoe__cpu_loop_logits;
        c->loop[c->n_loops++] = &cmoe__cpu_loop_select;
        break;
    case CMOE_STAGE_SORT:
        c->loop[c->n_loops++] = &cmoe__cpu_loop_count;
        c->loop[c->n_loops++] = &cmoe__cpu_loop_place;
        break;
    case CMOE_STAGE_GEMM1:
        c->loop[c->n_loops++] = &cmoe__cpu_loop_gemm1;
        break;
    case CMOE_STAGE_ACT:
        if (c->run->gemm[0].fused) break;
        c->loop[c->n_loops++] = &cmoe__cpu_loop_act;
        break;
    case CMOE_STAGE_GEMM2:
        c->loop[c->n_loops++] = &cmoe__cpu_loop_gemm2;
        break;
    case CMOE_STAGE_COMBINE:
        c->loop[c->n_loops++] = &cmoe__cpu_loop_combine;
        break;
    case CMOE_STAGE_QUANT: /* rows of several stages take problems where these two are empty */
        if (!c->run->x.shape->quant) break;
        c->loop[c->n_loops++] = &cmoe__cpu_loop_x_amax;
        c->loop[c->n_loops++] = &cmoe__cpu_loop_x_codes;
        break;
    case CMOE_STAGE_REQUANT:
        if (!c->run->x.shape->requant) break;
        c->loop[c->n_loops++] = &cmoe__cpu_loop_h_amax;
        c->loop[c->n_loops++] = &cmoe__cpu_loop_h_codes;
        break;
    case CMOE_STAGE_COUNT:
        break;
    }
}

struct spread {
    struct cmoe_cpu_run *run;
    const struct cmoe_cpu_loop *loop;
};

/* Items that a worker has taken and not begun. */
struct share {
    int next, end;
};

/* The worker's next item, or -1. Items in order come several at once, fewer and fewer, so that what one fetches
 * past an item's end is what it reads next, and all end together. */
static int take(struct cmoe_cpu_run *run, struct share *s)
{
    enum { PARTS = 4 }; /* of a worker's share of what is left */
    if (s->next < s->end) return s->next++;
    const int n_items = run->n_items * run->nodes;
    int at = atomic_load_explicit(&run->taken, memory_order_relaxed), n;
    do {
        if (at >= n_items) return -1;
        n = run->in_order ? (n_items - at) / (PARTS * run->x.n_threads) : 1;
        if (n < 1) n = 1;
    } while (!atomic_compare_exchange_weak_explicit(&run->taken, &at, at + n, memory_order_relaxed,
                                                    memory_order_relaxed));
    *s = (struct share){.next = at + 1, .end = at + n};
    return at;
}

/* Worker i names its scratch, nothing else. */
static void spread_worker(void *arg, int i, int n)
{
    const struct spread *const s = arg;
    struct share share = {0};
    (void)n;
    for (int item; (item = take(s->run, &share)) >= 0;)
        s->loop->item(s->run, item, i);
}

/* Count the loop's items. */
static void begin(struct cmoe_cpu_run *run, const struct cmoe_cpu_loop *loop)
{
    run->nodes = 1;
    run->in_order = false;
    run->n_items = loop->begin(run);
    atomic_store_explicit(&run->taken, 0, memory_order_relaxed);
    for (int i = 0; i < run->x.n_threads; i++)
        run->packed[i].rows = 0;
}

/* Items of every node for its members of a team. */
static void take_shares(void *arg, struct cmoe_team *team)
{
    struct spread *const s = arg;
    for (int item; (item = cmoe__team_take(team, s->run->nodes, s->run->n_items)) >= 0;)
        s->loop->item(s->run, item, team->rank);
}

/* most: threads that may take part. */
static void run_loop(struct cmoe_cpu_run *run, const struct cmoe_cpu_loop *loop, int most)
{
    struct spread s = {.run = run, .loop = loop};
    begin(run, loop);
    const int items = run->n_items * run->nodes;
    const int workers = items < most ? items : most;
    if (workers == 1)
        spread_worker(&s, 0, 1);
    else if (workers > 1 && run->nodes > 1)
        cmoe__team_run(run->x.threads, workers, take_shares, &s);
    else if (workers > 1)
        cmoe__parallel(run->x.threads, run->x.n_threads, workers, spread_worker, &s);
}

/* Every member walks all loops; member 0 counts the items. Those of a node go to its threads. */
static void walk(void *arg, struct cmoe_team *team)
{
    const struct chain *const c = arg;
    for (int i = 0; i < c->n_loops; i++) {
        if (team->rank == 0) {
            begin(c->run, c->loop[i]);
            cmoe__team_restart(team, c->run->nodes);
        }
        cmoe__team_barrier(team);
        struct spread s = {.run = c->run, .loop = c->loop[i]};
        if (c->run->nodes > 1)
            take_shares(&s, team);
        else
            spread_worker(&s, team->rank, team->size);
        cmoe__team_barrier(team);
    }
}

static float parameter(float given, float otherwise)
{
    return given != 0 ? given : otherwise;
}

static struct cmoe_cpu_act activation(const cmoe_problem *p)
{
    const bool oai = p->act == CMOE_ACT_SWIGLU_OAI;
    const float limit = parameter(p->act_limit, oai ? 7.0f : -1.0f);
    return (struct cmoe_cpu_act){.act = (cmoe_activation)p->act,
                                 .gated = p->gate != CMOE_GATE_NONE,
                                 .limit = limit > 0 ? limit : INFINITY,
                                 .alpha = parameter(p->act_alpha, 1.702f),
                                 .beta = parameter(p->act_beta, oai ? 1.0f : 4.0f),
                                 .lbeta = parameter(p->act_lbeta, 25.0f)};
}

bool cmoe__cpu_is_tiny(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens)
{
    enum { PRODUCTS = 32 * 1024 }; /* a few us of one core, as a fork and the barriers of a layer */
    const double each = (double)s->rows1 * (double)s->H + (double)s->H * (double)s->I;
    return (double)cmoe__shape_rows(p, s, tokens) * each <= PRODUCTS;
}

cmoe_status cmoe__cpu_run(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    const struct cmoe_kernel *const k = step->kernel;
    struct cmoe_cpu_run run = {.x = *x,
                               .ops = cmoe__cpu_ops((enum cmoe_isa)k->target),
                               .quant = cmoe__cpu_quant_ops((enum cmoe_isa)k->target),
                               .act = activation(x->p)};
    struct chain chain = {.run = &run};
    (void)cmoe__cpu_lay_out(k, x->p, x->shape, x->tokens, x->n_threads, &run, x->scratch);
    for (int stage = k->first; stage <= k->last; stage++)
        add_stage(&chain, stage);
    const int most = cmoe__cpu_is_tiny(x->p, x->shape, x->tokens) ? 1 : x->n_threads;
    if (k->last < CMOE_STAGE_COMBINE || k->first == k->last)
        for (int i = 0; i < chain.n_loops; i++)
            run_loop(&run, chain.loop[i], most);
    else
        cmoe__team_run(x->threads, most, walk, &chain);
    return CMOE_OK;
}
