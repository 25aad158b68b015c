/* SPDX-License-Identifier: MIT
 * What a timed plan computes, beside the reference: the first tokens of the first routing. */
#include "cli/bench.h"

#include <stdlib.h>

enum { SAMPLE_TOKENS = 16 };

/* Multiply-adds that the reference may take: about a second. */
static const double reference_limit = 4e8;

/* Tokens that the reference computes in about a second; 0: not one. */
static int64_t sample_tokens(const cmoe_problem *p, int64_t tokens)
{
    const double share = cmoe_problem_local_experts(p) / (double)(p->experts + p->shared);
    const double work = bench_slot_work(p) * cmoe_problem_slots(p) * (share < 1 ? share : 1);
    int64_t n = tokens < SAMPLE_TOKENS ? tokens : SAMPLE_TOKENS;
    while (n > 0 && (double)n * work > reference_limit)
        n--;
    return p->accumulate != 0 ? 0 : n;
}

/* The reference for as many tokens as any cell compares. */
static cmoe_status expect_first(const struct bench_inputs *in, struct cli_expected *out)
{
    const int64_t n = sample_tokens(&in->call.problem, in->tensors[0].n_tokens);
    cmoe_tensors host = in->call.tensors;
    host.n_tokens = (int32_t)n;
    bench_inputs_host_route(in, &host);
    return cli_expect(in->session->ctx, &in->call.problem, in->reference, &host,
                      n * in->call.y_block * in->call.problem.hidden, false, out);
}

cmoe_status bench_error(const struct bench_inputs *in, const struct bench_job *job,
                        struct cli_expected *expected, cmoe_error *out)
{
    const cmoe_problem *p = &in->call.problem;
    cmoe_device *dev = in->session->dev;
    const int64_t elements =
        sample_tokens(p, in->tensors[0].n_tokens) * in->call.y_block * p->hidden;
    const size_t bytes = cmoe_dtype_bytes((cmoe_dtype)p->y, elements);
    if (elements == 0) return CMOE_OK;
    cmoe_status status = CMOE_OK;
    if (expected->n < elements) {
        cli_expected_free(expected);
        status = expect_first(in, expected);
    }
    unsigned char *y = malloc(bytes + 1);
    if (status == CMOE_OK && y == NULL) status = CMOE_ERR_NO_MEMORY;
    if (status == CMOE_OK) status = bench_job_run_tensors(job, in, &in->tensors[0]);
    if (status == CMOE_OK)
        status = cmoe_device_copy(dev, y, in->tensors[0].y, bytes, CMOE_COPY_FROM_DEVICE, NULL);
    if (status == CMOE_OK) status = cmoe_device_sync(dev, NULL);
    if (status == CMOE_OK)
        cmoe_compare((cmoe_dtype)p->y, y, expected->y, expected->bound, elements, out);
    /* Nothing was computed where no expert of these tokens is local. */
    if (status == CMOE_OK && out->zeros >= 1 && out->outside == 0) out->n = 0;
    free(y);
    return status;
}
