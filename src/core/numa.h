/* SPDX-License-Identifier: MIT
 * Memory nodes of the machine: what of its memory is near to which CPUs. */
#ifndef CMOE_CORE_NUMA_H
#define CMOE_CORE_NUMA_H

#include <sched.h>

enum {
    CMOE_NODES = 8,   /* most nodes that weights are divided among */
    CMOE_CPUS = 8192, /* most CPUs */
};

/* As large as the kernel's masks may be. */
struct cmoe_cpus {
    cpu_set_t set[CMOE_CPUS / CPU_SETSIZE];
};

struct cmoe_numa {
    int nodes; /* at least 1 */
    struct cmoe_cpus
        cpus[CMOE_NODES]; /* of each, among the allowed ones; empty when there is one */
};

/* CPUs that the calling thread may run on; none when the kernel does not tell. */
struct cmoe_cpus cmoe__cpus_allowed(void);

/* Nodes that have allowed CPUs; neighbours are joined when there are too many. Anything unreadable makes
 * it one node. Files are looked for below `root`, "" outside tests. */
void cmoe__numa_read(const char *root, const struct cmoe_cpus *allowed, struct cmoe_numa *out);

#endif
