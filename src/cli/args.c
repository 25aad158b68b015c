/* SPDX-License-Identifier: MIT
 * getopt_long over a command's option table, and help text from the same table. */
#include "cli/args.h"

#include "cli/report.h"

#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OPTION_BASE = 256, HELP = 'h' };

static int count_options(const struct cli_command *command)
{
    int n = 0;
    while (command->options[n].name != NULL)
        n++;
    assert(n <= CLI_MAX_OPTIONS);
    return n;
}

/* getopt's table for a command; `out` has room for CLI_MAX_OPTIONS + 2. */
static void fill_long_options(const struct cli_command *command, struct option *out)
{
    const int n = count_options(command);
    for (int i = 0; i < n; i++) {
        const struct cli_option *option = &command->options[i];
        out[i] = (struct option){
            .name = option->name,
            .has_arg = option->value != NULL ? required_argument : no_argument,
            .val = OPTION_BASE + i,
        };
    }
    out[n] = (struct option){.name = "help", .has_arg = no_argument, .val = HELP};
    out[n + 1] = (struct option){.name = NULL};
}

static int usage_error(const struct cli_command *command, const char *what, const char *word)
{
    return cli_fail(CLI_USAGE, "%s: %s '%s'; see cmoe %s --help", command->name, what, word,
                    command->name);
}

static int unknown_option(const struct cli_command *command, char **argv)
{
    /* A letter in a group leaves optind where it is. */
    const char letter[] = {'-', (char)optopt, '\0'};
    const bool is_letter = optopt > 0 && optopt < OPTION_BASE;
    return usage_error(command, "unknown option", is_letter ? letter : argv[optind - 1]);
}

static int take_positional(const struct cli_command *command, int argc, char **argv,
                           struct cli_args *out)
{
    const int wanted = command->second != NULL ? 2 : command->positional != NULL ? 1 : 0;
    if (argc - optind > wanted)
        return usage_error(command, "unexpected argument", argv[optind + wanted]);
    if (argc - optind < wanted)
        return cli_fail(CLI_USAGE, "%s needs %s; see cmoe %s --help", command->name,
                        argc - optind == 1 ? command->second : command->positional, command->name);
    out->positional = wanted > 0 ? argv[optind] : NULL;
    out->second = wanted > 1 ? argv[optind + 1] : NULL;
    return CLI_OK;
}

int cli_args_parse(const struct cli_command *command, int argc, char **argv, struct cli_args *out,
                   bool *help)
{
    struct option long_options[CLI_MAX_OPTIONS + 2];
    fill_long_options(command, long_options);
    *out = (struct cli_args){.command = command};
    *help = false;
    opterr = 0;
    optind = 1;
    for (;;) {
        const int c = getopt_long(argc, argv, ":h", long_options, NULL);
        if (c == -1) break;
        if (c == HELP) {
            *help = true;
            return CLI_OK;
        }
        if (c == ':') return usage_error(command, "no value after", argv[optind - 1]);
        if (c == '?') return unknown_option(command, argv);
        const int i = c - OPTION_BASE;
        if (out->values[i] != NULL)
            return usage_error(command, "given twice: option", command->options[i].name);
        out->values[i] = optarg != NULL ? optarg : "";
    }
    return take_positional(command, argc, argv, out);
}

void cli_args_help(const struct cli_command *command)
{
    printf("usage: cmoe %s [options]%s%s%s%s\n\n%s.\n", command->name,
           command->positional != NULL ? " " : "",
           command->positional != NULL ? command->positional : "",
           command->second != NULL ? " " : "", command->second != NULL ? command->second : "",
           command->summary);
    if (command->details != NULL) printf("\n%s", command->details);
    printf("\noptions:\n");
    const int n = count_options(command);
    for (int i = 0; i < n; i++) {
        const struct cli_option *option = &command->options[i];
        char left[64];
        snprintf(left, sizeof left, "--%s%s%s", option->name, option->value != NULL ? " " : "",
                 option->value != NULL ? option->value : "");
        printf("  %-20s  %s\n", left, option->help);
    }
    printf("  %-20s  %s\n", "-h, --help", "print this");
}

static int find_option(const struct cli_args *args, const char *name)
{
    const int n = count_options(args->command);
    for (int i = 0; i < n; i++)
        if (strcmp(args->command->options[i].name, name) == 0) return i;
    assert(0 && "the command has no such option");
    return 0;
}

const char *cli_args_value(const struct cli_args *args, const char *name)
{
    return args->values[find_option(args, name)];
}

bool cli_args_given(const struct cli_args *args, const char *name)
{
    return cli_args_value(args, name) != NULL;
}

int cli_args_require(const struct cli_args *args, const char *name)
{
    if (cli_args_given(args, name)) return CLI_OK;
    return cli_fail(CLI_USAGE, "%s needs --%s %s; see cmoe %s --help", args->command->name, name,
                    args->command->options[find_option(args, name)].value, args->command->name);
}

bool cli_parse_int(const char *text, int64_t *out)
{
    char *end = NULL;
    errno = 0;
    const long long v = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0) return false;
    *out = v;
    return true;
}

int cli_args_int(const struct cli_args *args, const char *name, int64_t low, int64_t high,
                 int64_t *out)
{
    const char *text = cli_args_value(args, name);
    if (text == NULL) return CLI_OK;
    int64_t v = 0;
    if (!cli_parse_int(text, &v) || v < low || v > high)
        return cli_fail(CLI_USAGE, "%s: --%s=%s is not a whole number from %lld to %lld",
                        args->command->name, name, text, (long long)low, (long long)high);
    *out = v;
    return CLI_OK;
}

int cli_args_double(const struct cli_args *args, const char *name, double low, double *out)
{
    const char *text = cli_args_value(args, name);
    if (text == NULL) return CLI_OK;
    char *end = NULL;
    const double v = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(v) || v <= low)
        return cli_fail(CLI_USAGE, "%s: --%s=%s is not a finite number above %g",
                        args->command->name, name, text, low);
    *out = v;
    return CLI_OK;
}
