/* SPDX-License-Identifier: MIT
 * Arrays that commands read from .npy files. */
#ifndef CMOE_CLI_NPY_H
#define CMOE_CLI_NPY_H

#include "cli/args.h"

#include <cmoe/io.h>

/* Read an array; a failure names the file. @return an exit code. */
int cli_npy_read(const char *path, cmoe_array *out);

#endif
