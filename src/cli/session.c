/* SPDX-License-Identifier: MIT
 * Context, device, recorder, and one planned problem. */
#include "cli/session.h"

#include "cli/args.h"
#include "cli/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_log(void *user, int level, const char *message)
{
    (void)user;
    if (level <= 1) fprintf(stderr, "cmoe: %s\n", message);
}

static void record(void *user, const cmoe_record *call)
{
    struct cli_session *session = user;
    if (!session->armed) return;
    session->armed = false;
    cmoe_record copy = *call;
    if (session->canonical != NULL) copy.weights = session->canonical;
    if (session->near != NULL) {
        copy.tensors = session->near;
        copy.far = 0;
    }
    session->record_status = cmoe_record_write(session->record_dir, &copy);
    if (session->record_status != CMOE_OK)
        cli_fail_output(session->record_status);
    else
        fprintf(stderr, "cmoe: recorded the call in %s\n", session->record_dir);
}

int cli_session_open(struct cli_session *session)
{
    return cli_session_open_tuned(session, NULL);
}

int cli_session_open_tuned(struct cli_session *session, const char *table)
{
    *session = (struct cli_session){.record_dir = getenv("CMOE_RECORD")};
    session->recorder = (cmoe_recorder){.record = record, .user = session};
    session->armed = session->record_dir != NULL && session->record_dir[0] != '\0';
    const cmoe_context_options options = {
        .struct_size = sizeof options,
        .log = print_log,
        .user = session,
        .recorder = session->armed ? &session->recorder : NULL,
        .tuned = table,
    };
    const cmoe_status status = cmoe_context_create(&options, &session->ctx);
    return status == CMOE_OK ? CLI_OK : cli_fail_status(status, NULL);
}

static void close_devices(struct cli_session *session)
{
    if (session->host != session->dev) cmoe_device_close(session->host);
    cmoe_device_close(session->dev);
    session->dev = session->host = NULL;
}

int cli_session_device(struct cli_session *session, const char *spec)
{
    close_devices(session);
    const cmoe_status status = cmoe_device_open(session->ctx, spec, &session->dev);
    if (status != CMOE_OK) return cli_fail_status(status, NULL);
    session->info.struct_size = sizeof session->info;
    cmoe_device_describe(session->dev, &session->info);
    if (session->info.host) {
        session->host = session->dev;
    } else {
        const cmoe_status opened = cmoe_device_open(session->ctx, "ref", &session->host);
        if (opened != CMOE_OK) return cli_fail_status(opened, NULL);
    }
    if (spec == NULL) spec = getenv("CMOE_DEVICE");
    if (spec == NULL || spec[0] == '\0') spec = "cpu";
    snprintf(session->label, sizeof session->label, "%.32s-%s-%dt (%s)", spec, session->info.isa,
             session->info.threads, session->info.name);
    return CLI_OK;
}

int cli_session_host_device(struct cli_session *session, const char *spec)
{
    const int code = cli_session_device(session, spec);
    if (code != CLI_OK || session->host == session->dev) return code;
    return cli_fail(CLI_UNAVAILABLE, "this command does not run on %s yet; cmoe check does", spec);
}

int cli_session_close(struct cli_session *session, int code)
{
    close_devices(session);
    cmoe_context_destroy(session->ctx);
    const bool failed = session->record_status != CMOE_OK;
    *session = (struct cli_session){.ctx = NULL};
    return failed && code == CLI_OK ? CLI_NO_OUTPUT : code;
}

/* Weights in the formats that a plan made without weights chose. */
static cmoe_status pack(struct cli_session *session, const cmoe_problem *p,
                        const cmoe_weights_desc *weights, const cmoe_plan_options *options,
                        cmoe_weights **out)
{
    cmoe_plan *draft = NULL;
    cmoe_status status = cmoe_plan_create(session->dev, p, NULL, options, &draft);
    if (status != CMOE_OK) return status;
    const char *format[2] = {cmoe_plan_weight_format(draft, 1), cmoe_plan_weight_format(draft, 2)};
    cmoe_weights_desc desc = *weights;
    desc.format1 = strcmp(format[0], "none") == 0 ? NULL : format[0];
    desc.format2 = strcmp(format[1], "none") == 0 ? NULL : format[1];
    const bool packed = (desc.format1 != NULL && strcmp(desc.format1, "canonical") != 0) ||
                        (desc.format2 != NULL && strcmp(desc.format2, "canonical") != 0);
    if (packed) status = cmoe_weights_create(session->dev, p, &desc, out);
    cmoe_plan_destroy(draft);
    return status;
}

