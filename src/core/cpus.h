/* SPDX-License-Identifier: MIT
 * CPUs that this process may use, by its affinity mask and by the quotas of its control groups. */
#ifndef CMOE_CORE_CPUS_H
#define CMOE_CORE_CPUS_H

#include <sched.h>
#include <stdbool.h>

enum { CMOE_CPUS = 8192 /* most CPUs */ };

/* As large as the kernel's masks may be. */
struct cmoe_cpus {
    cpu_set_t set[CMOE_CPUS / CPU_SETSIZE];
};

/* CPUs that the calling thread may run on; none when the kernel does not tell. */
struct cmoe_cpus cmoe__cpus_allowed(void);

/* CPUs that this process's control groups allow, rounded up; 0: no limit. Files are looked for
 * below `root`, "" outside tests. */
int cmoe__cpu_quota(const char *root);

/* First line of a file, without its newline. */
bool cmoe__read_line(const char *path, char *line, int size);

#endif
