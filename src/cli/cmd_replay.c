/* SPDX-License-Identifier: MIT
 * cmoe replay: run a recorded call again and compare it with the reference. */
#include "cli/commands.h"
#include "cli/far.h"
#include "cli/report.h"
#include "cli/trial.h"

#include <stdlib.h>
#include <string.h>

struct replay {
    const struct cli_args *args;
    struct cli_session session;
    cmoe_replay call;
    struct cli_job job;
    struct cli_times times;
    cmoe_error error;
    char path[CLI_PATH_TEXT];
};

/* Elements of y without padding. */
static int64_t elements(const struct replay *replay)
{
    const cmoe_problem *p = &replay->call.problem;
    const int64_t slots = (p->flags & CMOE_NO_REDUCE) != 0 ? cmoe_problem_slots(p) : 1;
    return replay->call.tensors.n_tokens * slots * p->hidden;
}

static int check_kind(const struct replay *replay)
{
    const cmoe_problem *p = &replay->call.problem;
    if (p->last == CMOE_STAGE_COMBINE && p->first <= CMOE_STAGE_SORT && p->capacity == 0)
        return CLI_OK;
    return cli_fail(CLI_UNAVAILABLE,
                    "replay: there is a reference only for calls that start at route, quant or "
                    "sort, and end at combine; this one is %s..%s",
                    cmoe_stage_name((cmoe_stage)p->first), cmoe_stage_name((cmoe_stage)p->last));
}

/* y of its own, tight, holding what the recorded call found there. */
static void *make_y(const struct replay *replay, cmoe_tensors *tensors)
{
    const cmoe_problem *p = &replay->call.problem;
    const size_t size = cmoe_dtype_bytes((cmoe_dtype)p->y, elements(replay));
    unsigned char *y = calloc(1, size + 1);
    const int64_t row = (int64_t)size / (tensors->n_tokens > 0 ? tensors->n_tokens : 1);
    const int64_t stride = tensors->y_stride > 0 ? tensors->y_stride : row;
    for (int64_t t = 0; y != NULL && tensors->y != NULL && t < tensors->n_tokens; t++)
        memcpy(y + t * row, (const unsigned char *)tensors->y + t * stride, (size_t)row);
    tensors->y = y;
    tensors->y_stride = 0;
    return y;
}

static cmoe_status run_call(struct replay *replay, cmoe_tensors *tensors)
{
    const cmoe_problem *p = &replay->call.problem;
    struct cli_expected expected = {.y = NULL};
    cmoe_status status = cli_expect(replay->session.ctx, p, replay->job.canonical, tensors,
                                    elements(replay), false, &expected);
    struct cli_far far = {.dev = NULL};
    replay->job.near = tensors;
    if (status == CMOE_OK) status = cli_far_open(replay->session.dev, p, tensors, &far);
    if (status == CMOE_OK) status = cli_job_run(&replay->session, &replay->job, &far.tensors);
    if (status == CMOE_OK) status = cli_far_fetch(&far);
    if (status == CMOE_OK)
        cmoe_compare((cmoe_dtype)p->y, tensors->y, expected.y, expected.bound, elements(replay),
                     &replay->error);
    cli_expected_free(&expected);
    if (status == CMOE_OK)
        status = cli_job_time(&replay->session, &replay->job, &far.tensors, 0.5, &replay->times);
    cli_far_close(&far);
    return status;
}

static void print_result(const struct replay *replay)
{
    char problem[CMOE_PROBLEM_TEXT];
    cmoe_problem_print(&replay->call.problem, problem, sizeof problem);
    const cmoe_error *error = &replay->error;
    if (!cli_args_given(replay->args, "json")) {
        printf("%-12s %s\n", "problem", problem);
        printf("%-12s %s\n", "device", replay->session.label);
        printf("%-12s %s\n", "path", replay->path);
        printf("%-12s %.1f us median of %d, %d tokens\n", "time", replay->times.median,
               replay->times.runs, replay->call.tensors.n_tokens);
        printf("%-12s %s, largest %.3f of the bound, %lld of %lld outside, rel. L2 %.3g\n",
               "reference", error->outside == 0 ? "within" : "OUTSIDE", error->max_ratio,
               (long long)error->outside, (long long)error->n, error->rel_l2);
        return;
    }
    struct cli_json json = {.out = stdout};
    cli_json_open(&json, NULL, '{');
    cli_json_string(&json, "problem", problem);
    cli_json_int(&json, "tokens", replay->call.tensors.n_tokens);
    cli_json_string(&json, "device", replay->session.label);
    cli_json_string(&json, "plan", replay->path);
    cli_json_double(&json, "us_median", replay->times.median);
    cli_json_int(&json, "n", error->n);
    cli_json_int(&json, "outside", error->outside);
    cli_json_double(&json, "max_ratio", error->max_ratio);
    cli_json_double(&json, "rel_l2", error->rel_l2);
    cli_json_close(&json, '}');
    cli_json_end(&json);
}

static int run_opened(struct replay *replay)
{
    cmoe_status status = cmoe_record_read(replay->args->positional, &replay->call);
    if (status != CMOE_OK) return cli_fail_status(status, NULL);
    const int code = check_kind(replay);
    if (code != CLI_OK) return code;
    status = cli_job_open_near(&replay->session, &replay->call.problem, &replay->call.weights,
                               cli_args_value(replay->args, "pin"), &replay->job);
    if (status != CMOE_OK) return cli_fail_status(status, NULL);
    cmoe_tensors tensors = replay->call.tensors;
    void *y = make_y(replay, &tensors);
    status = y != NULL ? run_call(replay, &tensors) : CMOE_ERR_NO_MEMORY;
    free(y);
    if (status != CMOE_OK) return cli_fail_status(status, NULL);
    cmoe_plan_path(replay->job.plan, tensors.n_tokens, replay->path, sizeof replay->path);
    print_result(replay);
    return replay->error.outside > 0 ? CLI_OUTSIDE : CLI_OK;
}

static int run(const struct cli_args *args)
{
    struct replay replay = {.args = args};
    int code = cli_session_open(&replay.session);
    if (code == CLI_OK) code = cli_session_device(&replay.session, cli_args_value(args, "device"));
    if (code == CLI_OK) code = run_opened(&replay);
    cli_job_close(&replay.job);
    cmoe_replay_free(&replay.call);
    return cli_session_close(&replay.session, code);
}

static const struct cli_option options[] = {
    {"device", "NAME", "ref, cpu or cuda:N"},
    {"pin", "GLOBS", "kernels to use where they can be used, comma separated"},
    {"json", NULL, "print one JSON object"},
    {NULL, NULL, NULL},
};

const struct cli_command cli_replay = {
    .name = "replay",
    .summary = "Run a recorded call again and compare it with the reference",
    .positional = "DIR",
    .details =
        "DIR was written by CMOE_RECORD=DIR in front of run, check or bench, or by a program with\n"
        "cmoe_record_write. Exit code 1: outside the bound.\n",
    .options = options,
    .run = run,
};
