/* SPDX-License-Identifier: MIT
 * cmoe tune: time the plans that may be the fastest, and write lines of a tuned table where one is faster than
 * what is planned.
 *
 * Every kernel is pinned once, which gives the cheapest chain with it. Those within a factor of the least estimate
 * are timed in turn with the planned one. Then the lines are tried: a plan with them may combine rows of several
 * chains, which is timed as well, until the plan takes what was timed. */
#include "cli/bench.h"
#include "cli/commands.h"
#include "cli/report.h"
#include "cli/tune.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Of the planned chain's time, what is worth a line; plans with lines that are looked at. */
static const double worth = 0.98;
enum { MOST_ROUNDS = 16 };

struct tune {
    const struct cli_args *args;
    cmoe_problem problem;
    struct cli_session session;
    struct bench_routing routing;
    struct bench_tokens tokens;
    double seconds, within, budget;
    uint64_t seed;
    FILE *trial, *out; /* all lines so far; --table, or NULL */
    char table[32];    /* the trial's name while it is open */
    struct cli_progress progress;
    int64_t done, points;
    int timed, compared, faster, lines;
    double gain; /* of the points compared, sum of logarithms */
    bool headed, outside;
};

/* One scheme and token count. */
struct cell {
    struct tune *tune;
    const char *scheme;
    struct bench_inputs *inputs;
    struct bench_job planned;
    struct cli_expected expected;
    struct tune_point *point;
};

/* ---- candidates ---- */

static void add_plan(struct cell *cell, const char *pin)
{
    const cmoe_plan_options options = {.struct_size = sizeof options, .pin = pin};
    cmoe_plan *plan = NULL;
    char path[CLI_PATH_TEXT];
    const int tokens = (int)cell->point->tokens;
    if (cmoe_plan_create(cell->tune->session.dev, &cell->inputs->call.problem, NULL, &options,
                         &plan) != CMOE_OK)
        return;
    cmoe_plan_path(plan, tokens, path, sizeof path);
    (void)tune_add(cell->point, path, cmoe_plan_estimate(plan, tokens));
    cmoe_plan_destroy(plan);
}

/* What is planned, then the cheapest chain with each kernel. */
static void add_candidates(struct cell *cell)
{
    cmoe_kernel_info row;
    add_plan(cell, NULL);
    for (int i = 0; cmoe_kernel_describe(i, &row); i++)
        if (cmoe_kernel_supports(i, cell->tune->session.dev, &cell->inputs->call.problem, NULL, 0))
            add_plan(cell, row.name);
    tune_sort(cell->point);
}

/* ---- times ---- */

/* Whether a plan's result is right; a wrong one is named. */
static cmoe_status check(struct cell *cell, const struct bench_job *job,
                         const struct tune_chain *chain, bool *right)
{
    cmoe_error error = {.n = 0};
    const cmoe_status status = bench_error(cell->inputs, job, &cell->expected, &error);
    *right = status == CMOE_OK && error.outside == 0;
    if (status != CMOE_OK || *right) return status;
    cell->tune->outside = true;
    cli_fail(CLI_OUTSIDE, "tune: left out, as its results are outside the bound: %s", chain->path);
    return CMOE_OK;
}

static cmoe_status time_planned(struct cell *cell)
{
    struct tune_chain *const first = &cell->point->chain[0];
    struct bench_lane lane = {.job = &cell->planned};
    bool right = false;
    cmoe_status status = check(cell, &cell->planned, first, &right);
    if (!right) return status;
    status = bench_time(cell->inputs, &lane, 1, cell->tune->seconds, 0);
    if (status == CMOE_OK) status = bench_stages(cell->inputs, &lane);
    first->us = lane.times.median;
    memcpy(first->stage_us, lane.stage_us, sizeof first->stage_us);
    cell->tune->timed++;
    return status;
}

/* In turn with the planned one. A wrong result has no time. */
static cmoe_status time_job(struct cell *cell, const struct bench_job *job,
                            struct tune_chain *chain, double seconds)
{
    struct bench_lane lane[BENCH_LANES] = {{.job = &cell->planned}, {.job = job}};
    bool right = false;
    cmoe_status status = check(cell, job, chain, &right);
    if (!right) return status;
    status = bench_time(cell->inputs, lane, BENCH_LANES, seconds, 0);
    if (status == CMOE_OK) status = bench_stages(cell->inputs, &lane[1]);
    if (status != CMOE_OK) return status;
    chain->us = cell->point->chain[0].us * lane[1].times.median / lane[0].times.median;
    memcpy(chain->stage_us, lane[1].stage_us, sizeof chain->stage_us);
    cell->tune->timed++;
    return CMOE_OK;
}

