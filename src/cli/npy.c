/* SPDX-License-Identifier: MIT
 * Reading arrays: failures name the file. */
#include "cli/npy.h"

#include "cli/report.h"

#include <string.h>

int cli_npy_read(const char *path, cmoe_array *out)
{
    const cmoe_status status = cmoe_npy_read(path, out);
    if (status == CMOE_OK) return CLI_OK;
    return cli_fail_status(status, strstr(cmoe_last_error(), path) == NULL ? path : NULL);
}
