/* SPDX-License-Identifier: MIT
 * Status names and the message of this thread's last failure.
 *
 * The message is the library's only per-thread state: codes travel by return value, and only the
 * sentence that explains one stays behind. */
#include "core/fail.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MESSAGE_BYTES = 512 };

static CMOE_THREAD_LOCAL char message[MESSAGE_BYTES];

const char *cmoe_status_name(cmoe_status status)
{
    static const char *const names[] = {
#define STATUS(name, value, sentence) [value] = "CMOE_" #name,
#include <cmoe/status.def>
#undef STATUS
    };
    const unsigned i = (unsigned)status;
    return i < sizeof names / sizeof names[0] ? names[i] : "unknown status";
}

const char *cmoe_status_sentence(cmoe_status status)
{
    static const char *const sentences[] = {
#define STATUS(name, value, sentence) [value] = sentence,
#include <cmoe/status.def>
#undef STATUS
    };
    const unsigned i = (unsigned)status;
    return i < sizeof sentences / sizeof sentences[0] ? sentences[i] : "unknown status";
}

const char *cmoe_last_error(void)
{
    return message;
}

CMOE_PRINTF(1, 0) static void set_message(const char *format, va_list args)
{
    /* An argument may be the last message itself, so it is not written to while formatting. */
    char text[MESSAGE_BYTES];
    if (vsnprintf(text, sizeof text, format, args) < 0) text[0] = '\0';
    memcpy(message, text, sizeof message);
}

cmoe_status cmoe__fail(cmoe_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    set_message(format, args);
    va_end(args);
    return status;
}

cmoe_status cmoe_set_error(cmoe_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    set_message(format, args);
    va_end(args);
    return status;
}

void cmoe__fail_trace(const char *file, int line)
{
    const char *const slash = strrchr(file, '/');
    const size_t used = strlen(message);
    if (used + 1 >= sizeof message) return;
    snprintf(message + used, sizeof message - used, " (%s:%d)", slash ? slash + 1 : file, line);
}
