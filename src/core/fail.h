/* SPDX-License-Identifier: MIT
 * Failing: set this thread's message and return the code. The only control-flow macros there are. */
#ifndef CMOE_CORE_FAIL_H
#define CMOE_CORE_FAIL_H

#include "core/attr.h"
#include <cmoe/status.h>

/* Format the message into the thread's 512-byte buffer and return `status`. */
cmoe_status cmoe__fail(cmoe_status status, const char *format, ...) CMOE_PRINTF(2, 3);

/* Debug builds append " (file:line)" once per CMOE_TRY passed on the way out. */
void cmoe__fail_trace(const char *file, int line);

#define CMOE_FAIL(status, ...) cmoe__fail((status), __VA_ARGS__)

#ifdef CMOE_DEBUG
#    define CMOE_FAIL_TRACE() cmoe__fail_trace(__FILE__, __LINE__)
#else
#    define CMOE_FAIL_TRACE() ((void)0)
#endif

#define CMOE_TRY(expr)                                                                             \
    do {                                                                                           \
        const cmoe_status status_ = (expr);                                                        \
        if (status_ != CMOE_OK) {                                                                  \
            CMOE_FAIL_TRACE();                                                                     \
            return status_;                                                                        \
        }                                                                                          \
    } while (0)

#endif
