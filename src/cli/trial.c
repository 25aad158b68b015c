/* SPDX-License-Identifier: MIT
 * Run, compare, and look at what must not have changed. */
#include "cli/trial.h"

#include "cli/mirror.h"
#include "cli/report.h"

#include <stdlib.h>
#include <string.h>

cmoe_status cli_expect(cmoe_context *ctx, const cmoe_problem *p, const cmoe_weights *weights,
                       const cmoe_tensors *tensors, int64_t n, bool exact, struct cli_expected *out)
{
    const size_t bytes = (size_t)(n > 0 ? n : 1) * sizeof(double);
    *out = (struct cli_expected){.y = malloc(bytes), .bound = malloc(bytes), .n = n};
    cmoe_status status = CMOE_ERR_NO_MEMORY;
    if (out->y != NULL && out->bound != NULL)
        status = cmoe_reference(ctx, p, weights, tensors, out->y, out->bound);
    if (status != CMOE_OK) {
        cli_expected_free(out);
        return status;
    }
    if (!exact) return CMOE_OK;
    for (int64_t i = 0; i < n; i++)
        out->y[i] = cmoe_decode((cmoe_dtype)p->y, cmoe_encode((cmoe_dtype)p->y, (float)out->y[i]));
    free(out->bound);
    out->bound = NULL;
    return CMOE_OK;
}

void cli_expected_free(struct cli_expected *expected)
{
    free(expected->y);
    free(expected->bound);
    *expected = (struct cli_expected){.y = NULL};
}

cmoe_status cli_compare_y(const struct gen_call *call, const struct cli_expected *expected,
                          cmoe_error *out)
{
    /* Rows that the call defines, tight. */
    const size_t row = (size_t)call->y_row, h = (size_t)call->problem.hidden;
    const size_t rows = (size_t)call->y_rows + 1;
    unsigned char *got = malloc(rows * row);
    double *want = malloc(rows * h * sizeof *want);
    double *bound = malloc(rows * h * sizeof *bound);
    const bool ok = got != NULL && want != NULL && bound != NULL;
    size_t n = 0;
    for (int64_t r = 0; ok && r < call->y_rows; r++) {
        if (!gen_y_row_counts(call, r)) continue;
        memcpy(got + n * row, gen_y_row(call, r), row);
        memcpy(want + n * h, expected->y + (size_t)r * h, h * sizeof *want);
        if (expected->bound != NULL)
            memcpy(bound + n * h, expected->bound + (size_t)r * h, h * sizeof *bound);
        n++;
    }
    if (ok)
        cmoe_compare((cmoe_dtype)call->problem.y, got, want, expected->bound != NULL ? bound : NULL,
                     (int64_t)(n * h), out);
    free(got);
    free(want);
    free(bound);
    return ok ? CMOE_OK : CMOE_ERR_NO_MEMORY;
}

static enum cli_trial_result fail(struct cli_trial *out, const char *what, const char *detail)
{
    snprintf(out->what, sizeof out->what, "%s%s%s", what, detail[0] != '\0' ? ": " : "", detail);
    return CLI_TRIAL_FAILED;
}

static enum cli_trial_result judge(const struct gen_call *call, const struct cli_expected *expected,
                                   struct cli_trial *out)
{
    if (call->problem.last == CMOE_STAGE_SORT) {
        const char *difference = gen_sort_difference(call);
        if (difference == NULL) difference = gen_call_damage(call);
        return difference != NULL ? fail(out, difference, "") : CLI_TRIAL_PASSED;
    }
    if (cli_compare_y(call, expected, &out->error) != CMOE_OK)
        return fail(out, "out of memory", "");
    const char *damage = gen_call_damage(call);
    if (damage != NULL) return fail(out, damage, "");
    if (out->error.outside == 0) return CLI_TRIAL_PASSED;
    const int64_t h = call->problem.hidden;
    char detail[256];
    snprintf(detail, sizeof detail,
             "row %lld column %lld is the first of %lld of %lld elements, ratio %.3g, largest "
             "difference %.3g",
             (long long)(out->error.first / h), (long long)(out->error.first % h),
             (long long)out->error.outside, (long long)out->error.n, out->error.max_ratio,
             out->error.max_abs);
    return fail(out, expected->bound != NULL ? "outside the bound" : "not exact", detail);
}

