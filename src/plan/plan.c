/* SPDX-License-Identifier: MIT
 * Creating and describing plans. */
#include "plan/plan.h"

#include "core/fail.h"
#include "plan/formats.h"
#include "plan/pin.h"
#include "plan/tuned.h"
#include "stages/tensors.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

/* The weights' formats against those that the paths read. */
static cmoe_status check_formats(const struct cmoe_plan *plan, const cmoe_weights *w)
{
    for (int matrix = 1; matrix <= 2; matrix++) {
        const char *planned = cmoe_plan_weight_format(plan, matrix);
        const char *held = cmoe_weights_format(w, matrix);
        if (strcmp(planned, "none") != 0 && strcmp(planned, held) != 0)
            return CMOE_FAIL(CMOE_ERR_MISMATCH,
                             "the plan reads matrix %d as %s, the weights hold it as %s", matrix,
                             planned, held);
    }
    return CMOE_OK;
}

cmoe_status cmoe__plan_check_weights(const struct cmoe_plan *plan, const cmoe_weights *w)
{
    CMOE_TRY(cmoe__weights_fit(&plan->p, w));
    return check_formats(plan, w);
}

/* "gemm1 on cpu: gemm1_...: reason" of the first stage that nothing covers. */
static cmoe_status no_path(const struct cmoe_plan *plan, int tokens)
{
    const struct cmoe_query q = cmoe__plan_query(plan, tokens);
    const uint32_t pinned = cmoe__pin_stages(plan, &q);
    const struct cmoe_backend *backend;
    const struct cmoe_kernel *k;
    for (int stage = plan->p.first; stage <= plan->p.last; stage++) {
        struct cmoe_why why = {{0}}, last = {{0}};
        const char *last_name = NULL;
        bool covered = cmoe__plan_skips(&plan->shape, stage);
        for (int i = 0; !covered && (k = cmoe__kernel_at(i, &backend)); i++) {
            struct cmoe_edge out;
            if (stage < k->first || stage > k->last || !cmoe__backend_visible(backend, plan->dev))
                continue;
            if (cmoe__kernel_usable(k, &q, cmoe__usual_edge(&plan->p, k->first), &out, &why)) {
                covered = !cmoe__pin_excludes(plan, i, pinned);
                snprintf(why.text, sizeof why.text, "excluded by the pin");
            }
            last = why;
            last_name = k->name;
        }
        if (!covered)
            return CMOE_FAIL(
                CMOE_ERR_UNSUPPORTED, "no kernel on %s does stage %s of this problem (%s: %s)",
                plan->dev->backend->name, cmoe_stage_name((cmoe_stage)stage),
                last_name ? last_name : "no row", last_name ? last.text : "none compiled in");
    }
    return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                     "no chain of kernels on %s covers stages %s..%s with weight formats %s and %s",
                     plan->dev->backend->name, cmoe_stage_name((cmoe_stage)plan->p.first),
                     cmoe_stage_name((cmoe_stage)plan->p.last), plan->format1, plan->format2);
}

/* Largest power-of-two pass whose workspace keeps the limit. */
static cmoe_status set_workspace(struct cmoe_plan *plan, size_t limit)
{
    plan->workspace = 0;
    plan->chunk = plan->p.max_tokens;
    const cmoe_problem *p = &plan->p;
    const bool whole = p->first <= CMOE_STAGE_SORT && p->last == CMOE_STAGE_COMBINE &&
                       p->capacity == 0 && p->x.scaling != CMOE_SCALE_TENSOR &&
                       p->mid.scaling != CMOE_SCALE_TENSOR;
    for (int b = 0; b < plan->n_buckets; b++) {
        const size_t total = plan->path[b].arena.total;
        if (limit > 0 && total > limit) {
            if (b == 0 || !whole)
                return CMOE_FAIL(
                    CMOE_ERR_WORKSPACE,
                    "a workspace of %zu bytes is needed for %d tokens, the limit is %zu%s", total,
                    plan->path[b].tokens, limit,
                    whole ? "" : ", and this plan cannot be cut into passes");
            plan->chunk = plan->path[b - 1].tokens;
            plan->n_buckets = b;
            break;
        }
        if (total > plan->workspace) plan->workspace = total;
    }
    return CMOE_OK;
}

/* The rows of a GPU for few and for many tokens add in different orders: where a token's bits must not
 * depend on the other tokens, every bucket takes the chain of the largest. */
