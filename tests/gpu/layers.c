/* SPDX-License-Identifier: MIT
 * Layers by the portable CUDA rows that need no tensor cores, without a GPU: the smaller problems of `cmoe check` whose chain they make,
 * on the driver of driver.c, whose launches run here on simt.c, against cmoe_reference. Buffers lie between guard pages. */
#include "driver.h"
#include "harness_call.h"
#include "simt.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const problems[] = {
#define PROBLEM(text) text,
#include "cli/problems.def"
#undef PROBLEM
};

static const char pins[] =
    "route_warp__sm80,quant_rows__sm80,sort_ballot__sm80,gemm1_simt_32x64__sm80,act_rows__sm80,"
    "requant_rows__sm80,gemm2_simt_32x64__sm80,combine_token__sm80";

enum { MOST = 300 }; /* columns, tokens: larger ones take seconds here */

static const char *missing; /* a kernel of the last plan that does not run here */

static void watch(const CUlaunchConfig *c, const char *kernel, void **params)
{
    const struct simt_launch launch = {
        .grid = {c->gridDimX, c->gridDimY, c->gridDimZ},
        .block = {c->blockDimX, c->blockDimY, c->blockDimZ},
        .shared_bytes = c->sharedMemBytes,
    };
    if (!missing && !simt_run(kernel, params, &launch)) missing = kernel;
}

static void layers_are_right(void **state)
{
    struct rig *const rig = *state;
    cmoe_device *gpu;
    int ran = 0, other = 0, wrong = 0;
    driver_watch(watch);
    driver_shares_host = true;
    expect_ok(cmoe_device_open(rig->ctx, "cuda:0", &gpu));
    for (size_t i = 0; i < sizeof problems / sizeof *problems; i++) {
        cmoe_problem p;
        const char *why;
        cmoe_problem_init(&p);
        expect_ok(cmoe_problem_parse(&p, problems[i]));
        const bool whole = p.first <= CMOE_STAGE_SORT &&
                           p.last == CMOE_STAGE_COMBINE; /* as cmoe_reference has it */
        if (!whole || p.hidden > MOST || p.inter > MOST || p.max_tokens > MOST) continue;
        for (int kind = GEN_REAL; kind <= GEN_EXACT; kind++) {
            if (kind == GEN_EXACT && !gen_exact_possible(&p, &why)) continue;
            const struct gen_options options = call_options(&rig->guard, (enum gen_kind)kind, 3);
            missing = NULL;
            const struct outcome out = call_check(rig, &p, &options, gpu, pins);
            const bool runs = !missing && out.kind != OUTCOME_REFUSED;
            ran += runs;
            other += !runs;
            if (!runs || out.kind != OUTCOME_WRONG) continue;
            fprintf(stderr, "%s%s: %s\n   %s\n", problems[i], kind == GEN_EXACT ? ", exact" : "",
                    out.why, out.path);
            wrong++;
        }
    }
    cmoe_device_close(gpu);
    printf("%d calls, %d with other kernels, %d wrong\n", ran, other, wrong);
    assert_true(ran >= 100);
    assert_int_equal(other, 0);
    assert_int_equal(wrong, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(layers_are_right)};
    return cmocka_run_group_tests(tests, rig_setup, rig_teardown);
}
