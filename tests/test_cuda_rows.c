/* SPDX-License-Identifier: MIT
 * Rows of NVIDIA GPUs, planned without a GPU: a plan asks for a device's properties alone. Every row
 * of the table can be pinned for some problem of problems.def, or `cmoe check` would never run it. */
#include "cli/gen.h"
#include "harness.h"
#include "harness_files.h"
#include "plan/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char *const problems[] = {
#define PROBLEM(text) text,
#include "cli/problems.def"
#undef PROBLEM
};
enum { PROBLEMS = sizeof problems / sizeof problems[0] };

/* What an H100 (90) and an A100 (80) say of themselves, or about so. */
static struct cmoe_device device_of(cmoe_context *ctx, const struct cmoe_backend *cuda, int arch)
{
    return (struct cmoe_device){
        .ctx = ctx,
        .backend = cuda,
        .props = {.arch = arch, .threads = 132, .l2 = 50 << 20, .gbps = 3000, .gflops = 8e5},
    };
}

static const struct cmoe_backend *find_cuda(void)
{
    for (int b = 0; cmoe__backends[b]; b++)
        if (strcmp(cmoe__backends[b]->name, "cuda") == 0) return cmoe__backends[b];
    return NULL;
}

static bool is_planned(struct cmoe_device *dev, const cmoe_problem *p, const char *row)
{
    const cmoe_plan_options options = {.struct_size = sizeof options, .pin = row};
    cmoe_plan *plan = NULL;
    char path[1024];
    if (cmoe_plan_create(dev, p, NULL, &options, &plan) != CMOE_OK) return false;
    cmoe_plan_path(plan, p->max_tokens, path, sizeof path);
    cmoe_plan_destroy(plan);
    return strstr(path, row) != NULL;
}

static int problems_of(struct cmoe_device *dev, int row, const char *name)
{
    int n = 0;
    for (int i = 0; i < PROBLEMS; i++) {
        const cmoe_problem p = test_problem(problems[i]);
        n += cmoe_kernel_supports(row, dev, &p, NULL, 0) && is_planned(dev, &p, name);
    }
    return n;
}

static void every_row_is_planned(void **state)
{
    (void)state;
    const struct cmoe_backend *const cuda = find_cuda();
    if (!cuda) skip();
    cmoe_context *const ctx = test_context(1, NULL);
    struct cmoe_device hopper = device_of(ctx, cuda, 90), ampere = device_of(ctx, cuda, 80);
    cmoe_kernel_info row;
    int rows = 0, older = 0;
    for (int i = 0; cmoe_kernel_describe(i, &row); i++) {
        if (strcmp(row.backend, "cuda") != 0) continue;
        if (problems_of(&hopper, i, row.name) == 0) fail_with("no problem uses %s", row.name);
        const bool any = problems_of(&ampere, i, row.name) > 0;
        if (any && strcmp(row.target, "sm90a") == 0) fail_with("%s on an A100", row.name);
        rows++;
        older += any;
    }
    assert_true(rows == cuda->n_kernels && older > rows / 3);
    cmoe_context_destroy(ctx);
}

static bool is_aligned(const void *at, int64_t stride)
{
    return (uintptr_t)at % 16 == 0 && stride % 16 == 0;
}

/* Whether x and all weights of a call can be copied by engines. */
static bool inputs_are_aligned(const struct gen_call *call)
{
    const cmoe_weights_desc *const w = &call->weights;
    bool aligned = is_aligned(call->tensors.x, call->tensors.x_stride);
    for (int e = 0; e < cmoe_problem_local_experts(&call->problem); e++)
        aligned = aligned && is_aligned(w->gate_up[e].data, w->gate_up[e].row_stride) &&
                  is_aligned(w->down[e].data, w->down[e].row_stride) &&
                  (!w->up || is_aligned(w->up[e].data, w->up[e].row_stride));
    return aligned;
}

enum { ROWS = 512 };

/* By row: cases with aligned inputs, and others, of those that `cmoe check` tries a problem with. */
struct tried {
    int aligned[ROWS], other[ROWS];
};

static void try_problem(struct cmoe_device *dev, const cmoe_problem *p, struct tried *tried)
{
    int aligned = 0, other = 0;
    const char *why;
    for (int kind = 0; kind < 2; kind++) {
        const struct gen_options options = gen_check_options(p, (enum gen_kind)kind, 1);
        struct gen_call call;
        if (kind == GEN_EXACT && !gen_exact_possible(p, &why)) continue;
        expect_ok(gen_call_create(p, &options, &call));
        const bool is = inputs_are_aligned(&call);
        aligned += is;
        other += !is;
        gen_call_free(&call);
    }
    cmoe_kernel_info row;
    for (int i = 0; cmoe_kernel_describe(i, &row); i++) {
        assert_true(i < ROWS);
        if (strcmp(row.backend, "cuda") != 0 || !cmoe_kernel_supports(i, dev, p, NULL, 0) ||
            !is_planned(dev, p, row.name))
            continue;
        tried->aligned[i] += aligned;
        tried->other[i] += other;
    }
}

