/* SPDX-License-Identifier: MIT
 * The smallest use of an installed libcmoe: headers found, library linked, versions agree. */
#include <stdio.h>
#include <string.h>

#include <cmoe/cmoe.h>

int main(void)
{
    cmoe_problem problem;
    cmoe_problem_init(&problem);
    printf("cmoe %s, %s\n", cmoe_version(), cmoe_status_name(CMOE_OK));
    return strcmp(cmoe_version(), CMOE_VERSION_STRING) != 0;
}
