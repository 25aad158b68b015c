/* SPDX-License-Identifier: MIT
 * Running a plan: check the call, lay out its buffers, run the steps. No allocation, no lock. */
#include "core/fail.h"
#include "core/numeric.h"
#include "core/size.h"
#include "plan/plan.h"
#include "stages/tensors.h"
#include <cmoe/record.h>
#include <string.h>
#include <time.h>

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void *grant(const struct cmoe_path *path, int region, void *workspace, const void *callers)
{
    return callers ? (void *)(uintptr_t)callers
                   : cmoe__arena_grant(&path->arena, region, workspace);
}

/* Pointer of a buffer that `stage` makes, where the plan begins behind that stage or ends with it.
 * In the middle of a plan it means nothing. */
static const void *end_of(const cmoe_problem *p, cmoe_stage stage, const void *pointer)
{
    return p->first > stage || p->last == stage ? pointer : NULL;
}

/* Rows and offsets: the caller's when the plan's edge is the index format itself. */
static void lay_out_sort(struct cmoe_exec *x, const struct cmoe_path *path, void *workspace)
{
    const cmoe_tensors *t = x->t;
    const bool index = x->p->sort_format == CMOE_SORT_INDEX && !x->shape->batched &&
                       (x->p->first > CMOE_STAGE_SORT || x->p->last == CMOE_STAGE_SORT);
    x->rows = grant(path, CMOE_REGION_ROWS, workspace, index ? t->sorted_ids : NULL);
    x->offsets = grant(path, CMOE_REGION_OFFSETS, workspace, index ? t->expert_offsets : NULL);
    x->progress = grant(path, CMOE_REGION_PROGRESS, workspace, NULL);
}

static void lay_out_x(struct cmoe_exec *x, const struct cmoe_path *path, void *workspace)
{
    const cmoe_problem *p = x->p;
    const cmoe_tensors *t = x->t;
    if (x->shape->quant) {
        const bool ends = p->last == CMOE_STAGE_QUANT;
        x->xq = grant(path, CMOE_REGION_XQ, workspace, ends ? t->xq : NULL);
        x->xq_stride = (int64_t)cmoe__row_code_bytes(p->x, p->hidden);
        const bool given = p->x.fixed && p->x.scaling == CMOE_SCALE_TENSOR;
        x->xs = grant(path, CMOE_REGION_XS, workspace,
                      given ? t->x_scale : (ends ? t->xq_scale : NULL));
        x->xg = grant(path, CMOE_REGION_XG, workspace, ends ? t->xq_global : NULL);
    } else {
        x->xq = (void *)(uintptr_t)t->x;
        x->xq_stride = x->x_stride;
        x->xs = (void *)(uintptr_t)t->x_scale;
        x->xg = (float *)(uintptr_t)t->x_global;
    }
}

static void lay_out(struct cmoe_exec *x, const struct cmoe_path *path, void *workspace)
{
    const cmoe_problem *p = x->p;
    const cmoe_tensors *t = x->t;
    x->x = t->x;
    x->x_stride = cmoe__tensors_x_stride(p, x->shape, t);
    x->y = t->y;
    x->y_stride = cmoe__tensors_y_stride(p, x->shape, t);
    const bool wide = p->first > CMOE_STAGE_ROUTE && t->topk_ids64;
    x->ids = x->shape->m_indices
                 ? t->sorted_ids
                 : grant(path, CMOE_REGION_IDS, workspace, wide ? NULL : t->topk_ids);
    x->weights = p->first > CMOE_STAGE_ROUTE
                     ? t->topk_weights
                     : grant(path, CMOE_REGION_WEIGHTS, workspace, t->topk_weights);
    lay_out_sort(x, path, workspace);
    lay_out_x(x, path, workspace);
    /* Where REQUANT has nothing to do, a plan that ends with it ends with ACT. */
    const bool act_ends = p->last == CMOE_STAGE_REQUANT && !x->shape->requant;
    const void *const mid = act_ends ? t->mid : end_of(p, CMOE_STAGE_ACT, t->mid);
    x->gu = grant(path, CMOE_REGION_GU, workspace, end_of(p, CMOE_STAGE_GEMM1, t->gate_up));
    x->h = grant(path, CMOE_REGION_H, workspace, mid);
    if (x->shape->requant) {
        const cmoe_stage stage = CMOE_STAGE_REQUANT;
        x->hq = grant(path, CMOE_REGION_HQ, workspace, end_of(p, stage, t->mid_q));
        const bool given = p->mid.fixed && p->mid.scaling == CMOE_SCALE_TENSOR;
        x->hs = grant(path, CMOE_REGION_HS, workspace,
                      given ? t->mid_scale : end_of(p, stage, t->mid_q_scale));
        x->hg = grant(path, CMOE_REGION_HG, workspace, end_of(p, stage, t->mid_q_global));
    } else {
        x->hq = x->h;
    }
    x->z = grant(path, CMOE_REGION_Z, workspace, end_of(p, CMOE_STAGE_GEMM2, t->z));
}