/* Rows that copy by engines leave other inputs to other kernels, which are then checked in their place. */
static void every_row_is_checked_with_aligned_inputs(void **state)
{
    (void)state;
    const struct cmoe_backend *const cuda = find_cuda();
    if (!cuda) skip();
    cmoe_context *const ctx = test_context(1, NULL);
    struct cmoe_device hopper = device_of(ctx, cuda, 90);
    struct tried tried = {.aligned = {0}};
    cmoe_kernel_info row;
    for (int i = 0; i < PROBLEMS; i++) {
        const cmoe_problem p = test_problem(problems[i]);
        try_problem(&hopper, &p, &tried);
    }
    for (int i = 0; cmoe_kernel_describe(i, &row); i++)
        if (strcmp(row.backend, "cuda") == 0 && (tried.aligned[i] == 0 || tried.other[i] == 0))
            fail_with("%s: %d cases with aligned inputs, %d with others", row.name,
                      tried.aligned[i], tried.other[i]);
    cmoe_context_destroy(ctx);
}

static void expect_planned(struct cmoe_device *dev, const char *text, const char *row, bool planned)
{
    const cmoe_problem p = test_problem(text);
    cmoe_plan *plan = NULL;
    char path[1024];
    expect_ok(cmoe_plan_create(dev, &p, NULL, NULL, &plan));
    cmoe_plan_path(plan, p.max_tokens, path, sizeof path);
    cmoe_plan_destroy(plan);
    if ((strstr(path, row) != NULL) != planned) fail_with("%s, %s: %s", text, row, path);
}

struct choice {
    const char *problem, *row;
    bool planned;
};

/* Of an H100; rest: what all problems have in common. */
static void expect_all_planned(const struct choice *cases, size_t n, const char *rest)
{
    const struct cmoe_backend *const cuda = find_cuda();
    if (!cuda) skip();
    cmoe_context *const ctx = test_context(1, NULL);
    struct cmoe_device hopper = device_of(ctx, cuda, 90);
    for (size_t i = 0; i < n; i++) {
        char text[256];
        snprintf(text, sizeof text, "%s %s", cases[i].problem, rest);
        expect_planned(&hopper, text, cases[i].row, cases[i].planned);
    }
    cmoe_context_destroy(ctx);
}

