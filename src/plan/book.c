/* SPDX-License-Identifier: MIT
 * Workspace of a path: every buffer that one step makes and another reads, and each step's scratch.
 *
 * A caller's pointer may replace a booked buffer at run time; what only a plan's end can see
 * (gate_up, mid, z ...) is required from the caller and not booked. */
#include "core/fail.h"
#include "core/numeric.h"
#include "core/size.h"
#include "plan/plan.h"

struct region_use {
    uint8_t made, read; /* stages */
};

static const struct region_use use[CMOE_REGION_SCRATCH] = {
#define REGION(name, m, r) [CMOE_REGION_##name] = {CMOE_STAGE_##m, CMOE_STAGE_##r},
#include "stages/region.def"
#undef REGION
};

/* rows x bytes, saturating: cmoe__arena_place refuses what does not fit. */
static size_t product(int64_t rows, size_t bytes)
{
    size_t out;
    return cmoe__mul_size((size_t)rows, bytes, &out) ? out : SIZE_MAX / 2;
}

static size_t region_bytes(const struct cmoe_plan *plan, int id, int64_t tokens)
{
    const cmoe_problem *p = &plan->p;
    const struct cmoe_shape *s = &plan->shape;
    const int64_t rows = cmoe__shape_rows(p, s, tokens);
    const int64_t x_rows = s->x_slots ? rows : tokens;
    switch ((enum cmoe_region)id) {
    case CMOE_REGION_IDS:
    case CMOE_REGION_WEIGHTS:
        return s->batched ? 0 : product(rows, 4);
    case CMOE_REGION_XQ:
        return s->quant ? product(x_rows, cmoe__row_code_bytes(p->x, s->H)) : 0;
    case CMOE_REGION_XS:
        if (!s->quant) return 0;
        return p->x.scaling == CMOE_SCALE_TENSOR
                   ? 4
                   : product(x_rows, cmoe__row_scale_bytes(p->x, s->H));
    case CMOE_REGION_XG:
        return s->quant && p->x.scaling == CMOE_SCALE_NV ? product(x_rows, 4) : 0;
    case CMOE_REGION_ROWS:
        return product(rows, 4);
    case CMOE_REGION_OFFSETS:
        return product((int64_t)s->local + 1, 4);
    case CMOE_REGION_PROGRESS:
        return plan->props.host ? 0 : product((int64_t)s->local + CMOE_PROGRESS, 4);
    case CMOE_REGION_GU:
        return product(rows, product(s->rows1, 4));
    case CMOE_REGION_H:
        return product(rows, cmoe_dtype_bytes(cmoe__shape_h_dtype(p), s->I));
    case CMOE_REGION_HQ:
        return s->requant ? product(rows, cmoe__row_code_bytes(p->mid, s->I)) : 0;
    case CMOE_REGION_HS:
        if (!s->requant) return 0;
        return p->mid.scaling == CMOE_SCALE_TENSOR
                   ? 4
                   : product(rows, cmoe__row_scale_bytes(p->mid, s->I));
    case CMOE_REGION_HG:
        return s->requant && p->mid.scaling == CMOE_SCALE_NV ? product(rows, 4) : 0;
    case CMOE_REGION_Z:
        return product(rows, product(s->H, 4));
    case CMOE_REGION_SCRATCH:
    case CMOE_REGION_COUNT:
        break;
    }
    return 0;
}

/* First and last step that touch a region, when it lies between two of them. */
static bool region_life(const struct cmoe_plan *plan, const struct cmoe_path *path, int id,
                        int *first, int *last)
{
    const int made = use[id].made;
    int read = use[id].read;
    /* With nothing to requantise GEMM2 reads h itself. */
    if (id == CMOE_REGION_H && !plan->shape.requant) read = CMOE_STAGE_GEMM2;
    /* Small and wanted by statistics and by callers who did not ask for them: always there. */
    const bool always = id == CMOE_REGION_IDS || id == CMOE_REGION_WEIGHTS;
    const bool sort = id == CMOE_REGION_ROWS || id == CMOE_REGION_OFFSETS;
    *first = *last = -1;
    for (int i = 0; i < path->n_steps; i++) {
        const struct cmoe_kernel *k = path->step[i].kernel;
        const bool converts = k->last + 1 == k->first;
        if (*first < 0 && ((k->first <= made && made <= k->last) || (sort && converts))) *first = i;
        if (k->first <= read) *last = i;
    }
    if (always) {
        *first = 0;
        *last = path->n_steps - 1;
        return *last >= 0;
    }
    if (*first < 0) return false;
    return *last > *first || (sort && plan->p.last == CMOE_STAGE_SORT);
}

cmoe_status cmoe__plan_book(const struct cmoe_plan *plan, struct cmoe_path *path)
{
    cmoe__arena_init(&path->arena);
    for (int id = 0; id < CMOE_REGION_SCRATCH; id++) {
        int first, last;
        const size_t bytes = region_bytes(plan, id, path->tokens);
        if (bytes > 0 && region_life(plan, path, id, &first, &last))
            cmoe__arena_book(&path->arena, id, bytes, first, last);
    }
    const struct cmoe_query q = {
        .p = &plan->p, .shape = &plan->shape, .props = &plan->props, .tokens = path->tokens};
    for (int i = 0; i < path->n_steps; i++) {
        const struct cmoe_kernel *k = path->step[i].kernel;
        const size_t bytes = k->family->scratch ? k->family->scratch(k, &q) : 0;
        if (bytes > 0) cmoe__arena_book(&path->arena, CMOE_REGION_SCRATCH + i, bytes, i, i);
    }
    return cmoe__arena_place(&path->arena);
}
