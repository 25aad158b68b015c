/* SPDX-License-Identifier: MIT
 * Making a weights object: check what the caller gave, copy its tables, pack if asked.
 *
 * A canonical matrix stays the caller's memory. A packed one owns everything it needs, small
 * vectors included, so that the caller may free or unmap the checkpoint. */
#include "backends/backend.h"
#include "core/fail.h"
#include "core/size.h"
#include "core/weights.h"
#include "plan/weights.h"
#include <stdio.h>
#include <string.h>

enum { SLAB_ALIGN = 64, PAGE = 4096, HUGE_PAGE = 2 << 20 };

/* One of the three tables and what its matrices must look like. */
struct table {
    const char *name;
    const cmoe_matrix *given;
    int64_t rows, cols;
    bool bias, smooth;
};

static cmoe_status check_table(const cmoe_problem *p, const struct table *t)
{
    const int32_t experts = cmoe_problem_local_experts(p);
    for (int32_t e = 0; e < experts; e++) {
        const cmoe_matrix *const m = &t->given[e];
        char name[48];
        snprintf(name, sizeof name, "%s of expert %d", t->name, e);
        CMOE_TRY(cmoe__matrix_check(p->w, m, t->rows, t->cols, name));
        if (t->bias && !m->bias)
            return CMOE_FAIL(CMOE_ERR_INVALID, "%s has no bias, but the problem has one", name);
        if (t->smooth && !m->smooth)
            return CMOE_FAIL(CMOE_ERR_INVALID,
                             "%s has no smooth vector, but its input is scaled by smooth", name);
    }
    return CMOE_OK;
}

/* Whether one of the problem's stages reads a matrix. */
static bool reads(const cmoe_problem *p, int matrix)
{
    const int stage = matrix == 1 ? CMOE_STAGE_GEMM1 : CMOE_STAGE_GEMM2;
    return p->first <= stage && stage <= p->last;
}

static cmoe_status check_tables(const cmoe_problem *p, const cmoe_weights_desc *desc)
{
    const bool bias1 = p->flags & CMOE_BIAS1;
    const struct table gate_up = {.name = "gate_up",
                                  .given = desc->gate_up,
                                  .rows = desc->up ? p->inter : cmoe_problem_rows1(p),
                                  .cols = p->hidden,
                                  .bias = bias1,
                                  .smooth = p->x.scaling == CMOE_SCALE_SMOOTH};
    const struct table up = {
        .name = "up", .given = desc->up, .rows = p->inter, .cols = p->hidden, .bias = bias1};
    const struct table down = {.name = "down",
                               .given = desc->down,
                               .rows = p->hidden,
                               .cols = p->inter,
                               .bias = p->flags & CMOE_BIAS2,
                               .smooth = p->mid.scaling == CMOE_SCALE_SMOOTH};
    const int32_t experts = cmoe_problem_local_experts(p);
    if (experts > 0 && !desc->gate_up && (reads(p, 1) || desc->up))
        return CMOE_FAIL(CMOE_ERR_INVALID, "gate_up is NULL, but there are %d experts", experts);
    if (experts > 0 && !desc->down && reads(p, 2))
        return CMOE_FAIL(CMOE_ERR_INVALID, "down is NULL, but there are %d experts", experts);
    if (desc->up && p->gate != CMOE_GATE_SPLIT)
        return CMOE_FAIL(CMOE_ERR_INVALID, "up is given, but only gate=split has a separate up");
    if (desc->up && p->w.scaling == CMOE_SCALE_BLOCK && (p->flags & CMOE_BLOCK_JOINT) &&
        p->inter % 128 != 0)
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "up is given and joint is set: with inter=%d a row of scales would belong "
                         "to both matrices",
                         p->inter);
    if (desc->gate_up) CMOE_TRY(check_table(p, &gate_up));
    if (desc->up) CMOE_TRY(check_table(p, &up));
    if (desc->down) CMOE_TRY(check_table(p, &down));
    return CMOE_OK;
}