static cmoe_status plan_job(struct cli_session *session, const cmoe_problem *p,
                            const cmoe_plan_options *options, struct cli_job *job)
{
    const cmoe_weights *weights = job->packed != NULL ? job->packed : job->canonical;
    const cmoe_status status = cmoe_plan_create(session->dev, p, weights, options, &job->plan);
    if (status != CMOE_OK) return status;
    job->workspace_size = cmoe_plan_workspace_size(job->plan);
    return cmoe_device_alloc(session->dev, job->workspace_size, &job->workspace);
}

cmoe_status cli_job_open(struct cli_session *session, const cmoe_problem *p,
                         const cmoe_weights_desc *weights, const char *pin, struct cli_job *out)
{
    *out = (struct cli_job){.dev = session->dev};
    const cmoe_plan_options options = {.struct_size = sizeof options, .pin = pin};
    cmoe_status status = pack(session, p, weights, &options, &out->packed);
    if (status == CMOE_OK) status = cmoe_weights_create(session->dev, p, weights, &out->canonical);
    if (status == CMOE_OK) status = plan_job(session, p, &options, out);
    if (status != CMOE_OK) cli_job_close(out);
    return status;
}

cmoe_status cli_job_open_near(struct cli_session *session, const cmoe_problem *p,
                              const cmoe_weights_desc *weights, const char *pin,
                              struct cli_job *out)
{
    if (session->info.host) return cli_job_open(session, p, weights, pin, out);
    *out = (struct cli_job){.dev = session->dev};
    const cmoe_plan_options options = {.struct_size = sizeof options, .pin = pin};
    cmoe_status status = cmoe_weights_upload(session->dev, p, weights, &out->packed);
    if (status == CMOE_OK) status = cmoe_weights_create(session->host, p, weights, &out->canonical);
    if (status == CMOE_OK) status = plan_job(session, p, &options, out);
    if (status != CMOE_OK) cli_job_close(out);
    return status;
}

cmoe_status cli_job_run(struct cli_session *session, const struct cli_job *job,
                        const cmoe_tensors *tensors)
{
    session->canonical = job->canonical;
    session->near = job->near;
    const cmoe_status status =
        cmoe_execute(job->plan, tensors, job->workspace, job->workspace_size, NULL);
    session->canonical = NULL;
    session->near = NULL;
    return status == CMOE_OK ? cmoe_device_sync(session->dev, NULL) : status;
}

void cli_job_close(struct cli_job *job)
{
    cmoe_plan_destroy(job->plan);
    cmoe_weights_destroy(job->packed);
    cmoe_weights_destroy(job->canonical);
    cmoe_device_free(job->dev, job->workspace);
    *job = (struct cli_job){.plan = NULL};
}

/* ---- times ---- */

enum { MAX_RUNS = 1000 };

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

cmoe_status cli_job_time(struct cli_session *session, const struct cli_job *job,
                         const cmoe_tensors *tensors, double seconds, struct cli_times *out)
{
    double us[MAX_RUNS];
    int n = 0;
    cmoe_status status = cli_job_run(session, job, tensors);
    const double start = cli_now();
    while (status == CMOE_OK && n < MAX_RUNS && (n < 3 || cli_now() - start < seconds)) {
        const double before = cli_now();
        status = cli_job_run(session, job, tensors);
        us[n++] = 1e6 * (cli_now() - before);
    }
    if (status != CMOE_OK) return status;
    qsort(us, (size_t)n, sizeof us[0], compare_doubles);
    *out = (struct cli_times){.median = us[n / 2], .min = us[0], .p90 = us[n * 9 / 10], .runs = n};
    return CMOE_OK;
}

/* ---- the problem of a command line ---- */

int cli_problem_from_args(const struct cli_args *args, bool with_scheme, cmoe_problem *out)
{
    const char *model = cli_args_value(args, "model");
    const char *text = cli_args_value(args, "problem");
    const char *scheme = with_scheme ? cli_args_value(args, "scheme") : NULL;
    if (model == NULL && text == NULL)
        return cli_fail(CLI_USAGE, "%s needs --problem or --model; see cmoe %s --help",
                        args->command->name, args->command->name);
    cmoe_problem_init(out);
    cmoe_status status = CMOE_OK;
    if (model != NULL) status = cmoe_problem_model(out, model);
    if (status == CMOE_OK && scheme != NULL) status = cmoe_problem_scheme(out, scheme);
    if (status == CMOE_OK && text != NULL) status = cmoe_problem_parse(out, text);
    if (status != CMOE_OK) return cli_fail_status(status, NULL);
    return CLI_OK;
}

int cli_problem_check(const cmoe_problem *p)
{
    if (cmoe_problem_check(p) == CMOE_OK) return CLI_OK;
    return cli_fail(CLI_USAGE, "%s", cmoe_last_error());
}
