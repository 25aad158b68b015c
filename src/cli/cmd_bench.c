/* SPDX-License-Identifier: MIT
 * cmoe bench: time of a layer over token counts and schemes, on random weights.
 *
 * One call with the largest token count is made for each scheme; smaller counts run its first
 * tokens with the same plan, as an engine would. */
#include "cli/bench.h"
#include "cli/commands.h"
#include "cli/report.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_REST = 60 };

struct bench {
    const struct cli_args *args;
    cmoe_problem problem;
    struct cli_session session;
    struct bench_routing routing;
    struct bench_roof roof;
    struct bench_tokens tokens;
    double seconds, rest;
    uint64_t seed;
    FILE *out;   /* of JSON or CSV; NULL: a table on standard output */
    bool headed; /* the heading of a table is printed */
    bool outside;
    struct cli_progress progress;
    int64_t done, points; /* of all schemes and token counts */
};

/* One scheme: its inputs, one or two plans, and what the reference says of the first tokens. */
struct scheme {
    const char *name; /* NULL: the problem's formats */
    struct bench_inputs inputs;
    struct bench_job job[BENCH_LANES];
    int jobs;
    struct cli_expected expected; /* y NULL: not computed yet */
};

/* ---- one cell ---- */

/* Slots and experts of a forward, over all routings of the cell; the device counts them. */
static cmoe_status count_load(struct bench *bench, const struct scheme *scheme,
                              struct bench_cell *cell)
{
    const cmoe_problem *p = cell->problem;
    const struct bench_inputs *in = &scheme->inputs;
    cmoe_device *dev = bench->session.dev;
    const size_t n = (size_t)cmoe_problem_local_experts(p), bytes = n * sizeof(int64_t);
    int64_t *load = malloc(bytes + 1);
    void *counter = NULL;
    if (load == NULL) return CMOE_ERR_NO_MEMORY;
    cmoe_status status = cmoe_device_alloc(dev, bytes, &counter);
    for (int v = 0; v < in->variants && status == CMOE_OK; v++) {
        cmoe_tensors tensors = in->tensors[v];
        tensors.expert_load = counter;
        status = cmoe_device_fill(dev, counter, 0, bytes, NULL);
        if (status == CMOE_OK) status = bench_job_run_tensors(&scheme->job[0], in, &tensors);
        if (status == CMOE_OK)
            status = cmoe_device_copy(dev, load, counter, bytes, CMOE_COPY_FROM_DEVICE, NULL);
        if (status == CMOE_OK) status = cmoe_device_sync(dev, NULL);
        for (size_t e = 0; e < n && status == CMOE_OK; e++) {
            cell->slots += (double)load[e] / in->variants;
            cell->hit += (load[e] > 0) / (double)in->variants;
        }
    }
    cmoe_device_free(dev, counter);
    free(load);
    const double bits = cmoe_dtype_bits((cmoe_dtype)p->in) + cmoe_dtype_bits((cmoe_dtype)p->y);
    cell->flops = 2 * cell->slots * bench_slot_work(p);
    cell->bytes = cell->hit * bench_expert_bytes(p) + (double)cell->tokens * p->hidden * bits / 8;
    return status;
}

static void print_cell(struct bench *bench, const struct bench_cell *cell)
{
    FILE *out = bench->out != NULL ? bench->out : stdout;
    if (bench->out == NULL)
        bench_print_text(cell, &bench->headed);
    else if (cli_args_given(bench->args, "csv"))
        bench_print_csv(out, cell, &bench->headed);
    else
        bench_print_json(out, cell);
    fflush(out);
}

