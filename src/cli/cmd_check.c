/* SPDX-License-Identifier: MIT
 * cmoe check: every kernel row against the reference.
 *
 * A row is pinned in a plan of the whole problem, so that what is compared is always y. Each
 * problem is run on exact inputs, where y must be equal to the bit, and on real ones, where it must
 * lie within the bound of cmoe_reference. */
#include "cli/commands.h"
#include "cli/report.h"
#include "cli/trial.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

static const char *const problems[] = {
#define PROBLEM(text) text,
#include "cli/problems.def"
#undef PROBLEM
};
enum { PROBLEMS = sizeof problems / sizeof problems[0], MAX_DEVICES = 2 };

struct tally {
    int64_t cases[2]; /* by gen_kind */
    int64_t failures;
    int64_t weak; /* more than half of what is expected is 0 */
    double worst; /* ratio to the bound on real inputs */
};

struct check {
    const struct cli_args *args;
    const char *globs; /* comma separated, NULL: all */
    const char *devices[MAX_DEVICES];
    int n_devices;
    uint64_t seed;
    bool json;
    struct cli_session sessions[MAX_DEVICES];
    struct tally *tallies; /* by kernel row */
    int n_rows;
    int64_t problems, not_exact;
    struct cli_progress progress;
};

static bool matches(const char *globs, const char *name)
{
    if (globs == NULL) return true;
    char copy[512];
    snprintf(copy, sizeof copy, "%s", globs);
    char *rest = copy;
    for (char *glob = strsep(&rest, ","); glob != NULL; glob = strsep(&rest, ","))
        if (fnmatch(glob, name, 0) == 0) return true;
    return false;
}

static void report_failure(const struct check *check, const cmoe_kernel_info *row,
                           const struct gen_call *call, enum gen_kind kind,
                           const struct cli_trial *trial)
{
    char problem[CMOE_PROBLEM_TEXT];
    cmoe_problem_print(&call->problem, problem, sizeof problem);
    fflush(stdout);
    fprintf(stderr, "FAIL %s, %s inputs: %s\n", row->name, kind == GEN_EXACT ? "exact" : "real",
            trial->what);
    fprintf(stderr, "  cmoe check --kernels '%s' --problem '%s' --seed %llu\n", row->name, problem,
            (unsigned long long)check->seed);
}

static void check_row(struct check *check, int device, int i, struct gen_call *call,
                      enum gen_kind kind, struct cli_expected *expected)
{
    cmoe_kernel_info row;
    cmoe_kernel_describe(i, &row);
    struct cli_session *session = &check->sessions[device];
    if (!matches(check->globs, row.name)) return;
    /* Rows of ref are tried on ref, not again where they stand in for others. */
    if (check->n_devices > 1 && strcmp(row.backend, check->devices[device]) != 0) return;
    if (!cmoe_kernel_supports(i, session->dev, &call->problem, NULL, 0)) return;
    struct cli_trial trial;
    const enum cli_trial_result result =
        cli_try(session, call, kind == GEN_EXACT, row.name, expected, &trial);
    if (result == CLI_TRIAL_SKIPPED) return;
    struct tally *tally = &check->tallies[i];
    tally->cases[kind]++;
    if (trial.error.n > 0 && trial.error.zeros > 0.5) tally->weak++;
    if (kind == GEN_REAL && trial.error.max_ratio > tally->worst)
        tally->worst = trial.error.max_ratio;
    if (result == CLI_TRIAL_PASSED) return;
    tally->failures++;
    cli_progress_end(&check->progress);
    report_failure(check, &row, call, kind, &trial);
}

static int check_kind(struct check *check, const cmoe_problem *p, enum gen_kind kind)
{
    const struct gen_options options = gen_check_options(p, kind, check->seed);
    struct gen_call call;
    const cmoe_status status = gen_call_create(p, &options, &call);
    if (status != CMOE_OK) return cli_fail_status(status, "check: cannot make inputs");
    struct cli_expected expected = {.y = NULL};
    for (int d = 0; d < check->n_devices; d++)
        for (int i = 0; i < check->n_rows; i++)
            check_row(check, d, i, &call, kind, &expected);
    cli_expected_free(&expected);
    gen_call_free(&call);
    return CLI_OK;
}

static int check_problem(struct check *check, const cmoe_problem *p)
{
    const char *why = NULL;
    check->problems++;
    if (gen_exact_possible(p, &why)) {
        const int code = check_kind(check, p, GEN_EXACT);
        if (code != CLI_OK) return code;
    } else {
        check->not_exact++;
    }
    return check_kind(check, p, GEN_REAL);
}