/* 64-bit ids into the workspace; what does not fit is no expert. */
static void narrow_ids(const struct cmoe_exec *x)
{
    const int64_t *wide = x->t->topk_ids64;
    if (x->p->first == CMOE_STAGE_ROUTE || !wide) return;
    for (int64_t i = 0; i < (int64_t)x->tokens * x->shape->slots; i++)
        x->ids[i] = wide[i] >= 0 && wide[i] <= INT32_MAX ? (int32_t)wide[i] : -1;
}

/* Rows that no kernel writes, because their slot is not computed, are zero at a plan's end. */
static void clear_end(const struct cmoe_exec *x)
{
    const cmoe_problem *p = x->p;
    const struct cmoe_shape *s = x->shape;
    const size_t rows = (size_t)cmoe__shape_rows(p, s, x->tokens);
    if (p->last == CMOE_STAGE_GEMM1) memset(x->gu, 0, rows * (size_t)s->rows1 * 4);
    const bool act_ends = p->last == CMOE_STAGE_REQUANT && !s->requant;
    if (p->first <= CMOE_STAGE_ACT && (p->last == CMOE_STAGE_ACT || act_ends))
        memset(x->h, 0, rows * cmoe_dtype_bytes(cmoe__shape_h_dtype(p), s->I));
    if (p->last == CMOE_STAGE_REQUANT && s->requant)
        memset(x->hq, 0, rows * cmoe__row_code_bytes(p->mid, s->I));
    if (p->last == CMOE_STAGE_GEMM2) memset(x->z, 0, rows * (size_t)s->H * 4);
}

static void count_load(const struct cmoe_exec *x)
{
    int64_t *load = x->t->expert_load;
    if (!load) return;
    if (x->shape->batched) {
        for (int32_t e = 0; e < x->shape->local; e++) {
            const int32_t n = x->t->expert_offsets[e];
            load[e] += cmoe__max64(0, cmoe__min64(n, x->p->capacity));
        }
        return;
    }
    for (int64_t i = 0; x->ids && i < (int64_t)x->tokens * x->shape->slots; i++) {
        const int32_t e = cmoe__exec_local(x, x->ids[i]);
        if (e >= 0) load[e]++;
    }
}

static cmoe_status run_step(const struct cmoe_path *path, int i, struct cmoe_exec *x,
                            void *workspace)
{
    const struct cmoe_step *step = &path->step[i];
    x->scratch = cmoe__arena_grant(&path->arena, CMOE_REGION_SCRATCH + i, workspace);
    const bool host = x->dev->props.host;
    if (!host) x->spent = cmoe__arena_spent(&path->arena, i, workspace, &x->spent_bytes);
#ifdef CMOE_DEBUG
    if (host) cmoe__arena_paint(&path->arena, workspace, i);
    if (host && i == 0) narrow_ids(x);
#endif
    CMOE_TRY(step->kernel->family->run(step, x));
#ifdef CMOE_DEBUG
    const int damaged = host ? cmoe__arena_check(&path->arena, workspace, i) : -1;
    if (damaged >= 0)
        return CMOE_FAIL(CMOE_ERR_DEVICE, "kernel %s wrote outside workspace region %d",
                         step->kernel->name, damaged);
#endif
    return CMOE_OK;
}

static void count_time(const struct cmoe_exec *x, const struct cmoe_step *step, double us)
{
    if (step->kernel->last < CMOE_STAGE_COUNT) x->t->stage_us[step->kernel->last] += us;
}

