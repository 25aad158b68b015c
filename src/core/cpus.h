/* SPDX-License-Identifier: MIT
 * What the kernel says in small files: CPU quotas of control groups. */
#ifndef CMOE_CORE_CPUS_H
#define CMOE_CORE_CPUS_H

#include <stdbool.h>

/* CPUs that this process's control groups allow, rounded up; 0: no limit. Files are looked for
 * below `root`, "" outside tests. */
int cmoe__cpu_quota(const char *root);

/* First line of a file, without its newline. */
bool cmoe__read_line(const char *path, char *line, int size);

#endif
