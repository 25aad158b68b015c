/* SPDX-License-Identifier: MIT
 * Borrowing the OpenMP runtime of the process: two runtimes' idle threads fight for the same CPUs,
 * so where a host program already has one, its threads are used. Never loads one. */
#ifndef CMOE_CORE_THREADS_OPENMP_H
#define CMOE_CORE_THREADS_OPENMP_H

#include <cmoe/context.h>
#include <stdbool.h>

struct cmoe_openmp {
    void *library; /* NULL: none found */
    void (*parallel)(void (*body)(void *arg), void *arg, unsigned n, unsigned flags);
    int (*thread)(void), (*threads)(void), (*inside)(void);
    int process; /* the runtime does not survive a fork */
    char name[64];
};

/* Look for a runtime among the libraries that are mapped. */
bool cmoe__openmp_find(struct cmoe_openmp *omp);
void cmoe__openmp_release(struct cmoe_openmp *omp);

/* Run body(arg, i, m) for i in [0, m), m <= n chosen by the runtime, all at once. False, with
 * nothing run, inside a parallel region or in a forked child. */
bool cmoe__openmp_run(const struct cmoe_openmp *omp, int n, cmoe_body body, void *arg);

#endif
