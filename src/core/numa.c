/* SPDX-License-Identifier: MIT
 * Memory nodes as the kernel lists them below /sys/devices/system/node. Nodes without CPUs that this
 * process may use are not counted: nobody there would read what is put near them. */
#include "core/numa.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LIST = 4096 /* of a file: one page */ };

/* A list like "0-3,8,10-11"; false: it is something else. */
static bool parse_list(const char *text, struct cmoe_cpus *out)
{
    memset(out, 0, sizeof *out);
    while (*text) {
        char *end;
        const long first = strtol(text, &end, 10);
        if (end == text) return false;
        long last = first;
        if (*end == '-') {
            text = end + 1;
            last = strtol(text, &end, 10);
            if (end == text) return false;
        }
        if (first < 0 || last < first || last >= CMOE_CPUS) return false;
        for (long i = first; i <= last; i++)
            CPU_SET_S((size_t)i, sizeof out->set, out->set);
        if (*end && *end != ',') return false;
        text = *end ? end + 1 : end;
    }
    return true;
}

static bool read_list(const char *path, struct cmoe_cpus *out)
{
    char line[LIST];
    return cmoe__read_line(path, line, sizeof line) && parse_list(line, out);
}

/* Allowed CPUs of one node; false: none, or nobody knows. */
static bool node_cpus(const char *root, int node, const struct cmoe_cpus *allowed,
                      struct cmoe_cpus *out)
{
    char path[512];
    struct cmoe_cpus own;
    snprintf(path, sizeof path, "%s/sys/devices/system/node/node%d/cpulist", root, node);
    if (!read_list(path, &own)) return false;
    CPU_AND_S(sizeof out->set, out->set, own.set, allowed->set);
    return CPU_COUNT_S(sizeof out->set, out->set) > 0;
}

void cmoe__numa_read(const char *root, const struct cmoe_cpus *allowed, struct cmoe_numa *out)
{
    char path[512];
    struct cmoe_cpus online, cpus;
    int found = 0, at = 0;
    memset(out, 0, sizeof *out);
    out->nodes = 1;
    snprintf(path, sizeof path, "%s/sys/devices/system/node/online", root);
    if (!read_list(path, &online)) return;
    for (int i = 0; i < CMOE_CPUS; i++)
        if (CPU_ISSET_S((size_t)i, sizeof online.set, online.set))
            found += node_cpus(root, i, allowed, &cpus);
    if (found < 2) return;
    out->nodes = found < CMOE_NODES ? found : CMOE_NODES;
    for (int i = 0; i < CMOE_CPUS; i++) {
        if (!CPU_ISSET_S((size_t)i, sizeof online.set, online.set)) continue;
        if (!node_cpus(root, i, allowed, &cpus)) continue;
        struct cmoe_cpus *const group = &out->cpus[at++ * out->nodes / found];
        CPU_OR_S(sizeof group->set, group->set, group->set, cpus.set);
    }
}
