/* SPDX-License-Identifier: MIT
 * Messages of a context. */
#ifndef CMOE_CORE_LOG_H
#define CMOE_CORE_LOG_H

#include "core/attr.h"
#include <cmoe/context.h>

/* One line at a level (0 error, 1 warning, 2 info), if the context has a log that wants it. */
void cmoe__log(cmoe_context *ctx, int level, const char *format, ...) CMOE_PRINTF(3, 4);

/* A log that writes to the standard error. */
void cmoe__stderr_log(void *user, int level, const char *text);

#endif
