/* SPDX-License-Identifier: MIT
 * What the CUDA rows do on the host, without a GPU: every problem of `cmoe check` is planned for every row that takes
 * it and executed on the driver of driver.c, which computes nothing but refuses what no GPU runs. Results are
 * not looked at. Every row must be reached. Then layers are made and run with each of the driver's calls refused
 * in turn: an error says so, and all device memory is given back. */
#include "driver.h"

#include "backends/cuda/params_sm90a.h"
#include "cli/gen.h"
#include "cli/mirror.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 256 };

static const char *const problems[] = {
#define PROBLEM(text) text,
#include "cli/problems.def"
#undef PROBLEM
};

static const char *at = "the device";

static void ok(cmoe_status status, const char *what)
{
    if (status == CMOE_OK) return;
    fprintf(stderr, "%s: %s: %s\n", at, what, cmoe_last_error());
    exit(1);
}

static bool ends(const char *name, const char *with)
{
    const size_t n = strlen(name), m = strlen(with);
    return n >= m && strcmp(name + n - m, with) == 0;
}

/* Of an element of what a kernel of wgmma writes. */
static int element_bytes(const char *kernel)
{
    if (ends(kernel, "_codes")) return 1;
    return ends(kernel, "_z") || ends(kernel, "_short") || ends(kernel, "16_act") ? 2 : 4;
}

/* All rows of a GEMM's output lie in one allocation: no row of z in y. */
static void rows_fit(const char *kernel, const cmoe_gpu_wgmma *w, int bytes)
{
    const cmoe_gpu_call *c = &w->g.call;
    const int64_t rows =
        c->batched ? (int64_t)c->local * c->capacity : (int64_t)c->tokens * c->slots;
    const int64_t size = rows > 0 ? ((rows - 1) * w->g.out_stride + w->out_cols) * bytes : 0;
    if (driver_holds(w->g.out, (size_t)size)) return;
    fprintf(stderr, "%s: %s writes %lld rows of %lld elements past an allocation\n", at, kernel,
            (long long)rows, (long long)w->g.out_stride);
    exit(1);
}

static void watch(const CUlaunchConfig *launch, const char *kernel, void **params)
{
    (void)launch;
    const cmoe_gpu_wgmma_pair *pair = params[0];
    if (ends(kernel, "_pair"))
        rows_fit(kernel, &pair->gemm[1], 2);
    else if (strncmp(kernel, "cmoe_wgmma_", 11) == 0)
        rows_fit(kernel, params[0], element_bytes(kernel));
    else if (strncmp(kernel, "cmoe_rows_", 10) == 0)
        rows_fit(kernel, &((const cmoe_gpu_rows *)params[0])->gemm, element_bytes(kernel));
}

/* The row, what it does not do by any other; false: the plan has no place for it. */
static bool run(cmoe_device *dev, struct cli_mirror *mirror, const cmoe_weights *w, const char *row)
{
    const cmoe_problem *p = &mirror->call->problem;
    const cmoe_plan_options options = {.struct_size = sizeof options, .pin = row};
    cmoe_plan *plan;
    void *workspace;
    char path[1024];
    const cmoe_status status = cmoe_plan_create(dev, p, w, &options, &plan);
    if (status == CMOE_ERR_INVALID) return false; /* what the pin names has no place here */
    ok(status, row);
    const size_t size = cmoe_plan_workspace_size(plan);
    cmoe_plan_path(plan, p->max_tokens, path, sizeof path);
    ok(cmoe_device_alloc(dev, size, &workspace), row);
    ok(cmoe_execute(plan, &mirror->tensors, workspace, size, NULL), row);
    cmoe_device_free(dev, workspace);
    cmoe_plan_destroy(plan);
    return strstr(path, row) != NULL;
}

/* Every row that takes the problem; how many did. */
static int run_all(cmoe_device *dev, const char *text, bool aligned, bool used[ROWS])
{
    const struct gen_options options = {.kind = GEN_REAL, .seed = 5, .aligned = aligned};
    cmoe_kernel_info row;
    cmoe_problem p;
    struct gen_call call;
    struct cli_mirror mirror;
    cmoe_weights *w;
    int n = 0;
    at = text;
    cmoe_problem_init(&p);
    ok(cmoe_problem_parse(&p, text), "the problem");
    ok(gen_call_create(&p, &options, &call), "inputs");
    ok(cli_mirror_open(dev, &call, &mirror), "device memory");
    ok(cmoe_weights_create(dev, &call.problem, &mirror.weights, &w), "weights");
    mirror.tensors.weights = w;
    for (int i = 0; i < ROWS && cmoe_kernel_describe(i, &row); i++)
        if (strcmp(row.backend, "cuda") == 0 &&
            cmoe_kernel_supports(i, dev, &call.problem, NULL, 0) &&
            run(dev, &mirror, w, row.name)) {
            used[i] = true;
            n++;
        }
    cmoe_weights_destroy(w);
    cli_mirror_close(&mirror);
    gen_call_free(&call);
    return n;
}

