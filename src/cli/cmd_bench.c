/* SPDX-License-Identifier: MIT
 * cmoe bench: time of a layer over token counts and schemes, on random weights.
 *
 * One call with the largest token count is made for each scheme; smaller counts run its first
 * tokens with the same plan, as an engine would. */
#include "cli/bench.h"
#include "cli/commands.h"
#include "cli/report.h"
#include "cli/trial.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TOKEN_COUNTS = 64, SAMPLE_TOKENS = 16, MOST_REST = 60 };

/* Multiply-adds that the reference may take: about a second. */
static const double reference_limit = 4e8;

struct bench {
    const struct cli_args *args;
    struct cli_session session;
    struct bench_routing routing;
    struct bench_roof roof;
    int64_t tokens[MAX_TOKEN_COUNTS];
    int n_tokens;
    int64_t most_tokens;
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

/* ---- the command line ---- */

static int parse_tokens(struct bench *bench)
{
    const char *text = cli_args_value(bench->args, "tokens");
    char copy[512];
    snprintf(copy, sizeof copy, "%s", text != NULL ? text : "1,4,16,64,256");
    char *rest = copy;
    for (char *word = strsep(&rest, ","); word != NULL; word = strsep(&rest, ",")) {
        int64_t n = 0;
        if (!cli_parse_int(word, &n) || n < 1 || n > INT32_MAX)
            return cli_fail(CLI_USAGE, "bench: --tokens has '%.40s', which is no token count",
                            word);
        if (bench->n_tokens == MAX_TOKEN_COUNTS)
            return cli_fail(CLI_USAGE, "bench: --tokens has more than %d counts", MAX_TOKEN_COUNTS);
        bench->tokens[bench->n_tokens++] = n;
        if (n > bench->most_tokens) bench->most_tokens = n;
    }
    return CLI_OK;
}

/* ---- one cell ---- */

static int64_t clamp(double v, int64_t low, int64_t high)
{
    return v < (double)low ? low : v > (double)high ? high : (int64_t)v;
}

static double cache_bytes(const struct bench *bench)
{
    const cmoe_device_info *info = &bench->session.info;
    return (double)(info->l3 > info->l2 ? info->l3 : info->l2);
}

/* Routings that a cell rotates through: enough that a weight is out of the caches when its turn
 * comes again. */
static int count_variants(const struct bench *bench, const cmoe_problem *p, int64_t tokens)
{
    const double all = bench_expert_bytes(p) * cmoe_problem_local_experts(p);
    const double slots = bench_expert_bytes(p) * (double)tokens * cmoe_problem_slots(p);
    const int least = tokens <= 128 ? 8 : tokens <= 512 ? 4 : 2;
    const double hit = slots < all ? slots : all;
    return (int)clamp(ceil(4 * cache_bytes(bench) / (hit + 1)), least,
                      tokens <= 512 ? BENCH_VARIANTS : least);
}

/* Copies of the weights, for layers that fit in the caches as a whole. */
static int count_sets(const struct bench *bench, const cmoe_problem *p)
{
    const double all = bench_expert_bytes(p) * cmoe_problem_local_experts(p);
    return (int)clamp(ceil(4 * cache_bytes(bench) / (all + 1)), 1, BENCH_SETS);
}

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
static cmoe_status expect_first(struct bench *bench, struct scheme *scheme)
{
    const struct bench_inputs *in = &scheme->inputs;
    const int64_t n = sample_tokens(&in->call.problem, in->tensors[0].n_tokens);
    cmoe_tensors host = in->call.tensors;
    host.n_tokens = (int32_t)n;
    bench_inputs_host_route(in, &host);
    return cli_expect(bench->session.ctx, &in->call.problem, in->reference, &host,
                      n * in->call.y_block * in->call.problem.hidden, false, &scheme->expected);
}

/* The first tokens of the first routing against the reference, at the cell's token count. */
static cmoe_status measure_error(struct bench *bench, struct scheme *scheme, int lane,
                                 cmoe_error *out)
{
    const struct bench_inputs *in = &scheme->inputs;
    const cmoe_problem *p = &in->call.problem;
    cmoe_device *dev = bench->session.dev;
    const int64_t elements =
        sample_tokens(p, in->tensors[0].n_tokens) * in->call.y_block * p->hidden;
    const size_t bytes = cmoe_dtype_bytes((cmoe_dtype)p->y, elements);
    if (elements == 0) return CMOE_OK;
    cmoe_status status = CMOE_OK;
    if (scheme->expected.n < elements) {
        cli_expected_free(&scheme->expected);
        status = expect_first(bench, scheme);
    }
    unsigned char *y = malloc(bytes + 1);
    if (status == CMOE_OK && y == NULL) status = CMOE_ERR_NO_MEMORY;
    if (status == CMOE_OK) status = bench_job_run_tensors(&scheme->job[lane], in, &in->tensors[0]);
    if (status == CMOE_OK)
        status = cmoe_device_copy(dev, y, in->tensors[0].y, bytes, CMOE_COPY_FROM_DEVICE, NULL);
    if (status == CMOE_OK) status = cmoe_device_sync(dev, NULL);
    if (status == CMOE_OK)
        cmoe_compare((cmoe_dtype)p->y, y, scheme->expected.y, scheme->expected.bound, elements,
                     out);
    /* Nothing was computed where no expert of these tokens is local. */
    if (status == CMOE_OK && out->zeros >= 1 && out->outside == 0) out->n = 0;
    free(y);
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
    cmoe_status status = bench_inputs_route(in, &bench->routing, bench->seed, tokens,
                                            count_variants(bench, p, tokens));
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
        if (status == CMOE_OK) status = measure_error(bench, scheme, i, &cell.lane[i].error);
        bench->outside = bench->outside || cell.lane[i].error.outside > 0;
    }
    cli_progress_end(&bench->progress);
    if (status == CMOE_OK) print_cell(bench, &cell);
    return status;
}