/* Where both ways were measured. */
static void faster_rows_are_planned(void **state)
{
    (void)state;
    static const struct choice cases[] = {
        {"t=32 model=qwen3-30b-a3b scheme=bf16", "gemm1gemm2_", true},
        {"t=512 model=qwen3-30b-a3b scheme=fp8-token", "gemm1gemm2_", true},
        {"t=512 model=deepseek-v3-tp8 scheme=fp8-token", "gemm1combine_", true},
        {"t=512 model=deepseek-v3-tp8 scheme=fp8-block", "gemm1combine_", true},
        {"t=128 model=deepseek-v3-tp8 scheme=fp8-block", "gemm1gemm2_", true},
        {"t=2048 model=deepseek-v3-tp8 scheme=fp8-block", "gemm1gemm2_", true},
        {"t=512 model=deepseek-v3-tp8 scheme=bf16", "gemm1gemm2_", true},
        {"t=512 model=deepseek-v3 scheme=fp8-block", "gemm1gemm2_", true},
        {"t=8 model=deepseek-v3-tp8 scheme=bf16", "_gemv", false},
        {"t=8 model=deepseek-v3-tp8 scheme=fp8-block", "quantcombine_slices", true},
        {"t=1 model=deepseek-v3-tp8 scheme=fp8-block", "quantcombine_slices", true},
        {"t=2 model=deepseek-v3-tp8 scheme=fp8-block", "quantcombine_slices", true},
        {"t=2 model=deepseek-v3-tp8 scheme=bf16", "sortcombine_slices", true},
        {"t=1 model=qwen3-30b-a3b scheme=fp8-block", "quantcombine_slices", true},
        {"t=1 model=qwen3-30b-a3b scheme=bf16", "sortcombine_slices", true},
        {"t=1 model=mixtral-8x7b scheme=fp8-block", "quantcombine_slices", true},
        {"t=1 model=mixtral-8x7b scheme=bf16", "sortcombine_slices", true},
        {"t=1 model=deepseek-v3 scheme=fp8-block", "quantcombine_slices", true},
        {"t=1 model=deepseek-v3 scheme=bf16", "sortcombine_slices", true},
        {"t=1 model=qwen3-235b-a22b scheme=fp8-block", "quantcombine_slices", true},
        {"t=8 model=deepseek-v3 scheme=fp8-block", "gemm1gemm2_", true},
        {"t=8 model=qwen3-30b-a3b scheme=fp8-token", "gemm1gemm2_", true},
        {"t=8 model=deepseek-v3-tp8 scheme=fp8-token", "gemm1gemm2_", true},
        {"t=1 model=mixtral-8x22b scheme=fp8-token", "gemm1gemm2_", true},
        {"t=8 model=mixtral-8x7b scheme=fp8-block", "gemm1gemm2_", true},
        {"t=1 model=qwen3-30b-a3b scheme=fp8-block binv", "_slices", false},
        {"t=4 model=deepseek-v3-tp8 scheme=fp8-token", "quantcombine_gemv", true},
        {"t=128 model=mixtral-8x7b scheme=fp8-block", "gemm1gemm2_", true},
        {"t=112 e=8 k=2 h=768 i=2176 scheme=fp8-token", "gemm1gemm2_", true},
        {"t=8 model=mixtral-8x7b scheme=fp8-token", "gemm1gemm2_", true},
        {"t=128 model=mixtral-8x7b scheme=fp8-token", "gemm1gemm2_", true},
        {"t=8 model=llama4-scout scheme=fp8-token", "gemm1gemm2_", true},
        {"t=512 model=llama4-scout scheme=fp8-token", "gemm1gemm2_", true},
        {"t=8 model=qwen3-30b-a3b scheme=int8-w8a8", "quantcombine_gemv", true},
        {"t=8 model=qwen3-30b-a3b scheme=mxfp8", "quantcombine_gemv", true},
        {"t=8 model=qwen3-30b-a3b scheme=int4-w4a8", "quantcombine_gemv", true},
        {"t=8 model=qwen3-30b-a3b scheme=nvfp4-w4a4", "quantcombine_gemv", true},
        {"t=1 model=qwen3-30b-a3b scheme=fp8-tensor", "quantcombine_gemv", true},
        {"t=8 model=gpt-oss-120b scheme=mxfp4-w4a16", "sortcombine_gemv", true},
        {"t=8 model=gpt-oss-120b scheme=mxfp4-mxfp8", "quantcombine_gemv", true},
        {"t=16 model=gpt-oss-120b scheme=mxfp4-w4a16", "sortcombine_gemv", true},
        {"t=16 model=gpt-oss-120b scheme=mxfp4-w4a8", "quantcombine_gemv", true},
        {"t=8 model=qwen3-30b-a3b scheme=mxfp4-w4a8:int8", "gemm1_mma_", true},
        {"t=512 model=qwen3-30b-a3b scheme=mxfp4-w4a8:int8", "__ref", false},
        {"t=16 model=qwen3-30b-a3b scheme=int4-w4a16", "sortcombine_gemv", true},
        {"t=2048 model=mixtral-8x7b scheme=fp8-block", "gemm1requant_rows_", true},
        {"t=2048 model=mixtral-8x7b scheme=fp8-token", "gemm1requant_rows_", true},
        {"t=8192 model=llama4-scout scheme=fp8-token", "gemm1requant_rows_", true},
        {"t=8192 model=deepseek-v3 scheme=fp8-block", "gemm1requant_rows_", true},
        {"t=8192 model=deepseek-v3 scheme=fp8-block", "gemm2_rows_", true},
        {"t=8192 model=gpt-oss-120b scheme=bf16", "gemm1act_rows_", true},
        {"t=8192 model=qwen3-235b-a22b scheme=bf16", "_rows_128x256", false},
        {"t=2048 model=llama4-scout scheme=fp8-block", "gemm1requant_rows_", true},
        {"t=2048 model=llama4-scout scheme=fp8-token", "gemm1requant_rows_", true},
        {"t=2048 model=llama4-scout scheme=bf16", "gemm1act_rows_", true},
        {"t=2048 model=qwen3-30b-a3b scheme=bf16", "gemm1act_rows_", true},
        {"t=2048 model=qwen3-30b-a3b scheme=fp8-block", "gemm1requant_rows_", true},
        {"t=2048 model=qwen3-30b-a3b scheme=fp8-token", "gemm1requant_rows_", true},
        {"t=2048 model=qwen3-235b-a22b scheme=bf16", "gemm1act_rows_", true},
        {"t=2048 model=qwen3-235b-a22b scheme=fp8-block", "gemm1requant_rows_", true},
        {"t=2048 model=qwen3-235b-a22b scheme=fp8-token", "gemm1requant_rows_", true},
        {"t=2048 model=gpt-oss-120b scheme=bf16", "gemm1act_rows_", true},
        {"t=2048 model=gpt-oss-120b scheme=fp8-token", "gemm1requant_rows_", true},
        {"t=8192 model=kimi-k2 scheme=fp8-block", "gemm1requant_rows_", true},
        {"t=8192 model=kimi-k2 scheme=fp8-token", "gemm1act_wgmma_", true},
        {"t=512 model=qwen3-30b-a3b scheme=fp8-block", "gemm1gemm2_", true},
        {"t=2048 model=mixtral-8x7b scheme=bf16", "gemm1act_wgmma_", true},
        {"t=512 model=mixtral-8x7b scheme=bf16", "gemm1gemm2_", true},
        {"t=512 model=mixtral-8x22b scheme=bf16", "gemm1gemm2_", true},
        {"t=512 model=mixtral-8x7b scheme=fp8-block", "gemm1requant_rows_", true},
        {"t=512 model=mixtral-8x7b scheme=fp8-block", "gemm2_wgmma_", true},
        {"t=2048 model=deepseek-v3 scheme=bf16", "gemm1act_rows_", true},
        {"t=2048 model=deepseek-v3 scheme=bf16", "gemm2_rows_", true},
        {"t=2048 model=deepseek-v3-tp8 scheme=bf16", "gemm1act_rows_", true},
        {"t=2048 model=deepseek-v3-tp8 scheme=bf16", "gemm2_rows_", true},
        {"t=2048 model=deepseek-v3 scheme=fp8-block", "gemm1gemm2_", true},
        {"t=2048 model=deepseek-v3 scheme=fp8-token", "gemm1gemm2_", true},
        {"t=2048 model=deepseek-v3-tp8 scheme=fp8-token", "gemm1gemm2_", true},
        {"t=2048 model=kimi-k2 scheme=bf16", "gemm2_rows_", true},
        {"t=2048 model=kimi-k2 scheme=fp8-block", "gemm1gemm2_", true},
        {"t=2048 model=deepseek-v2 scheme=bf16", "gemm1act_rows_", true},
        {"t=2048 model=deepseek-v2 scheme=fp8-token", "gemm1requant_rows_", true},
        {"t=2048 model=deepseek-v2 scheme=fp8-block", "gemm2_rows_", true},
        {"t=512 model=qwen3-30b-a3b scheme=bf16", "gemm1gemm2_", true},
        {"t=1024 model=qwen3-30b-a3b scheme=fp8-block", "gemm1gemm2_", true},
        {"t=512 model=llama4-scout scheme=bf16", "gemm1gemm2_", true},
        {"t=128 model=mixtral-8x7b scheme=bf16", "gemm1gemm2_", true},
        {"t=8192 model=deepseek-v3 e=32 local=32 scheme=bf16", "gemm2_rows_", true},
        {"t=1024 model=deepseek-v3 e=32 local=32 scheme=bf16", "gemm2_rows_", true},
        {"t=4096 model=deepseek-v3 e=32 local=32 scheme=bf16", "gemm2_rows_", true},
        {"t=8192 model=deepseek-v3-tp8 scheme=bf16", "gemm2_rows_", true},
        {"t=8192 model=deepseek-v3-tp8 scheme=fp8-block", "gemm1requant_rows_", true},
        {"t=8192 model=deepseek-v3-tp8 scheme=fp8-token", "gemm2_wgmma_", true},
        {"t=4096 model=qwen3-30b-a3b scheme=bf16", "gemm1act_rows_", true},
        {"t=4096 model=qwen3-30b-a3b scheme=bf16", "gemm2_rows_", true},
        {"t=4096 model=qwen3-30b-a3b scheme=fp8-block", "gemm1requant_rows_", true},
        {"t=4096 model=qwen3-30b-a3b scheme=fp8-block", "gemm2_rows_", true},
        {"t=8192 model=qwen3-30b-a3b scheme=fp8-block", "gemm2_rows_", true},
        {"t=8192 model=qwen3-30b-a3b scheme=fp8-token", "gemm2_rows_", true},
        {"t=4096 model=qwen3-235b-a22b scheme=bf16", "gemm1act_rows_", true},
        {"t=4096 model=qwen3-235b-a22b scheme=bf16", "gemm2_rows_", true},
        {"t=8192 model=qwen3-235b-a22b scheme=fp8-block", "gemm2_rows_", true},
        {"t=8192 model=deepseek-v3 scheme=bf16", "gemm1act_rows_", true},
        {"t=8192 model=deepseek-v3 scheme=bf16", "gemm2_rows_", true},
        {"t=8192 model=kimi-k2 scheme=bf16", "gemm1act_wgmma_", true},
        {"t=4096 model=kimi-k2 scheme=fp8-block", "gemm1requant_rows_", true},
        {"t=8192 model=deepseek-v2 scheme=bf16", "gemm1act_rows_", true},
        {"t=8192 model=deepseek-v2 scheme=fp8-block", "gemm2_rows_", true},
        {"t=16384 model=deepseek-v2 scheme=bf16", "gemm2_rows_", true},
        {"t=16384 model=deepseek-v2 scheme=fp8-token", "gemm2_rows_", true},
        {"t=4096 model=llama4-scout scheme=bf16", "gemm2combine_rows_", true},
        {"t=1024 model=mixtral-8x7b scheme=fp8-block", "gemm1requant_rows_", true},
    };
    expect_all_planned(cases, sizeof cases / sizeof *cases,
                       "stages=quant..combine shared=0 won=out reduced");
}