/* A chain that a plan cannot be pinned to, as its weights are in other formats for other counts, stays without a time. */
static cmoe_status time_chain(struct cell *cell, struct tune_chain *chain, int times)
{
    struct bench_job job;
    char pin[CLI_PATH_TEXT], path[CLI_PATH_TEXT];
    tune_pin(chain->path, pin, sizeof pin);
    if (bench_job_open(cell->inputs, pin, cell->planned.sets, &job) != CMOE_OK) return CMOE_OK;
    cmoe_plan_path(job.plan, (int)cell->point->tokens, path, sizeof path);
    cmoe_status status = CMOE_OK;
    if (strcmp(path, chain->path) == 0)
        status = time_job(cell, &job, chain, times * cell->tune->seconds);
    bench_job_close(&job);
    return status;
}

/* The likeliest first; also those that are expected to be faster than the planned one turned out to be. */
static cmoe_status time_candidates(struct cell *cell)
{
    struct tune *const tune = cell->tune;
    struct tune_point *const point = cell->point;
    const double start = cli_now();
    cmoe_status status = time_planned(cell);
    double least = INFINITY;
    for (int i = 0; i < point->n; i++)
        least = fmin(least, point->chain[i].estimate);
    const double most = fmax(tune->within * least, point->chain[0].us);
    for (int i = 1; i < point->n && status == CMOE_OK && point->chain[0].us > 0; i++) {
        cli_progress_show(&tune->progress, tune->done, tune->points);
        if (point->chain[i].estimate > most || cli_now() - start > tune->budget) break;
        status = time_chain(cell, &point->chain[i], 1);
    }
    return status;
}

/* ---- lines ---- */

static int print_lines(const struct cell *cell, FILE *out)
{
    char device[64];
    cmoe_plan_device(cell->planned.plan, device, sizeof device);
    return tune_print(out, device, &cell->inputs->call.problem, cell->point);
}

/* The chain of a plan with all lines so far and this point's. */
static cmoe_status plan_with_lines(const struct cell *cell, char *path, double *estimate)
{
    const struct tune *const tune = cell->tune;
    cmoe_context *ctx = NULL;
    cmoe_device *dev = NULL;
    cmoe_plan *plan = NULL;
    const long before = ftell(tune->trial);
    print_lines(cell, tune->trial);
    if (before < 0 || fflush(tune->trial) != 0) return CMOE_ERR_IO;
    const cmoe_context_options options = {.struct_size = sizeof options, .tuned = tune->table};
    cmoe_status status = cmoe_context_create(&options, &ctx);
    if (status == CMOE_OK)
        status = cmoe_device_open(ctx, cli_args_value(tune->args, "device"), &dev);
    if (status == CMOE_OK)
        status = cmoe_plan_create(dev, &cell->inputs->call.problem, NULL, NULL, &plan);
    if (status == CMOE_OK) {
        cmoe_plan_path(plan, (int)cell->point->tokens, path, CLI_PATH_TEXT);
        *estimate = cmoe_plan_estimate(plan, (int)cell->point->tokens);
    }
    cmoe_plan_destroy(plan);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
    if (status == CMOE_OK &&
        (ftruncate(fileno(tune->trial), before) != 0 || fseek(tune->trial, before, SEEK_SET) != 0))
        status = CMOE_ERR_IO;
    return status;
}

/* The chain that a plan with the lines takes: timed, and once more for longer, since the fastest of many is the one that
 * was disturbed least. NULL: no such chain. */
static cmoe_status settle(struct cell *cell, const struct tune_chain **taken)
{
    *taken = NULL;
    for (int round = 0; round < MOST_ROUNDS; round++) {
        char path[CLI_PATH_TEXT];
        double estimate = 0;
        cmoe_status status = plan_with_lines(cell, path, &estimate);
        if (status != CMOE_OK) return status;
        struct tune_chain *const chain = tune_add(cell->point, path, estimate);
        if (chain == NULL) return CMOE_OK;
        if (chain->confirmed || chain == &cell->point->chain[0]) {
            *taken = chain;
            return CMOE_OK;
        }
        chain->confirmed = chain->us > 0;
        status = time_chain(cell, chain, chain->confirmed ? 4 : 1);
        if (status != CMOE_OK || chain->us <= 0) return status;
    }
    return CMOE_OK;
}

static cmoe_status write_lines(const struct cell *cell)
{
    struct tune *const tune = cell->tune;
    tune->lines += print_lines(cell, tune->trial);
    if (tune->out != NULL) print_lines(cell, tune->out);
    return tune->out == NULL || fflush(tune->out) == 0 ? CMOE_OK : CMOE_ERR_IO;
}

/* ---- one point, one scheme, all ---- */

