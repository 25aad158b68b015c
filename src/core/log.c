/* SPDX-License-Identifier: MIT
 * All output of the library: the caller's log, or the standard error where CMOE_LOG asks for it. */
#include "core/log.h"

#include "core/context.h"

#include <stdarg.h>
#include <stdio.h>

void cmoe__stderr_log(void *user, int level, const char *text)
{
    (void)user;
    static const char *const names[] = {"error", "warning", "info"};
    fprintf(stderr, "cmoe: %s: %s\n", names[level < 0 || level > 2 ? 2 : level], text);
}

void cmoe__log(cmoe_context *ctx, int level, const char *format, ...)
{
    if (!ctx->options.log || level > ctx->log_level) return;
    char text[512];
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0) return;
    for (char *c = text; *c; c++) {
        if (*c == '\n') *c = ' ';
    }
    ctx->options.log(ctx->options.user, level, text);
}
