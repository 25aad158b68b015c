/* SPDX-License-Identifier: MIT
 * cmoe run: router and experts of one layer of a real checkpoint on a real input. */
#include "cli/commands.h"
#include "cli/far.h"
#include "cli/layer.h"
#include "cli/npy.h"
#include "cli/report.h"
#include "cli/trial.h"

#include <stdlib.h>

static const double run_seconds = 0.3;

struct run {
    const struct cli_args *args;
    struct cli_session session;
    struct cli_layer layer;
    struct cli_job job;
    struct cli_times times;
    struct cli_expected reference;
    cmoe_error error;    /* against the reference */
    cmoe_error expected; /* against --expected */
    char path[CLI_PATH_TEXT];
};

static int64_t count(const struct run *run)
{
    return (int64_t)run->layer.tensors.n_tokens * run->layer.problem.hidden;
}

static int execute(struct run *run)
{
    struct cli_layer *layer = &run->layer;
    const cmoe_problem *p = &layer->problem;
    layer->tensors.y = malloc(cmoe_dtype_bytes((cmoe_dtype)p->y, count(run)));
    if (layer->tensors.y == NULL) return cli_fail(CLI_NO_MEMORY, "out of memory");
    struct cli_far far = {.dev = NULL};
    cmoe_status status = cli_job_open_near(&run->session, p, &layer->weights, NULL, &run->job);
    run->job.near = &layer->tensors;
    if (status == CMOE_OK) status = cli_far_open(run->session.dev, p, &layer->tensors, &far);
    if (status == CMOE_OK)
        status = cli_job_time(&run->session, &run->job, &far.tensors, run_seconds, &run->times);
    if (status == CMOE_OK) status = cli_far_fetch(&far);
    cli_far_close(&far);
    if (status == CMOE_OK)
        status = cli_expect(run->session.ctx, p, run->job.canonical, &layer->tensors, count(run),
                            false, &run->reference);
    if (status != CMOE_OK) return cli_fail_status(status, NULL);
    cmoe_plan_path(run->job.plan, layer->tensors.n_tokens, run->path, sizeof run->path);
    cmoe_compare((cmoe_dtype)p->y, layer->tensors.y, run->reference.y, run->reference.bound,
                 count(run), &run->error);
    return CLI_OK;
}

/* Compare with a file's numbers under the same bound. */
static int compare_expected(struct run *run)
{
    const char *path = cli_args_value(run->args, "expected");
    if (path == NULL) return CLI_OK;
    cmoe_array a;
    const int read = cli_npy_read(path, &a);
    if (read != CLI_OK) return read;
    int64_t n = a.ndim > 0 ? 1 : 0;
    for (int d = 0; d < a.ndim; d++)
        n *= a.shape[d];
    float *values = malloc((size_t)(n > 0 ? n : 1) * sizeof *values);
    double *want = malloc((size_t)(n > 0 ? n : 1) * sizeof *want);
    int code = CLI_OK;
    if (values == NULL || want == NULL)
        code = cli_fail(CLI_NO_MEMORY, "out of memory");
    else if (n != count(run))
        code = cli_fail(CLI_BAD_DATA, "%s has %lld elements, but the output has %lld", path,
                        (long long)n, (long long)count(run));
    else if (cmoe_convert(CMOE_F32, values, a.dtype, a.data, n) != CMOE_OK)
        code = cli_fail(CLI_BAD_DATA, "%s does not hold floating point numbers", path);
    for (int64_t i = 0; code == CLI_OK && i < n; i++)
        want[i] = (double)values[i];
    if (code == CLI_OK)
        cmoe_compare((cmoe_dtype)run->layer.problem.y, run->layer.tensors.y, want,
                     run->reference.bound, n, &run->expected);
    free(values);
    free(want);
    cmoe_array_free(&a);
    return code;
}

static void print_error(const char *what, const cmoe_error *error)
{
    printf("%-12s %s, largest %.3f of the bound, %lld of %lld outside, rel. L2 %.3g\n", what,
           error->outside == 0 ? "within" : "OUTSIDE", error->max_ratio, (long long)error->outside,
           (long long)error->n, error->rel_l2);
}

static void print_text(const struct run *run)
{
    char problem[CMOE_PROBLEM_TEXT];
    cmoe_problem_print(&run->layer.problem, problem, sizeof problem);
    printf("%-12s %s\n", "problem", problem);
    printf("%-12s %s\n", "device", run->session.label);
    printf("%-12s %s\n", "path", run->path);
    printf("%-12s %.3f\n", "bytes/weight", run->layer.bytes_per_weight);
    if (run->layer.problem.x.fixed || run->layer.problem.mid.fixed)
        printf("%-12s x %.9g, mid %.9g\n", "scales", (double)run->layer.x_scale,
               (double)run->layer.mid_scale);
    printf("%-12s %.1f us median of %d, %.1f us least, %d tokens\n", "time", run->times.median,
           run->times.runs, run->times.min, run->layer.tensors.n_tokens);
    print_error("reference", &run->error);
    if (cli_args_given(run->args, "expected")) print_error("expected", &run->expected);
}