/* The packed format by name; *out NULL: canonical. */
static cmoe_status find_format(const struct cmoe_device *dev, const cmoe_weights *w, int matrix,
                               const char *name, const struct cmoe_packing_format **out)
{
    *out = NULL;
    if (!name || strcmp(name, "canonical") == 0 || strcmp(name, "none") == 0) return CMOE_OK;
    const struct cmoe_packing_format *const format = cmoe__packing_find(dev, name);
    if (!format)
        return CMOE_FAIL(CMOE_ERR_INVALID, "format%d \"%.80s\" is not a weight format of device %s",
                         matrix, name, dev->backend->name);
    if (!w->has[matrix - 1])
        return CMOE_FAIL(CMOE_ERR_INVALID, "format%d is %s, but matrix %d is not given", matrix,
                         name, matrix);
    char why[160] = "";
    if (!format->holds(&w->p, matrix, why, sizeof why))
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "format %s cannot hold matrix %d: %s", name, matrix,
                         why);
    *out = format;
    return CMOE_OK;
}

static void copy_tables(cmoe_weights *w, const cmoe_weights_desc *desc)
{
    const size_t bytes = (size_t)w->experts * sizeof(cmoe_matrix);
    if (desc->gate_up) memcpy(w->gate, desc->gate_up, bytes);
    if (desc->up) memcpy(w->up, desc->up, bytes);
    if (desc->down) memcpy(w->down, desc->down, bytes);
}

struct job {
    const cmoe_weights *w;
    const struct cmoe_packing_format *format;
    int matrix;
};

/* A node's share of an expert. */
static void pack_share(const struct job *job, int node, int expert)
{
    const struct cmoe_packed *const p = &job->w->packed[job->matrix - 1];
    const int64_t first = cmoe__packed_first(p, node), end = cmoe__packed_first(p, node + 1);
    if (first == end) return;
    job->format->pack(job->w, job->matrix, expert, first, end,
                      cmoe__weights_panel(job->w, job->matrix, expert, first));
}

static void pack_expert(void *arg, int expert, int n)
{
    (void)n;
    pack_share(arg, 0, expert);
}

/* Whoever writes a page first has it near: shares are packed by the threads that will read them. */
static void pack_shares(void *arg, struct cmoe_team *team)
{
    const struct job *const job = arg;
    const int experts = job->w->experts, nodes = job->w->packed[job->matrix - 1].nodes;
    for (int item; (item = cmoe__team_take(team, nodes, experts)) >= 0;)
        pack_share(job, item / experts, item % experts);
}

/* Small vectors of one expert's matrix; 0: it has none. */
struct vectors {
    size_t bias, smooth; /* floats */
};

static struct vectors vectors_of(const cmoe_problem *p, int matrix)
{
    const bool bias = p->flags & (matrix == 1 ? CMOE_BIAS1 : CMOE_BIAS2);
    const bool smooth = (matrix == 1 ? p->x : p->mid).scaling == CMOE_SCALE_SMOOTH;
    return (struct vectors){
        .bias = !bias ? 0 : (size_t)(matrix == 1 ? cmoe_problem_rows1(p) : p->hidden),
        .smooth = !smooth ? 0 : (size_t)(matrix == 1 ? p->hidden : p->inter),
    };
}

