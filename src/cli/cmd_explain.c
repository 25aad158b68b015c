/* SPDX-License-Identifier: MIT
 * cmoe explain: how a problem would be computed, at what estimated cost, and why not otherwise. */
#include "cli/commands.h"
#include "cli/report.h"
#include "cli/session.h"

#include <stdlib.h>

/* The plan's report in memory of the caller's, or NULL. */
static char *explain(const cmoe_plan *plan, int tokens)
{
    const int length = cmoe_plan_explain(plan, tokens, NULL, 0);
    char *text = length >= 0 ? malloc((size_t)length + 1) : NULL;
    if (text != NULL) cmoe_plan_explain(plan, tokens, text, (size_t)length + 1);
    return text;
}

static void print_json(const cmoe_plan *plan, const char *device, int tokens, const char *report)
{
    char problem[CMOE_PROBLEM_TEXT], path[CLI_PATH_TEXT];
    cmoe_problem_print(cmoe_plan_problem(plan), problem, sizeof problem);
    cmoe_plan_path(plan, tokens, path, sizeof path);
    struct cli_json json = {.out = stdout};
    cli_json_open(&json, NULL, '{');
    cli_json_string(&json, "problem", problem);
    cli_json_string(&json, "device", device);
    cli_json_int(&json, "tokens", tokens);
    cli_json_string(&json, "path", path);
    cli_json_string(&json, "weights1", cmoe_plan_weight_format(plan, 1));
    cli_json_string(&json, "weights2", cmoe_plan_weight_format(plan, 2));
    cli_json_int(&json, "workspace", (int64_t)cmoe_plan_workspace_size(plan));
    cli_json_string(&json, "report", report);
    cli_json_close(&json, '}');
    cli_json_end(&json);
}

static int print_plan(const struct cli_args *args, const struct cli_session *session,
                      const cmoe_problem *p)
{
    const cmoe_plan_options options = {
        .struct_size = sizeof options,
        .pin = cli_args_value(args, "pin"),
    };
    cmoe_plan *plan = NULL;
    const cmoe_status status = cmoe_plan_create(session->dev, p, NULL, &options, &plan);
    if (status != CMOE_OK) return cli_fail_status(status, NULL);
    char *text = explain(plan, p->max_tokens);
    int code = CLI_OK;
    if (text == NULL)
        code = cli_fail(CLI_NO_MEMORY, "out of memory");
    else if (cli_args_given(args, "json"))
        print_json(plan, session->label, p->max_tokens, text);
    else
        fputs(text, stdout);
    free(text);
    cmoe_plan_destroy(plan);
    return code;
}

static int run(const struct cli_args *args)
{
    cmoe_problem p;
    int code = cli_problem_from_args(args, true, &p);
    if (code != CLI_OK) return code;
    int64_t tokens = p.max_tokens;
    code = cli_args_int(args, "tokens", 1, INT32_MAX, &tokens);
    p.max_tokens = (int32_t)tokens;
    if (code == CLI_OK) code = cli_problem_check(&p);
    if (code != CLI_OK) return code;
    struct cli_session session;
    code = cli_session_open(&session);
    if (code == CLI_OK) code = cli_session_device(&session, cli_args_value(args, "device"));
    if (code == CLI_OK) code = print_plan(args, &session, &p);
    return cli_session_close(&session, code);
}

static const struct cli_option options[] = {
    {"model", "NAME", "a model's layer, such as deepseek-v3"},
    {"scheme", "NAME", "its formats, such as fp8-block or int4-w4a16:g64,zp"},
    {"problem", "STRING", "a problem, or changes to the model's: 'e=64 k=8 h=2048 i=1024'"},
    {"tokens", "N", "tokens of the call (default: the problem's t)"},
    {"device", "NAME", "ref, cpu or cuda:N"},
    {"pin", "GLOBS", "kernels to use where they can be used, comma separated"},
    {"json", NULL, "print one JSON object"},
    {NULL, NULL, NULL},
};

const struct cli_command cli_explain = {
    .name = "explain",
    .summary = "Show how a problem is computed: path, costs, rejected kernels",
    .details = "Weights are not needed: the weight formats are those the planner would choose.\n",
    .options = options,
    .run = run,
};