static cmoe_status build_path(struct cmoe_plan *plan, int b)
{
    struct cmoe_path *path = &plan->path[b];
    const struct cmoe_path *last = &plan->path[plan->n_buckets - 1];
    const int tokens = cmoe__plan_bucket_tokens(&plan->p, b);
    if ((plan->p.flags & CMOE_BATCH_INVARIANT) && !plan->props.host && path != last) {
        if (!cmoe__path_repeat(plan, tokens, last, path))
            return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "binv: the kernels for %d tokens do not run %d",
                             last->tokens, tokens);
    } else if (isinf(cmoe__path_search(plan, tokens, plan->format1, plan->format2, path))) {
        return no_path(plan, tokens);
    }
    return cmoe__plan_book(plan, path);
}

static cmoe_status build_paths(struct cmoe_plan *plan, const cmoe_plan_options *opt)
{
    const char *only1 = plan->w ? cmoe_weights_format(plan->w, 1) : opt->format1;
    const char *only2 = plan->w ? cmoe_weights_format(plan->w, 2) : opt->format2;
    if (!cmoe__plan_choose_formats(plan, opt, only1, only2))
        return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "no memory for planning");
    for (int b = plan->n_buckets - 1; b >= 0; b--)
        CMOE_TRY(build_path(plan, b));
    return set_workspace(plan, opt->workspace_limit);
}

cmoe_status cmoe_plan_create(cmoe_device *dev, const cmoe_problem *p, const cmoe_weights *w,
                             const cmoe_plan_options *opt, cmoe_plan **out)
{
    if (!dev || !p || !out)
        return CMOE_FAIL(CMOE_ERR_INVALID, "cmoe_plan_create: %s is NULL",
                         !dev ? "dev" : (!p ? "p" : "out"));
    *out = NULL;
    CMOE_TRY(cmoe_problem_check(p));
    const cmoe_plan_options none = {0};
    if (!opt) opt = &none;

    struct cmoe_plan *plan = cmoe__calloc(dev->ctx, sizeof *plan, 64);
    if (!plan) return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "no memory for a plan");
    plan->ctx = dev->ctx;
    plan->dev = dev;
    plan->p = *p;
    plan->w = w;
    plan->props = dev->props;
    if (opt->n_threads > 0 && opt->n_threads < plan->props.threads)
        plan->props.threads = opt->n_threads;
    cmoe__shape(p, &plan->shape);
    if (plan->shape.batched) plan->p.max_tokens = (int32_t)cmoe__shape_rows(p, &plan->shape, 0);
    plan->n_buckets = cmoe__plan_bucket(plan->p.max_tokens) + 1;
    plan->path = cmoe__calloc(dev->ctx, (size_t)plan->n_buckets * sizeof *plan->path, 64);

    cmoe_status status = CMOE_OK;
    if (!plan->path) status = CMOE_FAIL(CMOE_ERR_NO_MEMORY, "no memory for a plan");
    if (status == CMOE_OK) status = cmoe__pin_set(plan, opt->pin);
    if (status == CMOE_OK && w) status = cmoe__weights_fit(p, w);
    if (status == CMOE_OK && !opt->ignore_tuned) status = cmoe__tuned_load(plan);
    if (status == CMOE_OK) status = cmoe__pin_check(plan);
    if (status == CMOE_OK) status = build_paths(plan, opt);
    if (status != CMOE_OK) {
        cmoe_plan_destroy(plan);
        return status;
    }
    *out = plan;
    return CMOE_OK;
}

void cmoe_plan_destroy(cmoe_plan *plan)
{
    if (!plan) return;
    cmoe__free(plan->ctx, plan->path);
    cmoe__free(plan->ctx, plan->tuned);
    cmoe__free(plan->ctx, plan->pinned);
    cmoe__free(plan->ctx, plan->pin);
    cmoe__free(plan->ctx, plan);
}

size_t cmoe_plan_workspace_size(const cmoe_plan *plan)
{
    return plan ? plan->workspace : 0;
}

const cmoe_problem *cmoe_plan_problem(const cmoe_plan *plan)
{
    return plan ? &plan->p : NULL;
}

const char *cmoe_plan_weight_format(const cmoe_plan *plan, int matrix)
{
    if (!plan) return NULL;
    const char *format = matrix == 1 ? plan->format1 : plan->format2;
    return format && *format ? format : "none";
}