/* From opening the device to the result, as far as it goes; all of it is closed again. calls: of the driver until
 * then. */
static cmoe_status layer(const struct gen_call *call, long *calls)
{
    struct cli_mirror mirror = {.dev = NULL};
    cmoe_context *ctx = NULL;
    cmoe_device *dev = NULL;
    cmoe_weights *w = NULL;
    cmoe_plan *plan = NULL;
    void *workspace = NULL;
    size_t size = 0;
    cmoe_status status = cmoe_context_create(NULL, &ctx);
    if (status == CMOE_OK) status = cmoe_device_open(ctx, "cuda:0", &dev);
    if (status == CMOE_OK) status = cli_mirror_open(dev, call, &mirror);
    const bool mirrored = dev && status == CMOE_OK;
    if (status == CMOE_OK) status = cmoe_weights_create(dev, &call->problem, &mirror.weights, &w);
    if (status == CMOE_OK) status = cmoe_plan_create(dev, &call->problem, w, NULL, &plan);
    if (status == CMOE_OK) {
        mirror.tensors.weights = w;
        size = cmoe_plan_workspace_size(plan);
        status = cmoe_device_alloc(dev, size, &workspace);
    }
    if (status == CMOE_OK) status = cmoe_execute(plan, &mirror.tensors, workspace, size, NULL);
    if (status == CMOE_OK) status = cmoe_device_sync(dev, NULL);
    *calls = driver_calls();
    if (workspace) cmoe_device_free(dev, workspace);
    cmoe_plan_destroy(plan);
    cmoe_weights_destroy(w);
    if (mirrored) cli_mirror_close(&mirror);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
    return status;
}

/* One call of the driver after the other is refused. Some the backend does without: maps of weights that are then
 * read in another way, sizes of clusters. */
static int refuse_each(const char *text)
{
    const struct gen_options options = {.kind = GEN_REAL, .seed = 5, .aligned = true};
    cmoe_problem p;
    struct gen_call call;
    long calls, ignored, failures = 0;
    int wrong = 0;
    at = text;
    cmoe_problem_init(&p);
    ok(cmoe_problem_parse(&p, text), "the problem");
    ok(gen_call_create(&p, &options, &call), "inputs");
    driver_refuse(0);
    ok(layer(&call, &calls), "with no call refused");
    for (long i = 1; i <= calls; i++) {
        driver_refuse(i);
        const cmoe_status status = layer(&call, &ignored);
        const int kept = driver_allocations();
        failures += status != CMOE_OK;
        if (kept > 0 || (status != CMOE_OK && !strstr(cmoe_last_error(), "CUDA_ERROR"))) {
            fprintf(stderr, "%s: call %ld of %ld refused: \"%s\", %d allocations kept\n", text, i,
                    calls, cmoe_last_error(), kept);
            wrong++;
            break;
        }
    }
    driver_refuse(0);
    gen_call_free(&call);
    printf("%s: %ld of %ld refused calls are errors\n", text, failures, calls);
    return wrong + (failures < calls / 2);
}

int main(void)
{
    bool used[ROWS] = {false};
    cmoe_kernel_info row;
    cmoe_context *ctx;
    cmoe_device *dev;
    int cases = 0, missing = 0;
    driver_watch(watch);
    ok(cmoe_context_create(NULL, &ctx), "a context");
    ok(cmoe_device_open(ctx, "cuda:0", &dev), "opening it");
    const size_t n = sizeof problems / sizeof *problems;
    for (size_t i = 0; i < n; i++)
        for (int aligned = 0; aligned < 2; aligned++)
            cases += run_all(dev, problems[i], aligned, used);
    for (int i = 0; i < ROWS && cmoe_kernel_describe(i, &row); i++)
        if (strcmp(row.backend, "cuda") == 0 && !used[i]) {
            fprintf(stderr, "not reached: %s\n", row.name);
            missing++;
        }
    printf("%zu problems, %d launches of rows, %d rows not reached\n", n, cases, missing);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
    missing += refuse_each("t=40 e=6 k=3 h=256 i=256 reduced renorm scheme=bf16");
    missing += refuse_each("t=300 e=2 k=1 h=256 i=128 reduced scheme=fp8-token");
    missing += refuse_each("t=4 e=6 k=3 h=512 i=512 scheme=fp8-block");
    return missing > 0 || cases == 0;
}
