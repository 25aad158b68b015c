/* SPDX-License-Identifier: MIT
 * cmoe bench: time of a layer over token counts and schemes, on random weights.
 *
 * One call with the largest token count is made for each scheme; smaller counts run its first
 * tokens with the same plan, as an engine would. */
#include "cli/commands.h"
#include "cli/report.h"
#include "cli/trial.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TOKEN_COUNTS = 64, SAMPLE_TOKENS = 16 };

/* Multiply-adds that the reference may take: a few seconds. */
static const double reference_limit = 4e8;

struct bench {
    const struct cli_args *args;
    struct cli_session session;
    int64_t tokens[MAX_TOKEN_COUNTS];
    int n_tokens;
    int64_t most_tokens;
    double seconds;
    uint64_t seed;
    FILE *json;  /* NULL: a table on standard output */
    bool headed; /* its heading is printed */
    struct cli_progress progress;
};

struct point {
    const char *scheme; /* NULL: the problem's formats */
    int64_t tokens;
    struct cli_times times;
    double tflops, gbps;
    double error; /* rel. L2 against the reference; NAN: not computed */
    char path[CLI_PATH_TEXT];
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

/* ---- one scheme ---- */

/* Multiply-adds of one slot. */
static double slot_work(const cmoe_problem *p)
{
    return (double)cmoe_problem_rows1(p) * p->hidden + (double)p->hidden * p->inter;
}

/* Bytes of one expert's weights. */
static double expert_bytes(const cmoe_problem *p)
{
    size_t codes[2] = {0}, scales[2] = {0}, zeros[2] = {0};
    if (cmoe_format_bytes(p->w, cmoe_problem_rows1(p), p->hidden, &codes[0], &scales[0],
                          &zeros[0]) != CMOE_OK ||
        cmoe_format_bytes(p->w, p->hidden, p->inter, &codes[1], &scales[1], &zeros[1]) != CMOE_OK)
        return 0;
    return (double)(codes[0] + scales[0] + zeros[0] + codes[1] + scales[1] + zeros[1]);
}

static int check_memory(const struct bench *bench, const cmoe_problem *p)
{
    const double gib = 1024.0 * 1024 * 1024;
    const double needed = 2 * expert_bytes(p) * cmoe_problem_local_experts(p); /* and packed */
    if (bench->session.info.memory <= 0 || needed < 0.8 * (double)bench->session.info.memory)
        return CLI_OK;
    return cli_fail(CLI_NO_MEMORY,
                    "bench: the weights may take %.1f GiB and there are %.1f; take fewer experts, "
                    "such as --problem local=8",
                    needed / gib, (double)bench->session.info.memory / gib);
}

static cmoe_status count_load(struct bench *bench, const struct cli_job *job, cmoe_tensors tensors,
                              const cmoe_problem *p, struct point *point)
{
    const int32_t experts = cmoe_problem_local_experts(p);
    int64_t *load = calloc((size_t)experts, sizeof *load);
    if (load == NULL) return CMOE_ERR_NO_MEMORY;
    tensors.expert_load = load;
    const cmoe_status status = cli_job_run(&bench->session, job, &tensors);
    double slots = 0, hit = 0;
    for (int32_t e = 0; e < experts; e++) {
        slots += (double)load[e];
        hit += load[e] > 0;
    }
    free(load);
    const double bits = cmoe_dtype_bits((cmoe_dtype)p->in) + cmoe_dtype_bits((cmoe_dtype)p->y);
    const double bytes = hit * expert_bytes(p) + (double)tensors.n_tokens * p->hidden * bits / 8;
    point->tflops = 2e-6 * slots * slot_work(p) / point->times.median;
    point->gbps = 1e-3 * bytes / point->times.median;
    return status;
}

/* The error of the first tokens, as many as the reference computes in a few seconds. */
static cmoe_status measure_error(struct bench *bench, const struct cli_job *job,
                                 struct gen_call *call, int64_t tokens, double *error)
{
    const cmoe_problem *p = &call->problem;
    const double share = cmoe_problem_local_experts(p) / (double)(p->experts + p->shared);
    const double work = slot_work(p) * cmoe_problem_slots(p) * (share < 1 ? share : 1);
    int64_t n = tokens < SAMPLE_TOKENS ? tokens : SAMPLE_TOKENS;
    while (n > 1 && (double)n * work > reference_limit)
        n--;
    *error = NAN;
    if ((double)n * work > reference_limit || p->accumulate != 0) return CMOE_OK;
    cmoe_tensors tensors = call->tensors;
    tensors.n_tokens = (int32_t)n;
    const int64_t elements = n * call->y_block * p->hidden;
    struct cli_expected expected = {.y = NULL};
    cmoe_status status = cli_job_run(&bench->session, job, &tensors);
    if (status == CMOE_OK)
        status =
            cli_expect(bench->session.ctx, p, job->canonical, &tensors, elements, false, &expected);
    if (status != CMOE_OK) return status;
    cmoe_error result;
    cmoe_compare((cmoe_dtype)p->y, tensors.y, expected.y, expected.bound, elements, &result);
    /* Nothing was computed where no expert of these tokens is local. */
    if (result.zeros < 1) *error = result.rel_l2;
    cli_expected_free(&expected);
    return CMOE_OK;
}

static void print_point(struct bench *bench, const cmoe_problem *p, const struct point *point)
{
    char problem[CLI_PROBLEM_TEXT];
    cmoe_problem_print(p, problem, sizeof problem);
    if (bench->json == NULL) {
        if (!bench->headed)
            printf("%-18s %7s %12s %12s %12s %9s %9s %8s  plan\n", "scheme", "tokens", "us median",
                   "us min", "us p90", "tflops", "gbps", "error");
        bench->headed = true;
        printf("%-18s %7lld %12.1f %12.1f %12.1f %9.4f %9.2f ",
               point->scheme != NULL ? point->scheme : "-", (long long)point->tokens,
               point->times.median, point->times.min, point->times.p90, point->tflops, point->gbps);
        printf(isnan(point->error) ? "       -" : "%8.1e", point->error);
        printf("  %s\n", point->path);
        return;
    }
    struct cli_json json = {.out = bench->json};
    cli_json_open(&json, NULL, '{');
    cli_json_string(&json, "model", cli_args_value(bench->args, "model"));
    cli_json_string(&json, "problem", problem);
    cli_json_int(&json, "tokens", point->tokens);
    cli_json_string(&json, "scheme", point->scheme);
    cli_json_string(&json, "device", bench->session.label);
    cli_json_double(&json, "us_median", point->times.median);
    cli_json_double(&json, "us_min", point->times.min);
    cli_json_double(&json, "us_p90", point->times.p90);
    cli_json_double(&json, "tflops", point->tflops);
    cli_json_double(&json, "gbps", point->gbps);
    cli_json_double(&json, "error", point->error);
    cli_json_string(&json, "plan", point->path);
    cli_json_close(&json, '}');
    cli_json_end(&json);
}

static cmoe_status bench_call(struct bench *bench, const char *scheme, struct gen_call *call,
                              const struct cli_job *job)
{
    cmoe_status status = CMOE_OK;
    double error = NAN;
    for (int i = 0; i < bench->n_tokens && status == CMOE_OK; i++) {
        cli_progress_show(&bench->progress, i, bench->n_tokens);
        struct point point = {.scheme = scheme, .tokens = bench->tokens[i]};
        cmoe_tensors tensors = call->tensors;
        tensors.n_tokens = (int32_t)point.tokens;
        status = cli_job_time(&bench->session, job, &tensors, bench->seconds, &point.times);
        if (status == CMOE_OK) status = count_load(bench, job, tensors, &call->problem, &point);
        if (status == CMOE_OK) status = measure_error(bench, job, call, point.tokens, &error);
        if (status != CMOE_OK) break;
        point.error = error;
        cmoe_plan_path(job->plan, tensors.n_tokens, point.path, sizeof point.path);
        cli_progress_end(&bench->progress);
        print_point(bench, &call->problem, &point);
        fflush(bench->json != NULL ? bench->json : stdout);
    }
    cli_progress_end(&bench->progress);
    return status;
}

static int bench_scheme(struct bench *bench, cmoe_problem p, const char *scheme)
{
    if (scheme != NULL && cmoe_problem_scheme(&p, scheme) != CMOE_OK)
        return cli_fail(CLI_USAGE, "%s", cmoe_last_error());
    p.max_tokens = (int32_t)bench->most_tokens;
    int code = cli_problem_check(&p);
    if (code == CLI_OK &&
        (p.last != CMOE_STAGE_COMBINE || p.first > CMOE_STAGE_SORT || p.capacity > 0))
        code = cli_fail(
            CLI_USAGE, "bench: the problem must start at route, quant or sort, and end at combine");
    if (code == CLI_OK) code = check_memory(bench, &p);
    if (code != CLI_OK) return code;
    const struct gen_options options = {
        .kind = GEN_REAL, .seed = bench->seed, .clone_experts = true, .plain = true};
    struct gen_call call;
    cmoe_status status = gen_call_create(&p, &options, &call);
    if (status != CMOE_OK) return cli_fail_status(status, "bench: cannot make inputs");
    struct cli_job job;
    status =
        cli_job_open(&bench->session, &p, &call.weights, cli_args_value(bench->args, "pin"), &job);
    if (status == CMOE_OK) {
        status = bench_call(bench, scheme, &call, &job);
        cli_job_close(&job);
    }
    gen_call_free(&call);
    return status == CMOE_OK ? CLI_OK : cli_fail_status(status, NULL);
}

/* ---- all of them ---- */

static int bench_schemes(struct bench *bench, const cmoe_problem *p)
{
    const char *text = cli_args_value(bench->args, "scheme");
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

/* JSON lines go to FILE.partial, which becomes FILE when everything has been measured. */
static int bench_to_json(struct bench *bench, const cmoe_problem *p, const char *file)
{
    if (strcmp(file, "-") == 0) {
        bench->json = stdout;
        return bench_schemes(bench, p);
    }
    char partial[4096];
    if (snprintf(partial, sizeof partial, "%s.partial", file) >= (int)sizeof partial)
        return cli_fail(CLI_USAGE, "bench: the name of the --json file is too long");
    bench->json = fopen(partial, "w");
    if (bench->json == NULL)
        return cli_fail(CLI_NO_OUTPUT, "cannot create %s: %s", partial, strerror(errno));
    int code = bench_schemes(bench, p);
    const bool written = ferror(bench->json) == 0;
    if ((fclose(bench->json) != 0 || !written || (code == CLI_OK && rename(partial, file) != 0)) &&
        code == CLI_OK)
        code = cli_fail(CLI_IO, "cannot write %s: %s", file, strerror(errno));
    if (code != CLI_OK) unlink(partial);
    return code;
}

static int run(const struct cli_args *args)
{
    struct bench bench = {.args = args, .progress = {.what = "bench: token count"}};
    cmoe_problem p;
    int64_t seed = 1;
    bench.seconds = 0.5;
    int code = cli_problem_from_args(args, false, &p);
    if (code == CLI_OK) code = parse_tokens(&bench);
    if (code == CLI_OK) code = cli_args_int(args, "seed", 0, INT64_MAX, &seed);
    if (code == CLI_OK) code = cli_args_double(args, "min-time", 0, &bench.seconds);
    if (code != CLI_OK) return code;
    bench.seed = (uint64_t)seed;
    code = cli_session_open(&bench.session);
    if (code == CLI_OK)
        code = cli_session_host_device(&bench.session, cli_args_value(args, "device"));
    if (code == CLI_OK) {
        const char *file = cli_args_value(args, "json");
        code = file != NULL ? bench_to_json(&bench, &p, file) : bench_schemes(&bench, &p);
    }
    return cli_session_close(&bench.session, code);
}

static const struct cli_option options[] = {
    {"model", "NAME", "a model's layer, such as qwen3-30b-a3b"},
    {"problem", "STRING", "a problem, or changes to the model's: 'local=8'"},
    {"scheme", "LIST", "schemes joined by '+', or 'all' (default: the problem's formats)"},
    {"tokens", "LIST", "token counts (default: 1,4,16,64,256)"},
    {"device", "NAME", "ref or cpu"},
    {"pin", "GLOBS", "kernels to use where they can be used, comma separated"},
    {"min-time", "S", "seconds to measure each point for (default: 0.5)"},
    {"seed", "N", "seed of weights and inputs (default: 1)"},
    {"json", "FILE", "write JSON lines to FILE, '-' for standard output"},
    {NULL, NULL, NULL},
};

const struct cli_command cli_bench = {
    .name = "bench",
    .summary = "Time a layer over token counts and schemes",
    .details =
        "Weights are random, and every expert has its own copy of the same ones. `tflops` counts\n"
        "two operations a multiply-add of the slots computed, `gbps` the weights of the experts\n"
        "hit once, x and y. `error` is the relative L2 error of at most 16 tokens against the\n"
        "reference; null where that would take more than a few seconds or nothing was routed "
        "here.\n",
    .options = options,
    .run = run,
};
