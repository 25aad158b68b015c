/* SPDX-License-Identifier: MIT
 * cmoe list: the kernel rows, and the support matrix made from them.
 *
 * The matrix is the same on every x86-64 machine: rows are listed whether this CPU can run them or
 * not, and support is asked of devices capped to the generic instruction set. */
#include "cli/commands.h"
#include "cli/report.h"

#include <cmoe/cmoe.h>
#include <string.h>

enum { STAGES_TEXT = 128 };

static void print_stages(const cmoe_kernel_info *row, char *out, size_t len)
{
    if (row->conversion)
        snprintf(out, len, "before %s", cmoe_stage_name(row->first));
    else if (row->first == row->last)
        snprintf(out, len, "%s", cmoe_stage_name(row->first));
    else
        snprintf(out, len, "%s..%s", cmoe_stage_name(row->first), cmoe_stage_name(row->last));
}

static void print_formats(const cmoe_kernel_info *row, char *out, size_t len)
{
    const char *first = row->format1, *second = row->format2;
    if (first == NULL || (second != NULL && strcmp(first, second) == 0)) {
        first = second;
        second = NULL;
    }
    snprintf(out, len, "%s%s%s", first != NULL ? first : "", second != NULL ? ", " : "",
             second != NULL ? second : "");
}

static void print_rows(bool markdown)
{
    struct cli_table table = {.columns = 5};
    const char *const headings[] = {"kernel", "backend", "target", "stages", "weights"};
    for (int c = 0; c < 5; c++)
        cli_table_cell(&table, "%s", headings[c]);
    cmoe_kernel_info row;
    for (int i = 0; cmoe_kernel_describe(i, &row); i++) {
        char stages[STAGES_TEXT], formats[STAGES_TEXT];
        print_stages(&row, stages, sizeof stages);
        print_formats(&row, formats, sizeof formats);
        cli_table_cell(&table, "%s", row.name);
        cli_table_cell(&table, "%s", row.backend);
        cli_table_cell(&table, "%s", row.target);
        cli_table_cell(&table, "%s", stages);
        cli_table_cell(&table, "%s", formats);
    }
    cli_table_print(&table, markdown);
    cli_table_free(&table);
}

static void print_json(void)
{
    struct cli_json json = {.out = stdout};
    cmoe_kernel_info row;
    for (int i = 0; cmoe_kernel_describe(i, &row); i++) {
        cli_json_open(&json, NULL, '{');
        cli_json_string(&json, "name", row.name);
        cli_json_string(&json, "backend", row.backend);
        cli_json_string(&json, "target", row.target);
        cli_json_string(&json, "first", cmoe_stage_name(row.first));
        cli_json_string(&json, "last", cmoe_stage_name(row.last));
        cli_json_string(&json, "weights1", row.format1);
        cli_json_string(&json, "weights2", row.format2);
        cli_json_bool(&json, "conversion", row.conversion != 0);
        cli_json_close(&json, '}');
        cli_json_end(&json);
    }
}

/* Stages that have something to do for p, a bit each. */
static unsigned needed_stages(const cmoe_problem *p)
{
    unsigned stages = (1u << CMOE_STAGE_COUNT) - 1;
    if (p->x.scaling == CMOE_SCALE_NONE) stages &= ~(1u << CMOE_STAGE_QUANT);
    if (p->mid.scaling == CMOE_SCALE_NONE) stages &= ~(1u << CMOE_STAGE_REQUANT);
    return stages;
}

/* Stages of p for which `backend` has a row of its own, by name. */
static void print_support(cmoe_device *dev, const char *backend, const cmoe_problem *p, char *out,
                          size_t len)
{
    unsigned stages = 0;
    cmoe_kernel_info row;
    for (int i = 0; cmoe_kernel_describe(i, &row); i++) {
        if (row.conversion || strcmp(row.backend, backend) != 0) continue;
        if (!cmoe_kernel_supports(i, dev, p, NULL, 0)) continue;
        for (int stage = row.first; stage <= (int)row.last; stage++)
            stages |= 1u << stage;
    }
    stages &= needed_stages(p);
    if (stages == needed_stages(p) || stages == 0) {
        snprintf(out, len, "%s", stages != 0 ? "all" : "-");
        return;
    }
    size_t used = 0;
    out[0] = '\0';
    for (int stage = 0; stage < CMOE_STAGE_COUNT; stage++) {
        if ((stages >> stage & 1) == 0 || used >= len) continue;
        used += (size_t)snprintf(out + used, len - used, "%s%s", used > 0 ? ", " : "",
                                 cmoe_stage_name((cmoe_stage)stage));
    }
}