static int check_text(struct check *check, const char *text)
{
    cmoe_problem p;
    cmoe_problem_init(&p);
    const cmoe_status status = cmoe_problem_parse(&p, text);
    if (status != CMOE_OK) return cli_fail_status(status, NULL);
    const int code = cli_problem_check(&p);
    if (code != CLI_OK) return code;
    if (p.first > CMOE_STAGE_GEMM1 || (p.last != CMOE_STAGE_COMBINE && p.last != CMOE_STAGE_SORT))
        return cli_fail(CLI_USAGE,
                        "check: the problem must start at gemm1 or before, and end at sort or "
                        "combine");
    return check_problem(check, &p);
}

static int check_all(struct check *check, int64_t count)
{
    const char *text = cli_args_value(check->args, "problem");
    int code = CLI_OK;
    if (text != NULL) {
        char copy[8 * CMOE_PROBLEM_TEXT];
        if (snprintf(copy, sizeof copy, "%s", text) >= (int)sizeof copy)
            return cli_fail(CLI_USAGE, "check: --problem is too long");
        char *rest = copy;
        for (char *one = strsep(&rest, ";"); one != NULL && code == CLI_OK;
             one = strsep(&rest, ";"))
            code = check_text(check, one);
        return code;
    }
    const int64_t total = count > 0 ? count : PROBLEMS;
    for (int64_t n = 0; n < total && code == CLI_OK; n++) {
        cli_progress_show(&check->progress, n, total);
        if (count == 0) {
            code = check_text(check, problems[n]);
        } else {
            cmoe_problem p;
            gen_problem(check->seed + (uint64_t)n, &p);
            code = check_problem(check, &p);
        }
    }
    cli_progress_end(&check->progress);
    return code;
}

/* ---- the report ---- */

static void print_json_row(const cmoe_kernel_info *row, const struct tally *tally)
{
    struct cli_json json = {.out = stdout};
    cli_json_open(&json, NULL, '{');
    cli_json_string(&json, "kernel", row->name);
    cli_json_int(&json, "exact", tally->cases[GEN_EXACT]);
    cli_json_int(&json, "real", tally->cases[GEN_REAL]);
    cli_json_int(&json, "failures", tally->failures);
    cli_json_int(&json, "mostly_zero", tally->weak);
    cli_json_double(&json, "worst_ratio", tally->worst);
    cli_json_close(&json, '}');
    cli_json_end(&json);
}

/* Place of a target among instruction sets; past the end where it is unknown. GPUs: the architecture. */
static int target_rank(const char *target)
{
    if (strncmp(target, "sm", 2) == 0) return atoi(target + (target[2] == '_' ? 3 : 2));
    const char *const order[] = {"ref",        "generic",    "avx2", "avx512",
                                 "avx512vnni", "avx512bf16", "amx"};
    const int ranks = (int)(sizeof order / sizeof *order);
    int rank = 0;
    while (rank < ranks && strcmp(order[rank], target) != 0)
        rank++;
    return rank;
}

/* Whether a device is one of a backend: "cuda:0" of "cuda". */
static bool is_of(const char *device, const char *backend)
{
    const size_t n = strlen(backend);
    return strncmp(device, backend, n) == 0 && (device[n] == '\0' || device[n] == ':');
}

/* Whether a device of instruction set `isa` runs a target: itself, or any later one but for sm90a. */
static bool runs(const char *isa, const char *target)
{
    const int rank = target_rank(target), has = target_rank(isa);
    const bool alone = strcmp(target, "sm90a") == 0;
    return strcmp(target, "ref") == 0 || rank == has || (rank < has && !alone);
}

/* Whether a device that tries this row has its instruction set. */
static bool is_reachable(const struct check *check, const cmoe_kernel_info *row)
{
    for (int d = 0; d < check->n_devices; d++)
        if (is_of(check->devices[d], row->backend) && !row->conversion &&
            runs(check->sessions[d].info.isa, row->target))
            return true;
    return false;
}

/* A row that the whole list leaves out is not checked at all, which is a failure. */
static bool is_left_out(const struct check *check, const cmoe_kernel_info *row, int64_t cases)
{
    const bool whole_list =
        !cli_args_given(check->args, "problem") && !cli_args_given(check->args, "count");
    if (cases > 0 || !whole_list || !matches(check->globs, row->name)) return false;
    if (!is_reachable(check, row)) return false;
    fprintf(stderr, "FAIL %s: no problem of the list uses it\n", row->name);
    return true;
}

static int64_t count_cases(const struct check *check)
{
    int64_t cases = 0;
    for (int i = 0; i < check->n_rows; i++)
        cases += check->tallies[i].cases[GEN_EXACT] + check->tallies[i].cases[GEN_REAL];
    return cases;
}