static cmoe_status bench_cell(struct bench *bench, struct scheme *scheme, int64_t tokens)
{
    struct bench_inputs *in = &scheme->inputs;
    const cmoe_problem *p = &in->call.problem;
    struct bench_cell cell = {
        .model = cli_args_value(bench->args, "model"),
        .scheme = scheme->name,
        .routing = bench->routing.text,
        .device = bench->session.label,
        .problem = p,
        .tokens = tokens,
        .rest = bench->rest,
        .sets = scheme->job[0].sets,
        .lanes = scheme->jobs,
    };
    cmoe_status status =
        bench_inputs_route(in, &bench->routing, bench->seed, tokens, bench_variants(in, tokens));
    cell.variants = in->variants;
    for (int i = 0; i < cell.lanes; i++) {
        cell.lane[i].job = &scheme->job[i];
        cmoe_plan_path(scheme->job[i].plan, (int)tokens, cell.lane[i].path,
                       sizeof cell.lane[i].path);
    }
    if (status == CMOE_OK) status = count_load(bench, scheme, &cell);
    cell.dot = bench_roof_measure(&bench->roof, CMOE_PROBE_DOT, (cmoe_dtype)p->x.dtype);
    cell.read[0] = bench_roof_measure(&bench->roof, CMOE_PROBE_READ, CMOE_NONE);
    if (status == CMOE_OK)
        status = bench_time(in, cell.lane, cell.lanes, bench->seconds, bench->rest);
    cell.read[1] = bench_roof_measure(&bench->roof, CMOE_PROBE_READ, CMOE_NONE);
    for (int i = 0; i < cell.lanes && status == CMOE_OK; i++) {
        if (cli_args_given(bench->args, "stages")) status = bench_stages(in, &cell.lane[i]);
        if (status == CMOE_OK)
            status = bench_error(in, &scheme->job[i], &scheme->expected, &cell.lane[i].error);
        bench->outside = bench->outside || cell.lane[i].error.outside > 0;
    }
    cli_progress_end(&bench->progress);
    if (status == CMOE_OK) print_cell(bench, &cell);
    return status;
}

/* ---- one scheme ---- */

static cmoe_status bench_opened(struct bench *bench, struct scheme *scheme)
{
    const cmoe_problem *p = &scheme->inputs.call.problem;
    const char *pins[BENCH_LANES] = {cli_args_value(bench->args, "pin"),
                                     cli_args_value(bench->args, "vs")};
    const int lanes = pins[1] != NULL ? 2 : 1;
    cmoe_status status = CMOE_OK;
    for (int i = 0; i < lanes && status == CMOE_OK; i++) {
        status = bench_job_open(&scheme->inputs, pins[i], bench_sets(&bench->session, p),
                                &scheme->job[i]);
        if (status == CMOE_OK) scheme->jobs++;
    }
    for (int i = 0; i < bench->tokens.n && status == CMOE_OK; i++) {
        cli_progress_show(&bench->progress, bench->done++, bench->points);
        status = bench_cell(bench, scheme, bench->tokens.at[i]);
    }
    cli_progress_end(&bench->progress);
    for (int i = 0; i < scheme->jobs; i++)
        bench_job_close(&scheme->job[i]);
    return status;
}

static int bench_scheme(struct bench *bench, cmoe_problem p, const char *name)
{
    if (name != NULL && cmoe_problem_scheme(&p, name) != CMOE_OK)
        return cli_fail(CLI_USAGE, "%s", cmoe_last_error());
    p.max_tokens = (int32_t)bench->tokens.most;
    const int code =
        bench_check(&bench->session, bench->args, &p, cli_args_given(bench->args, "vs") ? 2 : 1);
    if (code != CLI_OK) return code;
    struct scheme scheme = {.name = name};
    cmoe_status status = bench_inputs_open(&bench->session, &p, bench->seed, &scheme.inputs);
    if (status != CMOE_OK) return cli_fail_status(status, "bench: cannot make inputs");
    status = bench_opened(bench, &scheme);
    cli_expected_free(&scheme.expected);
    bench_inputs_close(&scheme.inputs);
    return status == CMOE_OK ? CLI_OK : cli_fail_status(status, NULL);
}

/* ---- all of them ---- */

static int bench_one(void *user, const char *scheme)
{
    struct bench *bench = user;
    return bench_scheme(bench, bench->problem, scheme);
}

static int bench_schemes(struct bench *bench)
{
    const char *text = cli_args_value(bench->args, "scheme");
    bench->points = (int64_t)bench_count_schemes(text) * bench->tokens.n;
    return bench_each_scheme(text, bench_one, bench);
}

/* Lines go to FILE.partial, which becomes FILE when everything has been measured. */
static int bench_to_file(struct bench *bench, const char *file)
{
    if (strcmp(file, "-") == 0) {
        bench->out = stdout;
        return bench_schemes(bench);
    }
    char partial[4096];
    if (snprintf(partial, sizeof partial, "%s.partial", file) >= (int)sizeof partial)
        return cli_fail(CLI_USAGE, "bench: the name of the output file is too long");
    bench->out = fopen(partial, "w");
    if (bench->out == NULL)
        return cli_fail(CLI_NO_OUTPUT, "cannot create %s: %s", partial, strerror(errno));
    int code = bench_schemes(bench);
    const bool written = ferror(bench->out) == 0;
    if ((fclose(bench->out) != 0 || !written || (code == CLI_OK && rename(partial, file) != 0)) &&
        code == CLI_OK)
        code = cli_fail(CLI_IO, "cannot write %s: %s", file, strerror(errno));
    if (code != CLI_OK) unlink(partial);
    return code;
}

