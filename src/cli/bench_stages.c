/* SPDX-License-Identifier: MIT
 * Time of each step of a call: the median over calls. On a GPU untimed calls go before each, so that it is
 * launched while the device is still busy and no event waits for the host. */
#include "cli/bench.h"

#include <stdlib.h>

enum { RUNS = 15, BEFORE = 8 };

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static cmoe_status run_once(const struct bench_inputs *in, const struct bench_lane *lane, int i,
                            double *stage_us)
{
    const struct bench_job *job = lane->job;
    cmoe_status status = CMOE_OK;
    for (int k = 0; in->mirror.dev != NULL && k < BEFORE && status == CMOE_OK; k++)
        status = bench_job_run(job, in, i + k + 1, NULL);
    if (status != CMOE_OK) return status;
    cmoe_tensors tensors = in->tensors[i % in->variants];
    tensors.weights = job->set[i % job->sets];
    tensors.stage_us = stage_us;
    return cmoe_execute(job->plan, &tensors, job->workspace, job->workspace_size, NULL);
}

cmoe_status bench_stages(struct bench_inputs *in, struct bench_lane *lane)
{
    double us[CMOE_STAGE_COUNT][RUNS];
    for (int i = 0; i < RUNS; i++) {
        double once[CMOE_STAGE_COUNT] = {0};
        const cmoe_status status = run_once(in, lane, i, once);
        if (status != CMOE_OK) return status;
        for (int stage = 0; stage < CMOE_STAGE_COUNT; stage++)
            us[stage][i] = once[stage];
    }
    for (int stage = 0; stage < CMOE_STAGE_COUNT; stage++) {
        qsort(us[stage], RUNS, sizeof us[stage][0], compare_doubles);
        lane->stage_us[stage] = us[stage][RUNS / 2];
    }
    return CMOE_OK;
}
