/* SPDX-License-Identifier: MIT
 * What a tile asks the caches for beside its work: its share of the weights that come next, a few lines at
 * every step of k, or, where it is the only one over a panel, what it reads itself soon. */
#ifndef CMOE_BACKENDS_CPU_ISA_FETCH_H
#define CMOE_BACKENDS_CPU_ISA_FETCH_H

#include "backends/cpu/ops.h"
#include "core/attr.h"
#include <stdint.h>

enum { FETCH_MOST = 4 /* lines of a step */ };

/* The line that `at` lies in, for the first cache or the second. As instructions: compilers move what they know
 * as a prefetch, gather a chunk's sixteen in front of its products, and a burst waits where single ones do not
 * (docs/perf-log-cpu.md, 34). */
CMOE_INLINE void fetch_line(uintptr_t at, bool first)
{
#if defined CMOE_ISA_AVX512 || defined CMOE_ISA_AVX2
    const char *const p = (const char *)at;
    if (first)
        __asm__ volatile("prefetcht0 %0" : : "m"(*p));
    else
        __asm__ volatile("prefetcht1 %0" : : "m"(*p));
#else
    if (first)
        __builtin_prefetch((const void *)at, 0, 3);
    else
        __builtin_prefetch((const void *)at, 0, 2);
#endif
}

/* The lines of a group's scales `ahead` of it; those of its codes are not all there are. */
CMOE_INLINE void fetch_scales(const char *group, uintptr_t ahead, int64_t bytes, bool first)
{
    fetch_line((uintptr_t)group + ahead, first);
    for (int64_t at = 64; at < bytes; at += 64)
        fetch_line((uintptr_t)group + ahead + (uintptr_t)at, first);
}

/* Every steps-th line from the first-th on: all at once would fill the buffers that loads need. No loop, whose
 * turns would cost more than the lines; `first` and `steps` are constants after inlining. */
CMOE_INLINE void fetch(struct cmoe_cpu_ahead ahead, int first, int steps)
{
    const uintptr_t at = (uintptr_t)ahead.at + 64U * (unsigned)first;
    if (ahead.lines <= first) return;
    fetch_line(at, true);
    CMOE_UNROLL
    for (int i = 1; i < FETCH_MOST; i++) {
        if (ahead.lines <= first + i * steps) return;
        fetch_line(at + 64U * (unsigned)(i * steps), true);
    }
}

/* What lies as far ahead of `at` as memory takes to answer: into the first cache, line after line, since every
 * second one first costs 6 % of the speed of reading and the second cache as much. */
CMOE_INLINE void fetch_soon(const char *at, int bytes)
{
    CMOE_UNROLL
    for (int i = 0; i < bytes; i += 64)
        fetch_line((uintptr_t)at + CMOE_CPU_STREAM_AHEAD + (unsigned)i, true);
}

#endif