/* stage_us of a device: by events around the steps, read when the last step is done. */
static cmoe_status run_between_events(const struct cmoe_path *path, struct cmoe_exec *x,
                                      void *workspace)
{
    const struct cmoe_stream_table *s = x->dev->backend->streams;
    void *event[CMOE_PLAN_STEPS + 1] = {NULL};
    cmoe_status status = CMOE_OK;
    for (int i = 0; i <= path->n_steps && status == CMOE_OK; i++)
        status = s->event_create(x->dev, &event[i]);
    if (status == CMOE_OK) status = s->event_record(x->dev, event[0], x->stream);
    for (int i = 0; i < path->n_steps && status == CMOE_OK; i++) {
        status = run_step(path, i, x, workspace);
        if (status == CMOE_OK) status = s->event_record(x->dev, event[i + 1], x->stream);
    }
    for (int i = 0; i < path->n_steps && status == CMOE_OK; i++) {
        double us = 0;
        status = s->event_elapsed(x->dev, event[i], event[i + 1], &us);
        count_time(x, &path->step[i], us);
    }
    for (int i = 0; i <= path->n_steps; i++)
        if (event[i]) s->event_destroy(x->dev, event[i]);
    return status;
}

static cmoe_status run_steps(const struct cmoe_path *path, struct cmoe_exec *x, void *workspace)
{
    if (x->t->stage_us && x->dev->backend->streams) return run_between_events(path, x, workspace);
    for (int i = 0; i < path->n_steps; i++) {
        const double start = x->t->stage_us ? now_us() : 0;
        CMOE_TRY(run_step(path, i, x, workspace));
        if (x->t->stage_us) count_time(x, &path->step[i], now_us() - start);
    }
    return CMOE_OK;
}

/* The same call from token `first` on. */
static cmoe_tensors shifted(const struct cmoe_plan *plan, const cmoe_tensors *t, int64_t first,
                            int32_t tokens)
{
    const cmoe_problem *p = &plan->p;
    const int32_t slots = plan->shape.slots;
    cmoe_tensors out = *t;
    out.n_tokens = tokens;
    if (plan->props.host || first > 0) out.n_tokens_dev = NULL;
    if (first == 0) return out;
    const int64_t columns = p->experts + (p->flags & CMOE_SHARED_SIGMOID ? p->shared : 0);
    const int64_t logits = t->logits_stride ? t->logits_stride : columns;
    const int64_t x_rows = plan->shape.x_given && plan->shape.x_slots ? slots : 1;
#define SHIFT(field, bytes)                                                                        \
    out.field = t->field ? (void *)((uintptr_t)t->field + (uintptr_t)(first * (bytes))) : NULL
    SHIFT(logits, logits * cmoe_dtype_bits((cmoe_dtype)p->logits) / 8);
    SHIFT(token_ids, 8);
    SHIFT(topk_ids, 4 * slots);
    SHIFT(topk_weights, 4 * slots);
    SHIFT(topk_ids64, 8 * slots);
    SHIFT(x, cmoe__tensors_x_stride(p, &plan->shape, t) * x_rows);
    SHIFT(y, cmoe__tensors_y_stride(p, &plan->shape, t));
    /* 0 bytes a row where one scale, or one NV global, holds for all rows. */
    if (plan->shape.x_given) {
        SHIFT(x_scale, (int64_t)cmoe__row_scale_bytes(p->x, p->hidden) * x_rows);
        if (!p->x.fixed) SHIFT(x_global, 4 * x_rows);
    }
#undef SHIFT
    return out;
}

static cmoe_status run_pass(const struct cmoe_plan *plan, const cmoe_tensors *t,
                            const cmoe_weights *w, int32_t tokens, void *workspace, void *stream)
{
    const struct cmoe_path *path = &plan->path[cmoe__plan_bucket(tokens)];
    struct cmoe_exec x = {
        .p = &plan->p,
        .shape = &plan->shape,
        .t = t,
        .w = w,
        .dev = plan->dev,
        .threads = plan->ctx->threads,
        .n_threads = plan->props.threads,
        .stream = stream,
        .tokens = tokens,
    };
    lay_out(&x, path, workspace);
    const struct cmoe_backend *backend = plan->dev->backend;
    if (backend->prologue) {
        CMOE_TRY(backend->prologue(&x));
    } else {
        narrow_ids(&x);
        clear_end(&x);
    }
    CMOE_TRY(run_steps(path, &x, workspace));
    if (backend->epilogue) return backend->epilogue(&x);
    count_load(&x);
    return CMOE_OK;
}

static cmoe_status run_passes(const struct cmoe_plan *plan, const cmoe_tensors *t,
                              const cmoe_weights *w, int64_t tokens, void *workspace, void *stream)
{
    /* Readers of a sort need its counts even where a device counted no token. */
    const bool empty_sort = tokens == 0 && plan->p.last == CMOE_STAGE_SORT;
    for (int64_t first = 0; first < tokens || (empty_sort && first == 0); first += plan->chunk) {
        const int32_t n = (int32_t)cmoe__min64(plan->chunk, tokens - first);
        const cmoe_tensors part = shifted(plan, t, first, n);
        CMOE_TRY(run_pass(plan, &part, w, n, workspace, stream));
    }
    return CMOE_OK;
}

