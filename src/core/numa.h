/* SPDX-License-Identifier: MIT
 * Memory nodes of the machine: what of its memory is near to which CPUs. */
#ifndef CMOE_CORE_NUMA_H
#define CMOE_CORE_NUMA_H

#include "core/cpus.h"

enum { CMOE_NODES = 8 /* most nodes that weights are divided among */ };

struct cmoe_numa {
    int nodes; /* at least 1 */
    struct cmoe_cpus
        cpus[CMOE_NODES]; /* of each, among the allowed ones; empty when there is one */
};

/* Nodes that have allowed CPUs; neighbours are joined when there are too many. Anything unreadable makes
 * it one node. Files are looked for below `root`, "" outside tests. */
void cmoe__numa_read(const char *root, const struct cmoe_cpus *allowed, struct cmoe_numa *out);

#endif
