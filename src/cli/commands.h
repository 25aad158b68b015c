/* SPDX-License-Identifier: MIT
 * The commands, in the order of the overview. */
#ifndef CMOE_CLI_COMMANDS_H
#define CMOE_CLI_COMMANDS_H

#include "cli/args.h"

extern const struct cli_command cli_info;
extern const struct cli_command cli_list;
extern const struct cli_command cli_explain;
extern const struct cli_command cli_run;
extern const struct cli_command cli_check;
extern const struct cli_command cli_bench;
extern const struct cli_command cli_tune;
extern const struct cli_command cli_replay;
extern const struct cli_command cli_inspect;
extern const struct cli_command cli_quantize;
extern const struct cli_command cli_accuracy;

#endif
