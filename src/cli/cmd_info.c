/* SPDX-License-Identifier: MIT
 * cmoe info: what this machine and this build have. */
#include "cli/commands.h"
#include "cli/report.h"
#include "cli/session.h"

static void print_bytes(const char *what, int64_t bytes)
{
    if (bytes <= 0)
        printf("%-10s unknown\n", what);
    else if (bytes < (int64_t)10 << 20)
        printf("%-10s %lld KiB\n", what, (long long)(bytes >> 10));
    else if (bytes < (int64_t)10 << 30)
        printf("%-10s %lld MiB\n", what, (long long)(bytes >> 20));
    else
        printf("%-10s %lld GiB\n", what, (long long)(bytes >> 30));
}

static void print_text(const struct cli_session *session)
{
    const cmoe_device_info *info = &session->info;
    printf("%-10s %s\n", "version", cmoe_version());
    printf("%-10s %s\n", "cpu", info->name);
    printf("%-10s %s\n", "isa", info->isa);
    printf("%-10s %s\n", "features", info->features);
    print_bytes("l1d", info->l1d);
    print_bytes("l2", info->l2);
    print_bytes("l3", info->l3);
    print_bytes("memory", info->memory);
    printf("%-10s %d, %s\n", "threads", cmoe_context_threads(session->ctx),
           cmoe_context_executor(session->ctx));
    printf("backends\n");
    const char *name = NULL;
    char state[160];
    for (int i = 0; cmoe_backend_describe(i, &name, state, sizeof state); i++)
        printf("  %-8s %s\n", name, state);
}

static void print_json(const struct cli_session *session)
{
    const cmoe_device_info *info = &session->info;
    struct cli_json json = {.out = stdout};
    cli_json_open(&json, NULL, '{');
    cli_json_string(&json, "version", cmoe_version());
    cli_json_string(&json, "cpu", info->name);
    cli_json_string(&json, "isa", info->isa);
    cli_json_string(&json, "features", info->features);
    cli_json_int(&json, "l1d", info->l1d);
    cli_json_int(&json, "l2", info->l2);
    cli_json_int(&json, "l3", info->l3);
    cli_json_int(&json, "memory", info->memory);
    cli_json_int(&json, "threads", cmoe_context_threads(session->ctx));
    cli_json_string(&json, "executor", cmoe_context_executor(session->ctx));
    cli_json_open(&json, "backends", '[');
    const char *name = NULL;
    char state[160];
    for (int i = 0; cmoe_backend_describe(i, &name, state, sizeof state); i++) {
        cli_json_open(&json, NULL, '{');
        cli_json_string(&json, "name", name);
        cli_json_string(&json, "state", state);
        cli_json_close(&json, '}');
    }
    cli_json_close(&json, ']');
    cli_json_close(&json, '}');
    cli_json_end(&json);
}

static int run(const struct cli_args *args)
{
    struct cli_session session;
    int code = cli_session_open(&session);
    if (code == CLI_OK) code = cli_session_device(&session, "cpu");
    if (code == CLI_OK && cli_args_given(args, "json"))
        print_json(&session);
    else if (code == CLI_OK)
        print_text(&session);
    return cli_session_close(&session, code);
}

static const struct cli_option options[] = {
    {"json", NULL, "print one JSON object"},
    {NULL, NULL, NULL},
};

const struct cli_command cli_info = {
    .name = "info",
    .summary = "Show the CPU, its instruction sets, and the backends",
    .options = options,
    .run = run,
};
