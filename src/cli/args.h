/* SPDX-License-Identifier: MIT
 * Command lines: one table row a command, from which parsing and --help both follow. */
#ifndef CMOE_CLI_ARGS_H
#define CMOE_CLI_ARGS_H

#include <stdbool.h>
#include <stdint.h>

/* Exit codes, as sysexits.h has them where it has one. docs/cli.md lists them. */
enum cli_exit {
    CLI_OK = 0,
    CLI_OUTSIDE = 1,      /* a check failed: a result is outside its bound */
    CLI_USAGE = 64,       /* the command line, a problem or a scheme is wrong */
    CLI_BAD_DATA = 65,    /* a file does not follow its format, or does not fit the others */
    CLI_NO_INPUT = 66,    /* an input cannot be opened */
    CLI_UNAVAILABLE = 69, /* no such device, or no kernel does it */
    CLI_INTERNAL = 70,
    CLI_NO_MEMORY = 71,
    CLI_NO_OUTPUT = 73, /* an output file cannot be written */
    CLI_IO = 74,        /* standard output cannot be written */
};

enum { CLI_MAX_OPTIONS = 16 };

struct cli_option {
    const char *name;  /* without the dashes; NULL ends the table */
    const char *value; /* name of its value in --help, NULL for a switch */
    const char *help;
};

struct cli_args;

struct cli_command {
    const char *name;
    const char *summary;    /* one line, for the overview */
    const char *positional; /* name of the first positional argument, or NULL */
    const char *second;     /* and of the one after it */
    const char *details;    /* paragraphs for --help, or NULL */
    const struct cli_option *options;
    int (*run)(const struct cli_args *); /* returns the exit code */
};

struct cli_args {
    const struct cli_command *command;
    const char *values[CLI_MAX_OPTIONS]; /* by option; a switch that was given is "" */
    const char *positional, *second;
};

/* Parse what follows the command's name (argv[0] is the name). `help` says that --help was given
 * and nothing was parsed. @return an exit code. */
int cli_args_parse(const struct cli_command *command, int argc, char **argv, struct cli_args *out,
                   bool *help);
void cli_args_help(const struct cli_command *command);

/* The option's value, or NULL when it was not given. */
const char *cli_args_value(const struct cli_args *args, const char *name);
bool cli_args_given(const struct cli_args *args, const char *name);

/* Numbers: *out keeps its value when the option was not given. @return an exit code. */
int cli_args_int(const struct cli_args *args, const char *name, int64_t low, int64_t high,
                 int64_t *out);
int cli_args_double(const struct cli_args *args, const char *name, double low, double *out);

/* Fails with a sentence when the option was not given. */
int cli_args_require(const struct cli_args *args, const char *name);

/* Whole text as a number. */
bool cli_parse_int(const char *text, int64_t *out);

#endif