static void print_point(const struct cell *cell, const struct tune_chain *taken)
{
    const struct tune_chain *const first = &cell->point->chain[0];
    if (!cell->tune->headed)
        printf("%-18s %7s %12s %12s %6s  %s\n", "scheme", "tokens", "us planned", "us fastest",
               "ratio", "fastest plan");
    cell->tune->headed = true;
    printf("%-18s %7d %12.1f %12.1f %6.3f  %s\n", cell->scheme != NULL ? cell->scheme : "-",
           (int)cell->point->tokens, first->us, taken->us, taken->us / first->us,
           taken == first ? "as planned" : taken->path);
    fflush(stdout);
}

/* Lines, where the plan with them is worth it. */
static cmoe_status take_faster(struct cell *cell, const struct tune_chain **taken)
{
    const struct tune_chain *const first = &cell->point->chain[0], *settled = NULL;
    *taken = first;
    if (tune_best(cell->point)->us >= worth * first->us) return CMOE_OK;
    const cmoe_status status = settle(cell, &settled);
    if (status != CMOE_OK || settled == NULL || settled->us >= worth * first->us) return status;
    *taken = settled;
    return write_lines(cell);
}

static cmoe_status tune_cell(struct cell *cell)
{
    struct tune *const tune = cell->tune;
    struct bench_inputs *const in = cell->inputs;
    const struct tune_chain *const first = &cell->point->chain[0], *taken = first;
    cmoe_status status = bench_inputs_route(in, &tune->routing, tune->seed, cell->point->tokens,
                                            bench_variants(in, cell->point->tokens));
    if (status == CMOE_OK) add_candidates(cell);
    if (status == CMOE_OK) status = time_candidates(cell);
    const bool timed = status == CMOE_OK && first->us > 0;
    if (timed) status = take_faster(cell, &taken);
    cli_progress_end(&tune->progress);
    tune->done++;
    if (status != CMOE_OK || !timed) return status;
    tune->compared++;
    tune->faster += taken != first;
    tune->gain += log(taken->us / first->us);
    print_point(cell, taken);
    return CMOE_OK;
}

static cmoe_status tune_opened(struct tune *tune, const char *scheme, struct bench_inputs *inputs)
{
    struct cell cell = {.tune = tune, .scheme = scheme, .inputs = inputs};
    const int sets = bench_sets(&tune->session, &inputs->call.problem);
    cell.point = malloc(sizeof *cell.point);
    cmoe_status status = cell.point != NULL ? CMOE_OK : CMOE_ERR_NO_MEMORY;
    if (status == CMOE_OK) status = bench_job_open(inputs, NULL, sets, &cell.planned);
    for (int i = 0; i < tune->tokens.n && status == CMOE_OK; i++) {
        cell.point->tokens = tune->tokens.at[i];
        cell.point->n = 0;
        status = tune_cell(&cell);
    }
    bench_job_close(&cell.planned);
    cli_expected_free(&cell.expected);
    free(cell.point);
    return status;
}

static int tune_scheme(void *user, const char *scheme)
{
    struct tune *const tune = user;
    cmoe_problem p = tune->problem;
    struct bench_inputs inputs;
    if (scheme != NULL && cmoe_problem_scheme(&p, scheme) != CMOE_OK)
        return cli_fail(CLI_USAGE, "%s", cmoe_last_error());
    p.max_tokens = (int32_t)tune->tokens.most;
    const int code = bench_check(&tune->session, tune->args, &p, 2);
    if (code != CLI_OK) return code;
    cmoe_status status = bench_inputs_open(&tune->session, &p, tune->seed, &inputs);
    if (status != CMOE_OK) return cli_fail_status(status, "tune: cannot make inputs");
    status = tune_opened(tune, scheme, &inputs);
    bench_inputs_close(&inputs);
    if (status == CMOE_ERR_IO)
        return cli_fail(CLI_IO, "tune: cannot write lines: %s", strerror(errno));
    return status == CMOE_OK ? CLI_OK : cli_fail_status(status, NULL);
}

static void print_end(const struct tune *tune)
{
    const char *const file = cli_args_value(tune->args, "table");
    printf("\n%d plans timed; %d of %d points faster by more than 2 %%, geometric mean of ratios "
           "%.3f\n",
           tune->timed, tune->faster, tune->compared,
           tune->compared > 0 ? exp(tune->gain / tune->compared) : 1);
    if (file != NULL) printf("%d lines added to %s\n", tune->lines, file);
}

