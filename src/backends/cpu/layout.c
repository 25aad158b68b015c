/* SPDX-License-Identifier: MIT
 * Scratch of a row's loops. */
#include "backends/cpu/run.h"

#include "core/size.h"

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