/* Put copies into the tables instead, biases in the order of fused rows, and drop the rest. */
static float *copy_vectors(cmoe_weights *w, int matrix, int32_t expert, float *to)
{
    const struct vectors n = vectors_of(&w->p, matrix);
    cmoe_matrix *const first = matrix == 1 ? &w->gate[expert] : &w->down[expert];
    cmoe_matrix *const up = matrix == 1 && w->up[expert].data ? &w->up[expert] : NULL;
    const size_t half = up ? n.bias / 2 : n.bias;
    cmoe_matrix owned = {0};
    if (n.bias) {
        memcpy(to, first->bias, half * sizeof *to);
        if (up) memcpy(to + half, up->bias, half * sizeof *to);
        owned.bias = to;
    }
    if (n.smooth) {
        memcpy(to + n.bias, first->smooth, n.smooth * sizeof *to);
        owned.smooth = to + n.bias;
    }
    *first = owned;
    if (up) *up = (cmoe_matrix){0};
    return to + n.bias + n.smooth;
}

static bool round_up(size_t bytes, size_t unit, size_t *out)
{
    if (!cmoe__add_size(bytes, unit - 1, out)) return false;
    *out = *out / unit * unit;
    return true;
}

/* Sizes of the packed experts; the bytes of all in *total. False: they do not fit. */
static bool lay_out(const cmoe_weights *w, int matrix, const struct cmoe_packing_format *format,
                    struct cmoe_packed *out, size_t *total)
{
    *out = (struct cmoe_packed){.nodes = cmoe__threads_nodes(w->ctx->threads),
                                .panels = format->panels(&w->p, matrix),
                                .panel_bytes = format->panel_bytes(&w->p, matrix)};
    const size_t most = (size_t)cmoe__ceil_div(out->panels, out->nodes);
    if (!cmoe__mul_size(most, out->panel_bytes, &out->stride) ||
        !round_up(out->stride, SLAB_ALIGN, &out->stride) ||
        !cmoe__mul_size(out->stride, (size_t)w->experts, &out->region))
        return false;
    const size_t page = out->region >= HUGE_PAGE ? HUGE_PAGE : PAGE;
    if (out->nodes > 1 && !round_up(out->region, page, &out->region)) return false;
    return cmoe__mul_size(out->region, (size_t)out->nodes, total);
}

static cmoe_status allocate_packed(cmoe_weights *w, int matrix,
                                   const struct cmoe_packing_format *format)
{
    const int i = matrix - 1;
    const struct vectors n = vectors_of(&w->p, matrix);
    struct cmoe_packed *const p = &w->packed[i];
    size_t total, vectors;
    if (!lay_out(w, matrix, format, p, &total) ||
        !cmoe__mul_size((n.bias + n.smooth) * sizeof(float), (size_t)w->experts, &vectors))
        return CMOE_FAIL(CMOE_ERR_OVERFLOW,
                         "%d experts of %lld panels of %zu bytes in format %s do not fit",
                         w->experts, (long long)p->panels, p->panel_bytes, format->name);
    const size_t align = total >= HUGE_PAGE ? HUGE_PAGE : p->nodes > 1 ? PAGE : SLAB_ALIGN;
    p->data = cmoe__alloc(w->ctx, total, align);
    w->vectors[i] = cmoe__alloc(w->ctx, vectors, SLAB_ALIGN);
    if (!p->data || !w->vectors[i])
        return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "no %zu bytes for matrix %d in format %s", total,
                         matrix, format->name);
    w->owned += total + vectors;
    return CMOE_OK;
}

static cmoe_status pack(cmoe_weights *w, int matrix, const struct cmoe_packing_format *format)
{
    if (!format) return CMOE_OK;
    CMOE_TRY(allocate_packed(w, matrix, format));
    struct job job = {.w = w, .format = format, .matrix = matrix};
    if (w->packed[matrix - 1].nodes > 1)
        cmoe__team_run(w->ctx->threads, 0, pack_shares, &job);
    else
        cmoe__parallel(w->ctx->threads, 0, w->experts, pack_expert, &job);
    float *to = w->vectors[matrix - 1];
    for (int32_t e = 0; e < w->experts; e++)
        to = copy_vectors(w, matrix, e, to);
    w->format[matrix - 1] = format;
    return CMOE_OK;
}