/* A copy of the table that plans are made with now, for lines to be tried in; it has no name that could stay behind. */
static int make_trial(struct tune *tune, const char *now)
{
    char buf[4096];
    FILE *const in = now != NULL && now[0] != '\0' ? fopen(now, "r") : NULL;
    tune->trial = tmpfile();
    bool written = tune->trial != NULL;
    for (size_t n; written && in != NULL && (n = fread(buf, 1, sizeof buf, in)) > 0;)
        written = fwrite(buf, 1, n, tune->trial) == n;
    if (in != NULL) fclose(in);
    if (!written) return cli_fail(CLI_NO_OUTPUT, "tune: no temporary file: %s", strerror(errno));
    snprintf(tune->table, sizeof tune->table, "/dev/fd/%d", fileno(tune->trial));
    return CLI_OK;
}

static int tune_all(struct tune *tune)
{
    const char *const file = cli_args_value(tune->args, "table");
    const char *const scheme = cli_args_value(tune->args, "scheme");
    const bool fresh = file != NULL && access(file, F_OK) != 0;
    int code = make_trial(tune, file != NULL && !fresh ? file : getenv("CMOE_TUNED"));
    if (code == CLI_OK && file != NULL && (tune->out = fopen(file, "a")) == NULL)
        code = cli_fail(CLI_NO_OUTPUT, "cannot open %s: %s", file, strerror(errno));
    tune->points = (int64_t)bench_count_schemes(scheme) * tune->tokens.n;
    if (code == CLI_OK) code = bench_each_scheme(scheme, tune_scheme, tune);
    if (tune->out != NULL && fclose(tune->out) != 0 && code == CLI_OK)
        code = cli_fail(CLI_IO, "cannot write %s: %s", file, strerror(errno));
    if (tune->out != NULL && fresh && tune->lines == 0) unlink(file);
    if (tune->trial != NULL) fclose(tune->trial);
    if (code == CLI_OK) print_end(tune);
    return code == CLI_OK && tune->outside ? CLI_OUTSIDE : code;
}

static int run(const struct cli_args *args)
{
    struct tune tune = {.args = args,
                        .seconds = 0.1,
                        .within = 1.3,
                        .budget = 60,
                        .progress = {.what = "tune: point"}};
    const char *const file = cli_args_value(args, "table");
    int64_t seed = 1;
    int code = cli_problem_from_args(args, false, &tune.problem);
    if (code == CLI_OK) code = bench_parse_tokens(args, &tune.tokens);
    if (code == CLI_OK) code = cli_args_int(args, "seed", 0, INT64_MAX, &seed);
    if (code == CLI_OK) code = cli_args_double(args, "min-time", 0, &tune.seconds);
    if (code == CLI_OK) code = cli_args_double(args, "within", 0, &tune.within);
    if (code == CLI_OK) code = cli_args_double(args, "budget", 0, &tune.budget);
    if (code == CLI_OK) code = bench_routing_parse(cli_args_value(args, "routing"), &tune.routing);
    if (code != CLI_OK) return code;
    tune.seed = (uint64_t)seed;
    code = cli_session_open_tuned(&tune.session,
                                  file != NULL && access(file, F_OK) == 0 ? file : NULL);
    if (code == CLI_OK) code = cli_session_device(&tune.session, cli_args_value(args, "device"));
    if (code == CLI_OK) code = tune_all(&tune);
    bench_routing_free(&tune.routing);
    return cli_session_close(&tune.session, code);
}

static const struct cli_option options[] = {
    {"model", "NAME", "a model's layer, such as qwen3-30b-a3b"},
    {"problem", "STRING", "a problem, or changes to the model's: 'local=8'"},
    {"scheme", "LIST", "schemes joined by '+', or 'all' (default: the problem's formats)"},
    {"tokens", "LIST", "token counts (default: 1,4,16,64,256)"},
    {"routing", "R", "uniform, zipf:S, hot, or ids from FILE.npy (default: uniform)"},
    {"device", "NAME", "ref, cpu or cuda:N"},
    {"table", "FILE", "add the lines to FILE, for CMOE_TUNED"},
    {"within", "F", "time plans estimated at up to F times the least (default: 1.3)"},
    {"budget", "S", "seconds for a point, the likeliest plans first (default: 60)"},
    {"min-time", "S", "seconds to measure each plan for (default: 0.1)"},
    {"seed", "N", "seed of weights and inputs (default: 1)"},
    {NULL, NULL, NULL},
};

const struct cli_command cli_tune = {
    .name = "tune",
    .summary = "Find faster plans and write them to a tuned table",
    .details =
        "Pins each kernel once, times the plans that this gives in turn with the planned one, and\n"
        "writes lines of measured times where another is faster by more than 2 %. Results are\n"
        "compared with the reference first; a wrong one has no time, and exit code 1. With\n"
        "--table, plans are those with FILE to begin with, where it exists.\n",
    .options = options,
    .run = run,
};
