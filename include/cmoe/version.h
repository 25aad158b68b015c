/* SPDX-License-Identifier: MIT
 * The version of these headers, which the build checks against its own, and the library's. */
#ifndef CMOE_VERSION_H
#define CMOE_VERSION_H

#include <cmoe/export.h>

#define CMOE_VERSION_MAJOR  0
#define CMOE_VERSION_MINOR  1
#define CMOE_VERSION_PATCH  0
#define CMOE_VERSION_STRING "0.1.0"

CMOE_BEGIN_DECLS

/** Version of the library that is running, "0.1.0". */
CMOE_API const char *cmoe_version(void);

CMOE_END_DECLS

#endif
