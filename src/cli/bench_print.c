/* SPDX-License-Identifier: MIT
 * Cells of bench as a table, as JSON lines and as CSV. */
#include "cli/bench.h"
#include "cli/report.h"

#include <math.h>

static double tflops(const struct bench_cell *cell, const struct bench_lane *lane)
{
    return 1e-6 * cell->flops / lane->times.median;
}

static double gbps(const struct bench_cell *cell, const struct bench_lane *lane)
{
    return 1e-3 * cell->bytes / lane->times.median;
}

double bench_floor(const struct bench_cell *cell)
{
    const double read = fmax(cell->read[0], cell->read[1]);
    return 1e6 * fmax(cell->bytes / read, cell->flops / cell->dot);
}

/* Per cent of the nearer ceiling that a lane reaches. */
static double roof(const struct bench_cell *cell, const struct bench_lane *lane)
{
    return 100 * bench_floor(cell) / lane->times.median;
}

static bool has_stages(const struct bench_lane *lane)
{
    for (int stage = 0; stage < CMOE_STAGE_COUNT; stage++)
        if (lane->stage_us[stage] > 0) return true;
    return false;
}

static void print_stages(const struct bench_lane *lane)
{
    if (!has_stages(lane)) return;
    printf("%-18s", "  us up to");
    for (int stage = 0; stage < CMOE_STAGE_COUNT; stage++)
        if (lane->stage_us[stage] > 0)
            printf(" %s %.1f", cmoe_stage_name((cmoe_stage)stage), lane->stage_us[stage]);
    printf("\n");
}

static void print_lane(const struct bench_cell *cell, int i)
{
    const struct bench_lane *lane = &cell->lane[i];
    printf("%-18s %7lld %12.1f %12.1f %12.1f %9.4g %9.4g ",
           i > 0 ? "  against" : (cell->scheme != NULL ? cell->scheme : "-"),
           (long long)cell->tokens, lane->times.median, lane->times.min, lane->times.p90,
           tflops(cell, lane), gbps(cell, lane));
    if (isnan(bench_floor(cell)))
        printf("%10s %5s ", "-", "-");
    else
        printf("%10.1f %5.1f ", bench_floor(cell), roof(cell, lane));
    if (lane->error.n > 0)
        printf("%8.1e %6.3f", lane->error.rel_l2, lane->error.max_ratio);
    else
        printf("%8s %6s", "-", "-");
    printf("  %s\n", lane->path);
    print_stages(lane);
}

void bench_print_text(const struct bench_cell *cell, bool *headed)
{
    if (!*headed)
        printf("%-18s %7s %12s %12s %12s %9s %9s %10s %5s %8s %6s  plan\n", "scheme", "tokens",
               "us median", "us min", "us p90", "tflops", "gbps", "us floor", "%roof", "error",
               "bound");
    *headed = true;
    for (int i = 0; i < cell->lanes; i++)
        print_lane(cell, i);
}

static void json_lane(struct cli_json *json, const struct bench_cell *cell, int i)
{
    const struct bench_lane *lane = &cell->lane[i];
    const double none = NAN;
    cli_json_double(json, "us_median", lane->times.median);
    cli_json_double(json, "us_min", lane->times.min);
    cli_json_double(json, "us_p90", lane->times.p90);
    cli_json_int(json, "runs", lane->times.runs);
    cli_json_double(json, "tflops", tflops(cell, lane));
    cli_json_double(json, "gbps", gbps(cell, lane));
    cli_json_double(json, "roof_percent", roof(cell, lane));
    cli_json_double(json, "error", lane->error.n > 0 ? lane->error.rel_l2 : none);
    cli_json_double(json, "error_of_bound", lane->error.n > 0 ? lane->error.max_ratio : none);
    cli_json_string(json, "plan", lane->path);
    if (!has_stages(lane)) return;
    cli_json_open(json, "stage_us", '{');
    for (int stage = 0; stage < CMOE_STAGE_COUNT; stage++)
        if (lane->stage_us[stage] > 0)
            cli_json_double(json, cmoe_stage_name((cmoe_stage)stage), lane->stage_us[stage]);
    cli_json_close(json, '}');
}

void bench_print_json(FILE *out, const struct bench_cell *cell)
{
    char problem[CMOE_PROBLEM_TEXT];
    cmoe_problem_print(cell->problem, problem, sizeof problem);
    struct cli_json json = {.out = out};
    cli_json_open(&json, NULL, '{');
    cli_json_string(&json, "model", cell->model);
    cli_json_string(&json, "problem", problem);
    cli_json_int(&json, "tokens", cell->tokens);
    cli_json_string(&json, "scheme", cell->scheme);
    cli_json_string(&json, "routing", cell->routing);
    cli_json_string(&json, "device", cell->device);
    cli_json_int(&json, "routings", cell->variants);
    cli_json_int(&json, "weight_sets", cell->sets);
    cli_json_double(&json, "rest_s", cell->rest);
    cli_json_double(&json, "slots", cell->slots);
    cli_json_double(&json, "experts_hit", cell->hit);
    cli_json_double(&json, "flop", cell->flops);
    cli_json_double(&json, "bytes", cell->bytes);
    cli_json_double(&json, "read_gbps_before", 1e-9 * cell->read[0]);
    cli_json_double(&json, "read_gbps_after", 1e-9 * cell->read[1]);
    cli_json_double(&json, "dot_tflops", 1e-12 * cell->dot);
    cli_json_double(&json, "us_floor", bench_floor(cell));
    json_lane(&json, cell, 0);
    if (cell->lanes > 1) {
        cli_json_open(&json, "against", '{');
        json_lane(&json, cell, 1);
        cli_json_close(&json, '}');
    }
    cli_json_close(&json, '}');
    cli_json_end(&json);
}

void bench_print_csv(FILE *out, const struct bench_cell *cell, bool *headed)
{
    const cmoe_problem *p = cell->problem;
    const struct bench_lane *lane = &cell->lane[0];
    if (!*headed) fprintf(out, "model,M,N,K,E,top_k,Time_(ms),TFLOPS,Bandwidth_(GB/s)\n");
    *headed = true;
    fprintf(out, "%s,%lld,%d,%d,%d,%d,%.6g,%.6g,%.6g\n", cell->model != NULL ? cell->model : "-",
            (long long)cell->tokens, p->inter, p->hidden, p->experts, p->topk,
            1e-3 * lane->times.median, tflops(cell, lane), gbps(cell, lane));
}
