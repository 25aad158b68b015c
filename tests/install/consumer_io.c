/* SPDX-License-Identifier: MIT
 * The smallest use of an installed libcmoe-io: a damaged array is refused, in words. */
#include <stdio.h>

#include <cmoe/io.h>

int main(void)
{
    cmoe_array array;
    const cmoe_status status = cmoe_npy_parse("not an array", 12, &array);
    printf("cmoe-io %s, %s\n", cmoe_version(), cmoe_last_error());
    return status != CMOE_ERR_CORRUPT;
}
