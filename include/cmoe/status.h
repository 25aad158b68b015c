/* SPDX-License-Identifier: MIT
 * Result codes and the sentence behind the last failure. */
#ifndef CMOE_STATUS_H
#define CMOE_STATUS_H

#include <cmoe/export.h>

CMOE_BEGIN_DECLS

typedef enum cmoe_status {
#define STATUS(name, value, sentence) CMOE_##name = value,
#include <cmoe/status.def>
#undef STATUS
} cmoe_status;

/** The code's name, e.g. "CMOE_ERR_INVALID". Never NULL; "unknown status" for other values. */
CMOE_API const char *cmoe_status_name(cmoe_status status);

/** One clause saying what the code means in general. Never NULL. */
CMOE_API const char *cmoe_status_sentence(cmoe_status status);

/** This thread's last failure as a full sentence naming the offending value and its limit.
 *  "" when this thread has not failed yet. Successful calls leave it as it is. The text is valid
 *  until the same thread's next failing call. */
CMOE_API const char *cmoe_last_error(void);

/** Set this thread's last failure, printf style: for libraries and bindings
 *  built on cmoe. Text past 511 bytes is cut. @return `status`. */
CMOE_API cmoe_status cmoe_set_error(cmoe_status status, const char *format, ...) CMOE_FORMAT(2, 3);

CMOE_END_DECLS

#endif
