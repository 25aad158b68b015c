/* SPDX-License-Identifier: MIT
 * The version of the library that is running. */
#include <cmoe/version.h>

const char *cmoe_version(void)
{
    return CMOE_VERSION_STRING;
}