static int bench_all(struct bench *bench)
{
    const cmoe_status status = bench_roof_open(&bench->session, &bench->roof);
    if (status != CMOE_OK) return cli_fail_status(status, "bench: cannot measure ceilings");
    const char *file = cli_args_value(bench->args, "json");
    if (file == NULL) file = cli_args_value(bench->args, "csv");
    const int code = file != NULL ? bench_to_file(bench, file) : bench_schemes(bench);
    if (code != CLI_OK || !bench->outside) return code;
    return cli_fail(CLI_OUTSIDE, "bench: a result is outside its bound");
}

static int run(const struct cli_args *args)
{
    struct bench bench = {.args = args, .progress = {.what = "bench: point"}};
    int64_t seed = 1;
    bench.seconds = 0.5;
    int code = cli_problem_from_args(args, false, &bench.problem);
    if (code == CLI_OK && cli_args_given(args, "json") && cli_args_given(args, "csv"))
        code = cli_fail(CLI_USAGE, "bench: --json and --csv cannot both be given");
    if (code == CLI_OK) code = bench_parse_tokens(args, &bench.tokens);
    if (code == CLI_OK) code = cli_args_int(args, "seed", 0, INT64_MAX, &seed);
    if (code == CLI_OK) code = cli_args_double(args, "min-time", 0, &bench.seconds);
    if (code == CLI_OK) code = cli_args_double(args, "rest", 0, &bench.rest);
    if (code == CLI_OK && bench.rest > MOST_REST)
        code = cli_fail(CLI_USAGE, "bench: --rest takes at most %d seconds", MOST_REST);
    if (code == CLI_OK) code = bench_routing_parse(cli_args_value(args, "routing"), &bench.routing);
    if (code != CLI_OK) return code;
    bench.seed = (uint64_t)seed;
    code = cli_session_open(&bench.session);
    if (code == CLI_OK) code = cli_session_device(&bench.session, cli_args_value(args, "device"));
    if (code == CLI_OK) code = bench_all(&bench);
    bench_roof_close(&bench.roof);
    bench_routing_free(&bench.routing);
    return cli_session_close(&bench.session, code);
}

static const struct cli_option options[] = {
    {"model", "NAME", "a model's layer, such as qwen3-30b-a3b"},
    {"problem", "STRING", "a problem, or changes to the model's: 'local=8'"},
    {"scheme", "LIST", "schemes joined by '+', or 'all' (default: the problem's formats)"},
    {"tokens", "LIST", "token counts (default: 1,4,16,64,256)"},
    {"routing", "R", "uniform, zipf:S, hot, or ids from FILE.npy (default: uniform)"},
    {"device", "NAME", "ref, cpu or cuda:N"},
    {"pin", "GLOBS", "kernels to use where they can be used, comma separated"},
    {"vs", "GLOBS", "time a second plan with these kernels, in turn with the first"},
    {"stages", NULL, "time the steps too, each under the last stage that it does"},
    {"min-time", "S", "seconds to measure each point for (default: 0.5)"},
    {"rest", "S", "seconds of rest before each sample (default: 0)"},
    {"seed", "N", "seed of weights and inputs (default: 1)"},
    {"json", "FILE", "write JSON lines to FILE, '-' for standard output"},
    {"csv", "FILE", "write CSV to FILE, '-' for standard output"},
    {NULL, NULL, NULL},
};

const struct cli_command cli_bench = {
    .name = "bench",
    .summary = "Time a layer over token counts and schemes",
    .details =
        "Weights are random. Routings, and weights where they would stay in a cache, change from\n"
        "call to call; on a GPU a sample is one replay of a graph of them. `tflops` counts two\n"
        "operations a multiply-add of the slots computed, `gbps` the weights of the experts hit\n"
        "once, x and y. The floor is the time that these take at the ceilings, which are measured\n"
        "beside each point: reading memory, and the device's dot products of x's type. `error` is\n"
        "the relative L2 error of at most 16 tokens against the reference, `bound` its largest\n"
        "part of what is allowed; exit code 1: outside.\n",
    .options = options,
    .run = run,
};
