/* SPDX-License-Identifier: MIT
 * A row's stages as loops, and the two ways of running them. */
#include "backends/cpu/run.h"

#include "backends/cpu/ops_quant.h"
#include <math.h>
#include <stdatomic.h>

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