static int print_schemes(cmoe_context *ctx)
{
    const char *const backends[] = {"ref", "cpu"};
    cmoe_device *devices[2] = {NULL, NULL};
    struct cli_table table = {.columns = 3};
    cmoe_status status = cmoe_device_open(ctx, backends[0], &devices[0]);
    if (status == CMOE_OK) status = cmoe_device_open(ctx, backends[1], &devices[1]);
    cli_table_cell(&table, "scheme");
    for (int b = 0; b < 2; b++)
        cli_table_cell(&table, "%s", backends[b]);
    const char *scheme = NULL;
    for (int i = 0; status == CMOE_OK && (scheme = cmoe_scheme_name(i)) != NULL; i++) {
        cmoe_problem p;
        cmoe_problem_init(&p);
        status = cmoe_problem_model(&p, "qwen3-30b-a3b");
        if (status == CMOE_OK) status = cmoe_problem_scheme(&p, scheme);
        cli_table_cell(&table, "%s", scheme);
        for (int b = 0; status == CMOE_OK && b < 2; b++) {
            char text[STAGES_TEXT];
            print_support(devices[b], backends[b], &p, text, sizeof text);
            cli_table_cell(&table, "%s", text);
        }
    }
    if (status == CMOE_OK) cli_table_print(&table, true);
    const int code = status == CMOE_OK ? CLI_OK : cli_fail_status(status, NULL);
    cli_table_free(&table);
    for (int b = 0; b < 2; b++)
        cmoe_device_close(devices[b]);
    return code;
}

static int print_markdown(void)
{
    const cmoe_context_options options = {.struct_size = sizeof options, .cpu = "generic"};
    cmoe_context *ctx = NULL;
    const cmoe_status status = cmoe_context_create(&options, &ctx);
    if (status != CMOE_OK) return cli_fail_status(status, NULL);
    printf("# Support matrix\n\n"
           "`cmoe list --markdown` prints this page from the kernel tables; a test compares.\n\n"
           "## Kernels\n\n"
           "A row covers an interval of stages; the planner joins rows to the cheapest path. "
           "`weights` are the\nweight formats it reads. A target beyond what the CPU has is left "
           "out at run time.\n\n");
    print_rows(true);
    printf(
        "\n## Schemes\n\n"
        "Stages for which a backend has a row of its own, for a layer of `qwen3-30b-a3b` and "
        "the generic\ninstruction set. What `cpu` lacks runs on rows of `ref`, so every scheme "
        "runs on every host device.\n`quant` and `requant` are not counted where activations are "
        "not quantised.\n\n");
    const int code = print_schemes(ctx);
    cmoe_context_destroy(ctx);
    return code;
}

static void print_names(const char *(*name)(int))
{
    for (int i = 0; name(i) != NULL; i++)
        puts(name(i));
}

static int run(const struct cli_args *args)
{
    const char *const names[] = {"markdown", "json", "schemes", "models", "routers"};
    int given = 0;
    for (int i = 0; i < 5; i++)
        given += cli_args_given(args, names[i]);
    if (given > 1) return cli_fail(CLI_USAGE, "list: takes one option; see cmoe list --help");
    if (cli_args_given(args, "markdown")) return print_markdown();
    if (cli_args_given(args, "json"))
        print_json();
    else if (cli_args_given(args, "schemes"))
        print_names(cmoe_scheme_name);
    else if (cli_args_given(args, "models"))
        print_names(cmoe_model_name);
    else if (cli_args_given(args, "routers"))
        print_names(cmoe_router_name);
    else
        print_rows(false);
    return CLI_OK;
}

static const struct cli_option options[] = {
    {"markdown", NULL, "print the support matrix, docs/support-matrix.md"},
    {"schemes", NULL, "print the names of the schemes instead"},
    {"models", NULL, "print the names of the model presets instead"},
    {"routers", NULL, "print the names of the router presets instead"},
    {"json", NULL, "print one JSON object a kernel"},
    {NULL, NULL, NULL},
};

const struct cli_command cli_list = {
    .name = "list",
    .summary = "List kernels, schemes, models or routers, or print the support matrix",
    .options = options,
    .run = run,
};
