/* SPDX-License-Identifier: MIT
 * The portable kernels that route and sort, without a GPU: rows on the driver of driver.c, whose launches run here on simt.c, for
 * every kind of router, both orders of threads, and logits with ties, NaN and infinities. Ids are the CPU's, weights within
 * rounding, the order is the one that the ids give. Under a sanitizer of addresses this is what memcheck does on a GPU. */
#include "driver.h"
#include "simt.h"

#include "cli/gen.h"
#include "cli/mirror.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const routers[] = {
    "e=8 k=2 renorm",
    "e=16 k=4 topkfirst lg=bf16",
    "e=32 k=4 route=sigmoid",
    "e=60 k=4 shared=2 shw=0.5 renorm",
    "e=64 k=6 route=raw lg=f16",
    "e=128 k=8 renorm lg=bf16",
    "e=128 k=8 renorm tiehigh",
    "e=160 k=6",
    "e=350 k=8 route=sqrtsoftplus renorm",
    "e=500 k=31 renorm",
    "e=600 k=8 route=sigmoid rbias",
    "e=40 k=8 rx renorm",
    "e=16 k=4 router=deepseek-v2",
    "e=160 k=6 router=deepseek-v2 lg=bf16",
    "e=16 k=4 router=deepseek-v3 tiehigh",
    "e=256 k=8 router=deepseek-v3",
    "e=256 k=8 router=deepseek-v3 lg=f16 shared=1 tiehigh",
    "e=64 k=6 router=kimi-k2",
    "e=384 k=8 router=kimi-k2",
    "e=512 k=10 route=softmax rbias renorm",
    "e=320 k=8 route=sigmoid groups=32/8",
    "e=96 k=6 route=sigmoid groups=3/2 rbias",
    "e=30 k=5 route=sqrtsoftplus groups=2/1 rbias gsum2",
    "e=90 k=5 rbias tiehigh lg=bf16",
    "e=40 k=3 route=sigmoid hash",
};

/* By lanes, octets, warps and through memory; few tokens leave a warp that goes ahead. */
static const char *const routed_orders[] = {
    "e=8 k=2 renorm",          "e=60 k=4 shared=2 renorm lg=bf16", "e=128 k=8 renorm tiehigh",
    "e=64 k=6 router=kimi-k2", "e=160 k=6 router=deepseek-v2",     "e=96 k=6 groups=3/2 local=48",
    "t=2 e=128 k=8 renorm",    "t=3 e=160 k=6 router=deepseek-v2",
};

/* The same in two kernels, of which the second has 256 blocks or more. */
static const char *const wide_orders[] = {
    "e=32 k=4 route=sigmoid",
    "e=128 k=8 renorm",
    "e=64 k=6 router=kimi-k2",
};

static const char *const orders[] = {
    "e=12 k=3",
    "e=160 k=6",
    "e=8 k=2 sort=packed bm=8",
    "e=40 k=4 sort=flat bm=16 shared=1",
    "e=64 k=8 local=16 first=8",
};

static const struct {
    const char *name, *stages;
    const char *const *problems;
    size_t n;
} rows[] = {
#define ROW(name, stages, problems)                                                                \
    {                                                                                              \
        name, "stages=" stages, problems, sizeof problems / sizeof *problems                       \
    }
    ROW("route_warp__sm80", "route..route", routers),
    ROW("routesort_block__sm80", "route..sort", routed_orders),
    ROW("routesort_wide__sm80", "route..sort", wide_orders),
    ROW("sort_block__sm80", "sort..sort", orders),
    ROW("sort_ballot__sm80", "sort..sort", orders),
};

static const char *at = "the devices";
static bool last_first;

static void ok(cmoe_status status, const char *what)
{
    if (status == CMOE_OK) return;
    fprintf(stderr, "%s: %s: %s\n", at, what, cmoe_last_error());
    exit(1);
}

static void watch(const CUlaunchConfig *c, const char *kernel, void **params)
{
    const struct simt_launch launch = {
        .grid = {c->gridDimX, c->gridDimY, c->gridDimZ},
        .block = {c->blockDimX, c->blockDimY, c->blockDimZ},
        .shared_bytes = c->sharedMemBytes,
        .last_first = last_first,
    };
    if (simt_run(kernel, params, &launch)) return;
    fprintf(stderr, "%s: %s is not known here\n", at, kernel);
    exit(1);
}