/* @return failures */
static int64_t print_rows(const struct check *check)
{
    const char *const headings[] = {"kernel",   "exact",       "real",
                                    "failures", "mostly zero", "worst ratio"};
    struct cli_table table = {.columns = 6, .numeric = {false, true, true, true, true, true}};
    for (int c = 0; c < 6; c++)
        cli_table_cell(&table, "%s", headings[c]);
    int64_t failures = 0;
    for (int i = 0; i < check->n_rows; i++) {
        cmoe_kernel_info row;
        cmoe_kernel_describe(i, &row);
        const struct tally *tally = &check->tallies[i];
        const int64_t cases = tally->cases[GEN_EXACT] + tally->cases[GEN_REAL];
        failures += tally->failures + is_left_out(check, &row, cases);
        if (cases == 0) continue;
        if (check->json) print_json_row(&row, tally);
        cli_table_cell(&table, "%s", row.name);
        cli_table_cell(&table, "%lld", (long long)tally->cases[GEN_EXACT]);
        cli_table_cell(&table, "%lld", (long long)tally->cases[GEN_REAL]);
        cli_table_cell(&table, "%lld", (long long)tally->failures);
        cli_table_cell(&table, "%lld", (long long)tally->weak);
        cli_table_cell(&table, "%.3f", tally->worst);
    }
    if (!check->json) cli_table_print(&table, false);
    cli_table_free(&table);
    return failures;
}

static int report(const struct check *check)
{
    const int64_t cases = count_cases(check);
    if (cases == 0) return cli_fail(CLI_UNAVAILABLE, "check: no kernel matches and can run");
    const int64_t failures = print_rows(check);
    if (!check->json)
        printf("\n%lld problems (%lld without exact inputs), %lld cases, %lld failed, seed %llu\n",
               (long long)check->problems, (long long)check->not_exact, (long long)cases,
               (long long)failures, (unsigned long long)check->seed);
    return failures > 0 ? CLI_OUTSIDE : CLI_OK;
}

static int open_devices(struct check *check)
{
    const char *device = cli_args_value(check->args, "device");
    check->devices[0] = device != NULL ? device : "ref";
    check->devices[1] = "cpu";
    check->n_devices = device != NULL ? 1 : MAX_DEVICES;
    int code = CLI_OK;
    for (int d = 0; d < check->n_devices && code == CLI_OK; d++) {
        code = cli_session_open(&check->sessions[d]);
        if (code == CLI_OK) code = cli_session_device(&check->sessions[d], check->devices[d]);
        if (d > 0) check->sessions[d].armed = false; /* one record, not two */
    }
    return code;
}

static int run(const struct cli_args *args)
{
    struct check check = {
        .args = args,
        .globs = cli_args_value(args, "kernels"),
        .json = cli_args_given(args, "json"),
        .progress = {.what = "check: problem"},
    };
    int64_t seed = 1, count = 0;
    int code = cli_args_int(args, "seed", 0, INT64_MAX, &seed);
    if (code == CLI_OK) code = cli_args_int(args, "count", 1, INT32_MAX, &count);
    if (code != CLI_OK) return code;
    if (count > 0 && cli_args_given(args, "problem"))
        return cli_fail(CLI_USAGE, "check: --problem and --count exclude each other");
    check.seed = (uint64_t)seed;
    cmoe_kernel_info row;
    bool any = false;
    for (; cmoe_kernel_describe(check.n_rows, &row); check.n_rows++)
        any |= matches(check.globs, row.name);
    if (!any)
        return cli_fail(CLI_UNAVAILABLE, "check: no kernel matches --kernels '%s'; see cmoe list",
                        check.globs);
    check.tallies = calloc((size_t)check.n_rows + 1, sizeof check.tallies[0]);
    if (check.tallies == NULL) return cli_fail(CLI_NO_MEMORY, "out of memory");
    code = open_devices(&check);
    if (code == CLI_OK) code = check_all(&check, count);
    if (code == CLI_OK) code = report(&check);
    for (int d = 0; d < check.n_devices; d++)
        code = cli_session_close(&check.sessions[d], code);
    free(check.tallies);
    return code;
}

static const struct cli_option options[] = {
    {"kernels", "GLOBS", "kernel rows to check, comma separated (default: all)"},
    {"problem", "STRING", "problems, separated by ';', instead of the built-in list"},
    {"count", "N", "N random problems instead of the built-in list"},
    {"seed", "N", "seed of inputs and random problems (default: 1)"},
    {"device", "NAME", "ref, cpu or cuda:N (default: every row on its own)"},
    {"json", NULL, "print one JSON object a kernel"},
    {NULL, NULL, NULL},
};

const struct cli_command cli_check = {
    .name = "check",
    .summary = "Check kernels against the reference",
    .details =
        "Each problem is run with each kernel that supports it, on exact inputs (integers, every\n"
        "sum exact: results must be equal) and on real ones (results must lie within the bound of\n"
        "docs/numerics.md). A failure prints a command that repeats it. Exit code 1: a failure.\n",
    .options = options,
    .run = run,
};
