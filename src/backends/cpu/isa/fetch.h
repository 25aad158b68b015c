/* SPDX-License-Identifier: MIT
 * What a tile asks the caches for beside its work: its share of the weights that come next, a few lines at
 * every step of k, or, where it is the only one over a panel, what it reads itself soon. */
#ifndef CMOE_BACKENDS_CPU_ISA_FETCH_H
#define CMOE_BACKENDS_CPU_ISA_FETCH_H

#include "backends/cpu/ops.h"
#include "core/attr.h"

enum { FETCH_MOST = 4 /* lines of a step */ };

/* Every steps-th line from the first-th on: all at once would fill the buffers that loads need. No loop, whose
 * turns would cost more than the lines; `first` and `steps` are constants after inlining. */
CMOE_INLINE void fetch(struct cmoe_cpu_ahead ahead, int first, int steps)
{
    const char *const at = (const char *)ahead.at + 64 * first;
    if (ahead.lines <= first) return;
    __builtin_prefetch(at, 0, 2);
    CMOE_UNROLL
    for (int i = 1; i < FETCH_MOST; i++) {
        if (ahead.lines <= first + i * steps) return;
        __builtin_prefetch(at + 64 * i * steps, 0, 2);
    }
}

/* What lies as far ahead of `at` as memory takes to answer: into the first cache, line after line, since every
 * second one first costs 6 % of the speed of reading and the second cache as much. */
CMOE_INLINE void fetch_soon(const char *at, int bytes)
{
    CMOE_UNROLL
    for (int i = 0; i < bytes; i += 64)
        __builtin_prefetch((const void *)((uintptr_t)at + CMOE_CPU_STREAM_AHEAD + (unsigned)i), 0,
                           3);
}

#endif