/* ---- awkward logits ---- */

static void set_logit(const struct gen_call *call, int64_t token, int expert, float v)
{
    const cmoe_problem *p = &call->problem;
    const cmoe_tensors *t = &call->tensors;
    const int64_t i = token * (t->logits_stride ? t->logits_stride : p->experts) + expert;
    if (p->logits == CMOE_F32)
        ((float *)(uintptr_t)t->logits)[i] = v;
    else
        ((uint16_t *)(uintptr_t)t->logits)[i] =
            (uint16_t)(isnan(v) ? 0x7fff
                                : (p->logits == CMOE_F16 ? 0x7c00 : 0x7f80) | (v < 0 ? 0x8000 : 0));
}

/* The logit of another expert. */
static void copy_logit(const struct gen_call *call, int64_t token, int to, int from)
{
    const cmoe_problem *p = &call->problem;
    const cmoe_tensors *t = &call->tensors;
    const size_t bytes = p->logits == CMOE_F32 ? 4 : 2;
    char *row = (char *)(uintptr_t)t->logits +
                (size_t)(token * (t->logits_stride ? t->logits_stride : p->experts)) * bytes;
    memcpy(row + (size_t)to * bytes, row + (size_t)from * bytes, bytes);
}

/* Token by token: as generated; few different ones; NaN; infinities; few that are not -Inf; only -Inf. */
static void make_awkward(const struct gen_call *call)
{
    enum { KINDS = 7 };
    const cmoe_problem *p = &call->problem;
    for (int64_t t = 0; t < p->max_tokens; t++)
        for (int e = 0; e < p->experts; e++) {
            const int some = (e * 7 + (int)t * 5) % 11;
            switch (t % KINDS) {
            case 1:
                copy_logit(call, t, e, e % 3);
                break;
            case 2:
                if (some == 0) set_logit(call, t, e, NAN);
                break;
            case 3:
                if (some == 0) set_logit(call, t, e, INFINITY);
                break;
            case 4:
                if (some < 4) set_logit(call, t, e, -INFINITY);
                break;
            case 5:
                if (some > 0) set_logit(call, t, e, -INFINITY);
                break;
            case 6:
                if (t % 2 == 0) set_logit(call, t, e, -INFINITY);
                break;
            }
        }
}

/* ---- both devices ---- */

/* False: the pinned row has no place in a plan. */
static bool execute(cmoe_device *dev, const cmoe_problem *p, const cmoe_tensors *t, const char *row)
{
    const cmoe_plan_options options = {.struct_size = sizeof options, .pin = row};
    cmoe_plan *plan;
    void *workspace;
    const cmoe_status status = cmoe_plan_create(dev, p, NULL, &options, &plan);
    if (status == CMOE_ERR_INVALID && row) return false;
    ok(status, "a plan");
    const size_t size = cmoe_plan_workspace_size(plan);
    ok(cmoe_device_alloc(dev, size, &workspace), "a workspace");
    ok(cmoe_execute(plan, t, workspace, size, NULL), "a call");
    cmoe_device_free(dev, workspace);
    cmoe_plan_destroy(plan);
    return true;
}

static bool weights_agree(float a, float b)
{
    if (isnan(a) || isnan(b)) return isnan(a) && isnan(b);
    return a == b || fabsf(a - b) <= 4e-6f * fabsf(b) + 0x1p-126f;
}

/* Ids and weights of a call. */
struct routing {
    int32_t *ids;
    float *weights;
    int64_t n;
};

static struct routing routing_of(const struct gen_call *call)
{
    const cmoe_problem *p = &call->problem;
    const int64_t n = (int64_t)p->max_tokens * (p->topk + p->shared);
    struct routing r = {malloc((size_t)n * sizeof *r.ids), malloc((size_t)n * sizeof *r.weights),
                        n};
    if (!r.ids || !r.weights) exit(1);
    memcpy(r.ids, call->tensors.topk_ids, (size_t)n * sizeof *r.ids);
    memcpy(r.weights, call->tensors.topk_weights, (size_t)n * sizeof *r.weights);
    return r;
}