/* What the device keeps of the tables. */
static cmoe_status open_on_device(cmoe_weights *w)
{
    cmoe_device *const dev = w->dev;
    if (!dev->backend->weights_open) return CMOE_OK;
    CMOE_TRY(dev->backend->enter(dev));
    const cmoe_status status = dev->backend->weights_open(dev, w);
    dev->backend->leave(dev);
    return status;
}

static cmoe_status fill(const struct cmoe_device *dev, cmoe_weights *w,
                        const cmoe_weights_desc *desc)
{
    const struct cmoe_packing_format *format1, *format2;
    CMOE_TRY(find_format(dev, w, 1, desc->format1, &format1));
    CMOE_TRY(find_format(dev, w, 2, desc->format2, &format2));
    copy_tables(w, desc);
    CMOE_TRY(pack(w, 1, format1));
    CMOE_TRY(pack(w, 2, format2));
    return open_on_device(w);
}

static cmoe_status make(cmoe_device *dev, const cmoe_problem *p, const cmoe_weights_desc *desc,
                        cmoe_weights **out)
{
    cmoe_context *const ctx = dev->ctx;
    const int32_t experts = cmoe_problem_local_experts(p);
    cmoe_weights *const w = cmoe__calloc(ctx, sizeof *w, _Alignof(cmoe_weights));
    cmoe_matrix *const tables =
        cmoe__calloc(ctx, 3 * (size_t)experts * sizeof *tables, _Alignof(cmoe_matrix));
    if (!w || !tables) {
        cmoe__free(ctx, w);
        cmoe__free(ctx, tables);
        return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "no memory for the tables of %d experts", experts);
    }
    *w = (cmoe_weights){
        .ctx = ctx,
        .dev = dev,
        .p = *p,
        .experts = experts,
        .has = {desc->gate_up != NULL, desc->down != NULL},
        .gate = tables,
        .up = tables + experts,
        .down = tables + 2 * (size_t)experts,
    };
    const cmoe_status status = fill(dev, w, desc);
    if (status != CMOE_OK) {
        CMOE_FAIL_TRACE();
        cmoe_weights_destroy(w);
        return status;
    }
    *out = w;
    return CMOE_OK;
}

cmoe_status cmoe__weights_check(const cmoe_device *dev, const cmoe_problem *p,
                                const cmoe_weights_desc *desc, cmoe_weights *const *out)
{
    if (!dev || !p || !desc || !out)
        return CMOE_FAIL(CMOE_ERR_INVALID, "%s is NULL",
                         !dev    ? "dev"
                         : !p    ? "the problem"
                         : !desc ? "desc"
                                 : "out");
    if (desc->struct_size != 0 && desc->struct_size < sizeof *desc)
        return CMOE_FAIL(CMOE_ERR_INVALID, "desc.struct_size is %zu, less than %zu",
                         desc->struct_size, sizeof *desc);
    CMOE_TRY(cmoe_problem_check(p));
    return check_tables(p, desc);
}

cmoe_status cmoe_weights_create(cmoe_device *dev, const cmoe_problem *p,
                                const cmoe_weights_desc *desc, cmoe_weights **out)
{
    if (out) *out = NULL;
    CMOE_TRY(cmoe__weights_check(dev, p, desc, out));
    return make(dev, p, desc, out);
}

void cmoe_weights_destroy(cmoe_weights *w)
{
    if (!w) return;
    cmoe_context *const ctx = w->ctx;
    if (w->state && w->dev->backend->enter(w->dev) == CMOE_OK) {
        w->dev->backend->weights_close(w);
        w->dev->backend->leave(w->dev);
    }
    for (int i = 0; i < 2; i++) {
        cmoe__free(ctx, w->packed[i].data);
        cmoe__free(ctx, w->vectors[i]);
    }
    cmoe_device_free(w->dev, w->memory);
    cmoe__free(ctx, w->gate); /* one block holds the three tables */
    cmoe__free(ctx, w);
}