static cmoe_status check_call(const struct cmoe_plan *plan, const cmoe_tensors *t,
                              const void *workspace, size_t workspace_size)
{
    if (t->n_tokens < 0 || (!plan->shape.batched && t->n_tokens > plan->p.max_tokens))
        return CMOE_FAIL(CMOE_ERR_INVALID, "cmoe_execute: n_tokens %d is outside 0..%d",
                         t->n_tokens, plan->p.max_tokens);
    if (t->n_tokens == 0) return CMOE_OK;
    if (workspace_size < plan->workspace || (!workspace && plan->workspace > 0))
        return CMOE_FAIL(CMOE_ERR_WORKSPACE,
                         "cmoe_execute: the workspace has %zu bytes, the plan needs %zu",
                         workspace ? workspace_size : 0, plan->workspace);
    if ((uintptr_t)workspace % CMOE_ARENA_ALIGN != 0)
        return CMOE_FAIL(CMOE_ERR_WORKSPACE,
                         "cmoe_execute: the workspace %p is not aligned to %d bytes", workspace,
                         CMOE_ARENA_ALIGN);
    return CMOE_OK;
}

static void record_call(const struct cmoe_plan *plan, const cmoe_tensors *t, const cmoe_weights *w)
{
    const cmoe_recorder *recorder = plan->ctx->options.recorder;
    char path[512];
    if (!recorder || !recorder->record) return;
    cmoe_plan_path(plan, t->n_tokens, path, sizeof path);
    const cmoe_record call = {.struct_size = sizeof call,
                              .problem = &plan->p,
                              .tensors = t,
                              .weights = w,
                              .path = path,
                              .device = plan->dev->backend->name,
                              .far = !plan->props.host};
    recorder->record(recorder->user, &call);
}

static cmoe_status run_on_device(const struct cmoe_plan *plan, const cmoe_tensors *t,
                                 const cmoe_weights *w, int64_t tokens, void *workspace,
                                 void *stream)
{
    const struct cmoe_backend *backend = plan->dev->backend;
    if (!backend->enter) return run_passes(plan, t, w, tokens, workspace, stream);
    CMOE_TRY(backend->enter(plan->dev));
    const cmoe_status status = run_passes(plan, t, w, tokens, workspace, stream);
    backend->leave(plan->dev);
    return status;
}

cmoe_status cmoe_execute(const cmoe_plan *plan, const cmoe_tensors *t, void *workspace,
                         size_t workspace_size, void *stream)
{
    if (!plan || !t)
        return CMOE_FAIL(CMOE_ERR_INVALID, "cmoe_execute: %s is NULL", plan ? "tensors" : "plan");
    CMOE_TRY(check_call(plan, t, workspace, workspace_size));
    const cmoe_weights *w = t->weights ? t->weights : plan->w;
    int64_t tokens = t->n_tokens;
    if (tokens == 0) return CMOE_OK;
    CMOE_TRY(cmoe__tensors_check(&plan->p, &plan->shape, t, w, plan->props.host));
    if (t->weights && t->weights != plan->w) CMOE_TRY(cmoe__plan_check_weights(plan, t->weights));
    record_call(plan, t, w);
    if (plan->shape.batched)
        tokens = plan->p.max_tokens;
    else if (t->n_tokens_dev && plan->props.host)
        tokens = cmoe__max64(0, cmoe__min64(tokens, *t->n_tokens_dev));
    int claim;
    if (!cmoe__claim(&plan->ctx->claims, workspace, &claim))
        return CMOE_FAIL(CMOE_ERR_BUSY, "cmoe_execute: another call is using the workspace %p",
                         workspace);
    const cmoe_status status = run_on_device(plan, t, w, tokens, workspace, stream);
    cmoe__release(&plan->ctx->claims, claim);
    return status;
}

int64_t cmoe_sort_capacity(const cmoe_problem *p, int64_t tokens)
{
    struct cmoe_shape s;
    if (!p) return 0;
    cmoe__shape(p, &s);
    const int64_t slots = tokens * s.slots, bm = p->block_m > 0 ? p->block_m : 1;
    if (p->sort_format != CMOE_SORT_PACKED && p->sort_format != CMOE_SORT_FLAT) return slots;
    /* At most min(slots, E_local) segments, each with up to block_m - 1 rows of padding. */
    return cmoe__round_up(slots + cmoe__min64(slots, s.local) * (bm - 1), bm);
}