/* ---- one scheme ---- */

static int check_memory(const struct bench *bench, const cmoe_problem *p)
{
    const double gib = 1024.0 * 1024 * 1024;
    const double plans = cli_args_given(bench->args, "vs") ? 2 : 1;
    const double needed =
        plans * count_sets(bench, p) * bench_expert_bytes(p) * cmoe_problem_local_experts(p);
    if (bench->session.info.memory <= 0 || needed < 0.8 * (double)bench->session.info.memory)
        return CLI_OK;
    return cli_fail(CLI_NO_MEMORY,
                    "bench: the weights may take %.1f GiB and there are %.1f; take fewer experts, "
                    "such as --problem local=8",
                    needed / gib, (double)bench->session.info.memory / gib);
}

static int check_problem(const struct bench *bench, const cmoe_problem *p)
{
    const int code = cli_problem_check(p);
    if (code != CLI_OK) return code;
    if (p->last != CMOE_STAGE_COMBINE || p->first > CMOE_STAGE_SORT || p->capacity > 0)
        return cli_fail(
            CLI_USAGE, "bench: the problem must start at route, quant or sort, and end at combine");
    if (cli_args_given(bench->args, "routing") && !bench_routable(p))
        return cli_fail(CLI_USAGE, "bench: --routing needs a problem that takes ids or logits, "
                                   "such as --problem first=quant");
    return check_memory(bench, p);
}

