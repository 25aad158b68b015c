/* SPDX-License-Identifier: MIT
 * The cmoe command: finds the sub-command and runs it. */
#include "cli/commands.h"
#include "cli/report.h"

#include <cmoe/cmoe.h>
#include <stdio.h>
#include <string.h>

static const struct cli_command *const commands[] = {
    &cli_info, &cli_list,   &cli_explain, &cli_run,      &cli_check,    &cli_bench,
    &cli_tune, &cli_replay, &cli_inspect, &cli_quantize, &cli_accuracy,
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

static void print_overview(void)
{
    printf("usage: cmoe COMMAND [options]\n\n"
           "Mixture-of-Experts layers: look at plans, run, check and time them.\n\ncommands:\n");
    for (int i = 0; i < COMMANDS; i++)
        printf("  %-8s  %s\n", commands[i]->name, commands[i]->summary);
    printf("\n"
           "  cmoe COMMAND --help   options of a command\n"
           "  cmoe --version        version of the library\n\n"
           "environment:\n"
           "  CMOE_DEVICE   device where --device is not given\n"
           "  CMOE_THREADS  threads\n"
           "  CMOE_NODES    memory nodes that packed weights are divided among\n"
           "  CMOE_CPU      instruction set not to go beyond: generic, avx2, avx512,\n"
           "                avx512vnni, avx512bf16, amx\n"
           "  CMOE_TUNED    file of tuned choices\n"
           "  CMOE_RECORD   folder to record the first call of run, replay, check or bench in\n\n"
           "exit codes:\n"
           "  0 done; 1 a result is outside its bound; 64 wrong command line, problem or scheme;\n"
           "  65 malformed input; 66 input cannot be opened; 69 no such device or no kernel;\n"
           "  70 internal error; 71 out of memory; 73 output cannot be created; 74 write error\n");
}

static const struct cli_command *find(const char *name)
{
    for (int i = 0; i < COMMANDS; i++)
        if (strcmp(commands[i]->name, name) == 0) return commands[i];
    return NULL;
}

static int run(int argc, char **argv)
{
    if (argc < 2) return cli_fail(CLI_USAGE, "a command is missing; see cmoe --help");
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        print_overview();
        return CLI_OK;
    }
    if (strcmp(name, "--version") == 0) {
        printf("cmoe %s\n", cmoe_version());
        return CLI_OK;
    }
    const struct cli_command *command = find(name);
    if (command == NULL) return cli_fail(CLI_USAGE, "unknown command '%s'; see cmoe --help", name);
    struct cli_args args;
    bool help = false;
    const int code = cli_args_parse(command, argc - 1, argv + 1, &args, &help);
    if (help) cli_args_help(command);
    return help || code != CLI_OK ? code : command->run(&args);
}

int main(int argc, char **argv)
{
    const int code = run(argc, argv);
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == CLI_OK)
        return cli_fail(CLI_IO, "cannot write to standard output");
    return code;
}