static void json_error(struct cli_json *json, const char *key, const cmoe_error *error)
{
    cli_json_open(json, key, '{');
    cli_json_int(json, "n", error->n);
    cli_json_int(json, "outside", error->outside);
    cli_json_double(json, "max_abs", error->max_abs);
    cli_json_double(json, "max_ratio", error->max_ratio);
    cli_json_double(json, "rel_l2", error->rel_l2);
    cli_json_close(json, '}');
}

static void print_json(const struct run *run)
{
    char problem[CMOE_PROBLEM_TEXT];
    cmoe_problem_print(&run->layer.problem, problem, sizeof problem);
    struct cli_json json = {.out = stdout};
    cli_json_open(&json, NULL, '{');
    cli_json_string(&json, "model", cli_args_value(run->args, "model"));
    cli_json_string(&json, "problem", problem);
    cli_json_int(&json, "tokens", run->layer.tensors.n_tokens);
    cli_json_string(&json, "scheme", cli_args_value(run->args, "scheme"));
    cli_json_string(&json, "device", run->session.label);
    cli_json_string(&json, "plan", run->path);
    cli_json_double(&json, "bytes_per_weight", run->layer.bytes_per_weight);
    cli_json_double(&json, "us_median", run->times.median);
    cli_json_double(&json, "us_min", run->times.min);
    cli_json_double(&json, "us_p90", run->times.p90);
    json_error(&json, "reference", &run->error);
    if (cli_args_given(run->args, "expected")) json_error(&json, "expected", &run->expected);
    cli_json_close(&json, '}');
    cli_json_end(&json);
}

static int write_output(const struct run *run)
{
    const char *path = cli_args_value(run->args, "output");
    if (path == NULL) return CLI_OK;
    const cmoe_problem *p = &run->layer.problem;
    const cmoe_array a = {
        .dtype = (cmoe_dtype)p->y,
        .ndim = 2,
        .shape = {run->layer.tensors.n_tokens, p->hidden},
        .bytes = cmoe_dtype_bytes((cmoe_dtype)p->y, count(run)),
        .data = run->layer.tensors.y,
    };
    const cmoe_status status = cmoe_npy_write(path, &a);
    return status == CMOE_OK ? CLI_OK : cli_fail_output(status);
}

static int run_opened(struct run *run)
{
    int code = cli_layer_open(run->args, &run->layer);
    const bool record = run->session.armed;
    run->session.armed = false; /* record the call itself, not the calibration */
    if (code == CLI_OK) code = cli_layer_scales(run->args, &run->session, &run->layer);
    run->session.armed = record;
    if (code == CLI_OK) code = execute(run);
    if (code == CLI_OK) code = compare_expected(run);
    if (code != CLI_OK) return code;
    const bool within = run->error.outside == 0 && run->expected.outside == 0;
    if (within) code = write_output(run);
    if (code != CLI_OK) return code;
    if (cli_args_given(run->args, "json"))
        print_json(run);
    else
        print_text(run);
    if (within) return CLI_OK;
    return cli_fail(CLI_OUTSIDE, "the result is outside its bound; no output is written");
}

static int run(const struct cli_args *args)
{
    const char *const required[] = {"model", "layer", "input"};
    for (int i = 0; i < 3; i++) {
        const int code = cli_args_require(args, required[i]);
        if (code != CLI_OK) return code;
    }
    struct run run = {.args = args};
    int code = cli_session_open(&run.session);
    if (code == CLI_OK) code = cli_session_device(&run.session, cli_args_value(args, "device"));
    if (code == CLI_OK) code = run_opened(&run);
    free(run.layer.tensors.y);
    cli_expected_free(&run.reference);
    cli_job_close(&run.job);
    cli_layer_close(&run.layer);
    return cli_session_close(&run.session, code);
}

static const struct cli_option options[] = {
    {"model", "DIR", "checkpoint: a folder with config.json and .safetensors files"},
    {"layer", "N", "layer, counted from 0"},
    {"input", "FILE.npy", "hidden states before the layer, [tokens, hidden]"},
    {"output", "FILE.npy", "where to write the result (bf16 as u2)"},
    {"scheme", "NAME", "quantise experts and activations (default: as the checkpoint is)"},
    {"device", "NAME", "ref, cpu or cuda:N"},
    {"expected", "FILE.npy", "a result from elsewhere to compare with, too"},
    {"scales", "FILE.npy", "static scales: two f32 numbers, of x and of the intermediate"},
    {"x-scale", "S", "static scale of x (default: from the input itself)"},
    {"mid-scale", "S", "static scale of the intermediate (default: from the input itself)"},
    {"json", NULL, "print one JSON object"},
    {NULL, NULL, NULL},
};

const struct cli_command cli_run = {
    .name = "run",
    .summary = "Run one layer of a checkpoint on an input and compare with the reference",
    .details =
        "Prints the time, the kernels used and the error against the reference, in units of its\n"
        "bound. Exit code 1: outside the bound. The output file is written last, and completely\n"
        "or not at all.\n",
    .options = options,
    .run = run,
};