static cmoe_status bench_opened(struct bench *bench, struct scheme *scheme)
{
    const cmoe_problem *p = &scheme->inputs.call.problem;
    const char *pins[BENCH_LANES] = {cli_args_value(bench->args, "pin"),
                                     cli_args_value(bench->args, "vs")};
    const int lanes = pins[1] != NULL ? 2 : 1;
    cmoe_status status = CMOE_OK;
    for (int i = 0; i < lanes && status == CMOE_OK; i++) {
        status = bench_job_open(&scheme->inputs, pins[i], count_sets(bench, p), &scheme->job[i]);
        if (status == CMOE_OK) scheme->jobs++;
    }
    for (int i = 0; i < bench->n_tokens && status == CMOE_OK; i++) {
        cli_progress_show(&bench->progress, bench->done++, bench->points);
        status = bench_cell(bench, scheme, bench->tokens[i]);
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
    p.max_tokens = (int32_t)bench->most_tokens;
    const int code = check_problem(bench, &p);
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

static int count_schemes(const char *text)
{
    int n = 0;
    if (text != NULL && strcmp(text, "all") == 0)
        while (cmoe_scheme_name(n) != NULL)
            n++;
    else
        for (n = 1; text != NULL && (text = strchr(text, '+')) != NULL; text++)
            n++;
    return n;
}

static int bench_schemes(struct bench *bench, const cmoe_problem *p)
{
    const char *text = cli_args_value(bench->args, "scheme");
    bench->points = (int64_t)count_schemes(text) * bench->n_tokens;
    if (text == NULL) return bench_scheme(bench, *p, NULL);
    int code = CLI_OK;
    if (strcmp(text, "all") == 0) {
        const char *name = NULL;
        for (int i = 0; code == CLI_OK && (name = cmoe_scheme_name(i)) != NULL; i++)
            code = bench_scheme(bench, *p, name);
        return code;
    }
    char copy[512];
    snprintf(copy, sizeof copy, "%s", text);
    char *rest = copy;
    for (char *name = strsep(&rest, "+"); code == CLI_OK && name != NULL; name = strsep(&rest, "+"))
        code = bench_scheme(bench, *p, name);
    return code;
}

/* Lines go to FILE.partial, which becomes FILE when everything has been measured. */
static int bench_to_file(struct bench *bench, const cmoe_problem *p, const char *file)
{
    if (strcmp(file, "-") == 0) {
        bench->out = stdout;
        return bench_schemes(bench, p);
    }
    char partial[4096];
    if (snprintf(partial, sizeof partial, "%s.partial", file) >= (int)sizeof partial)
        return cli_fail(CLI_USAGE, "bench: the name of the output file is too long");
    bench->out = fopen(partial, "w");
    if (bench->out == NULL)
        return cli_fail(CLI_NO_OUTPUT, "cannot create %s: %s", partial, strerror(errno));
    int code = bench_schemes(bench, p);
    const bool written = ferror(bench->out) == 0;
    if ((fclose(bench->out) != 0 || !written || (code == CLI_OK && rename(partial, file) != 0)) &&
        code == CLI_OK)
        code = cli_fail(CLI_IO, "cannot write %s: %s", file, strerror(errno));
    if (code != CLI_OK) unlink(partial);
    return code;
}

static int bench_all(struct bench *bench, const cmoe_problem *p)
{
    const cmoe_status status = bench_roof_open(&bench->session, &bench->roof);
    if (status != CMOE_OK) return cli_fail_status(status, "bench: cannot measure ceilings");
    const char *file = cli_args_value(bench->args, "json");
    if (file == NULL) file = cli_args_value(bench->args, "csv");
    const int code = file != NULL ? bench_to_file(bench, p, file) : bench_schemes(bench, p);
    if (code != CLI_OK || !bench->outside) return code;
    return cli_fail(CLI_OUTSIDE, "bench: a result is outside its bound");
}

static int run(const struct cli_args *args)
{
    struct bench bench = {.args = args, .progress = {.what = "bench: point"}};
    cmoe_problem p;
    int64_t seed = 1;
    bench.seconds = 0.5;
    int code = cli_problem_from_args(args, false, &p);
    if (code == CLI_OK && cli_args_given(args, "json") && cli_args_given(args, "csv"))
        code = cli_fail(CLI_USAGE, "bench: --json and --csv cannot both be given");
    if (code == CLI_OK) code = parse_tokens(&bench);
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
    if (code == CLI_OK) code = bench_all(&bench, &p);
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
