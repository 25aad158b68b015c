/* SPDX-License-Identifier: MIT
 * cmoe quantize: a quantised copy of a checkpoint. The library does the work; this shows it. */
#include "cli/calibrate.h"
#include "cli/commands.h"
#include "cli/report.h"

#include <cmoe/io.h>
#include <string.h>

static void show(void *user, int64_t done, int64_t total)
{
    cli_progress_show(user, done, total);
}

static void print_report(const struct cli_args *args, const cmoe_quantize_report *r, bool dry)
{
    const bool gguf = strcmp(r->source, "gguf") == 0;
    if (r->source[0] != '\0')
        printf("%-10s %s, decoded to f32 and then quantised%s\n", "source", r->source,
               gguf ? "; only routers and experts are written"
                    : " again, on top of its own errors");
    printf("%-10s %s\n", "layout", r->format);
    printf("%-10s %lld", "shards", (long long)r->shards);
    if (r->reused > 0) printf(", %lld of an earlier run", (long long)r->reused);
    printf("\n%-10s %lld bytes\n", "in", (long long)r->bytes_in);
    printf("%-10s %lld bytes, %.2f of it\n", "out", (long long)r->bytes_out,
           (double)r->bytes_out / (double)(r->bytes_in > 0 ? r->bytes_in : 1));
    printf("%-10s %lld bytes at most\n", "memory", (long long)r->memory);
    printf("%-10s %s%s\n", dry ? "would be" : "written", args->second,
           dry ? ", by the work in its .partial" : "");
}

static int run(const struct cli_args *args)
{
    int code = cli_args_require(args, "scheme");
    if (code != CLI_OK) return code;
    const char *const calib = cli_args_value(args, "calib");
    struct cli_calibration seen = {.layers = 0};
    if (calib != NULL) code = cli_calibrate(args->positional, calib, &seen);
    if (code != CLI_OK) return code;
    struct cli_progress progress = {.what = "quantize: expert", .start = cli_now()};
    const bool dry = cli_args_given(args, "dry-run");
    const cmoe_quantize_options options = {
        .struct_size = sizeof options,
        .scheme = cli_args_value(args, "scheme"),
        .dry_run = dry,
        .layers = seen.layers,
        .x_amax = seen.x_amax,
        .mid_amax = seen.mid_amax,
        .progress = show,
        .user = &progress,
    };
    cmoe_quantize_report report;
    const cmoe_status status =
        cmoe_checkpoint_quantize(args->positional, args->second, &options, &report);
    cli_progress_end(&progress);
    cli_calibration_free(&seen);
    if (status == CMOE_ERR_IO && strstr(cmoe_last_error(), args->second) != NULL)
        return cli_fail_output(status);
    if (status != CMOE_OK) return cli_fail_status(status, NULL);
    print_report(args, &report, dry);
    return CLI_OK;
}

static const struct cli_option options[] = {
    {"scheme", "S", "weight format of this scheme, such as mxfp4-w4a16 or int4-w4a16:g64,zp"},
    {"calib", "FILE.npy",
     "tokens for static activation scales: [tokens, hidden], or such rows for each MoE layer"},
    {"dry-run", NULL, "only say what would be written, and the memory it takes"},
    {NULL, NULL, NULL},
};

const struct cli_command cli_quantize = {
    .name = "quantize",
    .summary = "Write a checkpoint with quantised experts",
    .positional = "IN",
    .second = "OUT",
    .options = options,
    .run = run,
};