/* Lines of a tuned table are another architecture's or this one's. */
static void tuned_times_are_of_an_architecture(void **state)
{
    (void)state;
    const struct cmoe_backend *const cuda = find_cuda();
    if (!cuda) skip();
    static const char *const row = "gemm1act_rows_128x256__sm90a";
    const cmoe_problem p = test_problem("t=4096 model=qwen3-30b-a3b scheme=bf16 reduced");
    for (int arch = 90; arch <= 100; arch += 10) {
        char line[160];
        snprintf(line, sizeof line, "cuda-sm_%d-132t,%016" PRIx64 ",4096,%s,1000000\n", arch,
                 cmoe_problem_hash(&p), row);
        struct folder f;
        folder_make(&f);
        folder_text(&f, "tuned.csv", line);
        const cmoe_context_options options = {
            .struct_size = sizeof options, .n_threads = 1, .tuned = folder_path(&f, "tuned.csv")};
        cmoe_context *ctx = NULL;
        expect_ok(cmoe_context_create(&options, &ctx));
        folder_remove(&f);
        struct cmoe_device hopper = device_of(ctx, cuda, 90);
        cmoe_plan *plan = NULL;
        char path[1024];
        expect_ok(cmoe_plan_create(&hopper, &p, NULL, NULL, &plan));
        cmoe_plan_path(plan, 4096, path, sizeof path);
        cmoe_plan_destroy(plan);
        cmoe_context_destroy(ctx);
        if ((strstr(path, row) == NULL) != (arch == 90)) fail_with("%s: %s", line, path);
    }
}