/* Whether a kernel is on a path written "a > b > c". */
static bool path_has(const char *path, const char *name)
{
    const size_t length = strlen(name);
    for (const char *at = path; (at = strstr(at, name)) != NULL; at += length) {
        const bool starts = at == path || at[-1] == ' ';
        if (starts && (at[length] == '\0' || at[length] == ' ')) return true;
    }
    return false;
}

/* The reference has weights of its own: its problem may differ from the plan's. */
static cmoe_status expect_call(struct cli_session *session, const struct gen_call *call, bool exact,
                               struct cli_expected *out)
{
    cmoe_weights *weights = NULL;
    cmoe_status status =
        cmoe_weights_create(session->host, &call->reference, &call->weights, &weights);
    if (status == CMOE_OK)
        status = cli_expect(session->ctx, &call->reference, weights, &call->reference_tensors,
                            call->y_rows * call->problem.hidden, exact, out);
    cmoe_weights_destroy(weights);
    return status;
}

/* Run a call where it lies, or on its mirror. */
static cmoe_status run_call(struct cli_session *session, const struct cli_job *job,
                            const struct gen_call *call, struct cli_mirror *mirror,
                            const char **damage)
{
    if (mirror == NULL) return cli_job_run(session, job, &call->tensors);
    cmoe_status status = cli_mirror_send(mirror);
    if (status == CMOE_OK) status = cli_job_run(session, job, &mirror->tensors);
    if (status == CMOE_OK) status = cli_mirror_fetch(mirror, damage);
    return status;
}

enum cli_trial_result cli_try(struct cli_session *session, struct gen_call *call, bool exact,
                              const char *pin, struct cli_expected *expected, struct cli_trial *out)
{
    *out = (struct cli_trial){.what = ""};
    struct cli_job job;
    struct cli_mirror mirror = {.dev = NULL};
    const bool far = session->host != session->dev;
    cmoe_status status = far ? cli_mirror_open(session->dev, call, &mirror) : CMOE_OK;
    if (status != CMOE_OK) return fail(out, "no device memory", cmoe_last_error());
    const cmoe_weights_desc *weights = far ? &mirror.weights : &call->weights;
    status = cli_job_open(session, &call->problem, weights, pin, &job);
    if (status != CMOE_OK) cli_mirror_close(&mirror);
    if (status == CMOE_ERR_INVALID || status == CMOE_ERR_UNSUPPORTED) return CLI_TRIAL_SKIPPED;
    if (status != CMOE_OK) return fail(out, "no plan", cmoe_last_error());
    char path[CLI_PATH_TEXT];
    cmoe_plan_path(job.plan, call->tensors.n_tokens, path, sizeof path);
    if (pin != NULL && !path_has(path, pin)) {
        cli_job_close(&job);
        cli_mirror_close(&mirror);
        return CLI_TRIAL_SKIPPED;
    }
    enum cli_trial_result result = CLI_TRIAL_FAILED;
    const char *damage = NULL;
    gen_call_reset(call);
    if (expected->y == NULL && call->problem.last == CMOE_STAGE_COMBINE)
        status = expect_call(session, call, exact, expected);
    if (status != CMOE_OK)
        fail(out, "no reference", cmoe_last_error());
    else if ((status = run_call(session, &job, call, far ? &mirror : NULL, &damage)) != CMOE_OK)
        fail(out, "the call failed", cmoe_last_error());
    else if (damage != NULL)
        fail(out, damage, "");
    else
        result = judge(call, expected, out);
    cli_job_close(&job);
    cli_mirror_close(&mirror);
    return result;
}
