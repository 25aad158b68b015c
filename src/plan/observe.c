/* SPDX-License-Identifier: MIT
 * Calibration: run ROUTE..ACT unquantised and fold the largest magnitudes. */
#include "core/fail.h"
#include "core/numeric.h"
#include "plan/plan.h"
#include "stages/tensors.h"
#include <cmoe/observe.h>
#include <math.h>
#include <string.h>

static void fold(float *amax, float v)
{
    const float magnitude = fabsf(v);
    if (isfinite(magnitude) && magnitude > *amax) *amax = magnitude;
}

/* Largest |x| over tokens with a valid id. */
static void fold_x(const cmoe_problem *p, const struct cmoe_exec *x, cmoe_observation *obs)
{
    for (int64_t t = 0; t < x->tokens; t++) {
        const char *row = (const char *)x->x + t * x->x_stride;
        if (!cmoe__exec_token_counts(x, t)) continue;
        obs->tokens++;
        for (int64_t h = 0; h < x->shape->h_used; h++)
            fold(&obs->x_amax, cmoe__load((cmoe_dtype)p->in, row, h));
    }
}

cmoe_status cmoe_observe(cmoe_device *dev, const cmoe_problem *p, const cmoe_weights *w,
                         const cmoe_tensors *t, cmoe_observation *obs)
{
    const char *const null = !dev ? "dev" : !p ? "p" : !w ? "w" : !t ? "t" : !obs ? "obs" : NULL;
    if (null) return CMOE_FAIL(CMOE_ERR_INVALID, "cmoe_observe: %s is NULL", null);
    if (p->capacity > 0 || p->first > CMOE_STAGE_SORT || p->last < CMOE_STAGE_ACT)
        return CMOE_FAIL(
            CMOE_ERR_UNSUPPORTED,
            "cmoe_observe: the problem must start at ROUTE, QUANT or SORT and reach ACT");
    cmoe_problem plain = *p;
    plain.x = (cmoe_format){.dtype = p->in};
    plain.mid = (cmoe_format){.dtype = CMOE_F32};
    plain.last = CMOE_STAGE_ACT;
    plain.first = p->first == CMOE_STAGE_SORT ? CMOE_STAGE_QUANT : p->first;
    plain.accumulate = 0;
    plain.flags &= ~(uint32_t)(CMOE_NO_REDUCE | CMOE_MID_ROUNDED);
    if (p->flags & CMOE_X_QUANTIZED)
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "cmoe_observe: x must not be quantised yet");
    if (t->n_tokens == 0) return CMOE_OK;

    struct cmoe_shape shape;
    cmoe__shape(&plain, &shape);
    const size_t rows = (size_t)cmoe__shape_rows(&plain, &shape, t->n_tokens);
    cmoe_plan *plan = NULL;
    float *mid = NULL, *weights = NULL;
    int32_t *ids = NULL;
    void *workspace = NULL;
    cmoe_status status = cmoe_plan_create(dev, &plain, w, NULL, &plan);
    if (status != CMOE_OK) return status;
    const size_t bytes = cmoe_plan_workspace_size(plan);
    mid = cmoe__calloc(dev->ctx, rows * (size_t)shape.I * sizeof *mid, 64);
    ids = cmoe__calloc(dev->ctx, rows * sizeof *ids, 64);
    weights = cmoe__calloc(dev->ctx, rows * sizeof *weights, 64);
    workspace = cmoe__alloc(dev->ctx, bytes, CMOE_ARENA_ALIGN);
    if (!mid || !ids || !weights || !workspace) {
        status = CMOE_FAIL(CMOE_ERR_NO_MEMORY, "no memory to observe %d tokens", t->n_tokens);
        goto done;
    }
    cmoe_tensors call = *t;
    call.mid = mid;
    call.expert_load = NULL;
    if (plain.first == CMOE_STAGE_ROUTE) {
        call.topk_ids = ids;
        call.topk_weights = weights;
    }
    status = cmoe_execute(plan, &call, workspace, bytes, NULL);
    if (status != CMOE_OK) goto done;
    int64_t tokens = t->n_tokens;
    if (t->n_tokens_dev && *t->n_tokens_dev < tokens)
        tokens = *t->n_tokens_dev > 0 ? *t->n_tokens_dev : 0;
    for (size_t i = 0; t->topk_ids64 && plain.first > CMOE_STAGE_ROUTE && i < rows; i++)
        ids[i] =
            t->topk_ids64[i] >= 0 && t->topk_ids64[i] <= INT32_MAX ? (int32_t)t->topk_ids64[i] : -1;
    const bool given = plain.first > CMOE_STAGE_ROUTE && !t->topk_ids64;
    const struct cmoe_exec x = {.p = &plain,
                                .shape = &shape,
                                .t = t,
                                .tokens = (int32_t)tokens,
                                .x = t->x,
                                .x_stride = cmoe__tensors_x_stride(&plain, &shape, t),
                                .ids = given ? t->topk_ids : ids};
    fold_x(&plain, &x, obs);
    for (size_t i = 0; i < rows * (size_t)shape.I; i++)
        fold(&obs->mid_amax, mid[i]);
done:
    cmoe__free(dev->ctx, workspace);
    cmoe__free(dev->ctx, weights);
    cmoe__free(dev->ctx, ids);
    cmoe__free(dev->ctx, mid);
    cmoe_plan_destroy(plan);
    return status;
}