static void routing_and_sorting_is_planned(void **state)
{
    (void)state;
    static const struct choice cases[] = {
        {"t=1 e=128 k=8", "routesort_block", true},
        {"t=256 e=8 k=2", "routesort_cluster", true},
        {"t=128 e=32 k=4", "routesort_cluster", true},
        {"t=64 e=256 k=8", "routesort_cluster", true},
        {"t=4096 e=8 k=2", "routesort_cluster", true},
        {"t=2048 e=32 k=4", "routesort_wide", true},
        {"t=1024 e=32 k=4", "routesort_cluster", true},
        {"t=683 e=64 k=6", "routesort_cluster", true},
        {"t=1366 e=64 k=6", "routesort_wide", true},
        {"t=512 e=256 k=8", "routesort_cluster", true},
        {"t=1024 e=128 k=8", "routesort_wide", true},
        {"t=16384 e=32 k=4", "routesort_wide", true},
        {"t=10922 e=64 k=6", "routesort_wide", true},
        {"t=32768 e=8 k=2", "routesort_wide", true},
        {"t=8192 e=256 k=8", "routesort_wide", true},
        {"t=64 e=128 k=8 hash", "route_warp", true},
    };
    expect_all_planned(cases, sizeof cases / sizeof *cases,
                       "h=64 i=64 stages=route..sort renorm scheme=bf16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_row_is_planned),
                                       cmocka_unit_test(every_row_is_checked_with_aligned_inputs),
                                       cmocka_unit_test(faster_rows_are_planned),
                                       cmocka_unit_test(tuned_times_are_of_an_architecture),
                                       cmocka_unit_test(routing_and_sorting_is_planned)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