static int64_t differences(const struct gen_call *call, const struct routing *r)
{
    int64_t differ = 0;
    for (int64_t i = 0; i < r->n; i++)
        differ += r->ids[i] != call->tensors.topk_ids[i] ||
                  !weights_agree(call->tensors.topk_weights[i], r->weights[i]);
    return differ;
}

struct variant {
    bool aligned, awkward;
};

/* 1: as it should be, 0: the row does not take the problem, -1. */
static int compare(cmoe_device *gpu, cmoe_device *cpu, size_t row, const char *text,
                   struct variant v)
{
    const struct gen_options options = {.kind = GEN_REAL, .seed = 9, .aligned = v.aligned};
    cmoe_problem p;
    struct gen_call call;
    struct cli_mirror mirror;
    const char *damage = NULL, *order = NULL;
    at = text;
    cmoe_problem_init(&p);
    ok(cmoe_problem_parse(&p, "t=42 h=8 i=8 lg=f32 scheme=bf16"), "the problem");
    ok(cmoe_problem_parse(&p, rows[row].stages), "the problem");
    ok(cmoe_problem_parse(&p, text), "the problem");
    ok(gen_call_create(&p, &options, &call), "inputs");
    const bool routes = p.first == CMOE_STAGE_ROUTE, sorts = p.last == CMOE_STAGE_SORT;
    if (v.awkward) make_awkward(&call);
    execute(cpu, &p, &call.tensors, NULL);
    const struct routing right = routing_of(&call);
    gen_call_reset(&call);
    ok(cli_mirror_open(gpu, &call, &mirror), "device memory");
    ok(cli_mirror_send(&mirror), "copying");
    const bool taken = execute(gpu, &p, &mirror.tensors, rows[row].name);
    ok(cli_mirror_fetch(&mirror, &damage), "copying back");
    const int64_t differ = taken && routes ? differences(&call, &right) : 0;
    if (taken && sorts) order = gen_sort_difference(&call);
    if (differ || damage || order)
        fprintf(stderr, "%s: %s%s%s: %lld of %lld slots differ%s%s%s%s\n", rows[row].name, text,
                v.aligned ? ", aligned" : "", v.awkward ? ", awkward" : "", (long long)differ,
                (long long)right.n, order ? "; " : "", order ? order : "", damage ? "; " : "",
                damage ? damage : "");
    cli_mirror_close(&mirror);
    gen_call_free(&call);
    free(right.ids);
    free(right.weights);
    return differ || damage || order ? -1 : taken;
}

/* Every problem of a row: rows of logits aligned and not, as they are and awkward, threads in both orders. */
static int check(cmoe_device *gpu, cmoe_device *cpu, size_t row)
{
    int cases = 0, wrong = 0;
    for (size_t i = 0; i < rows[row].n; i++)
        for (int way = 0; way < 4; way++) {
            const char *text = rows[row].problems[i];
            const bool logits = rows[row].problems != orders && !strstr(text, "rx");
            const struct variant v = {.aligned = way % 2, .awkward = logits && way / 2};
            last_first = way % 2;
            const int result = compare(gpu, cpu, row, text, v);
            cases += result != 0;
            wrong += result < 0;
        }
    printf("%-22s %d cases, %d wrong\n", rows[row].name, cases, wrong);
    return wrong + (cases < 12);
}

int main(void)
{
    cmoe_context *ctx;
    cmoe_device *gpu, *cpu;
    int wrong = 0;
    driver_watch(watch);
    ok(cmoe_context_create(NULL, &ctx), "a context");
    ok(cmoe_device_open(ctx, "cuda:0", &gpu), "the GPU");
    ok(cmoe_device_open(ctx, "cpu", &cpu), "the CPU");
    for (size_t row = 0; row < sizeof rows / sizeof *rows; row++)
        wrong += check(gpu, cpu, row);
    cmoe_device_close(gpu);
    cmoe_device_close(cpu);
    cmoe_context_destroy(ctx);
    return wrong > 0;
}
