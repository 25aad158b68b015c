/* SPDX-License-Identifier: MIT
 * Executors a caller may bring. `user` is NULL or an atomic_int that counts the jobs. */
#ifndef CMOE_TESTS_HARNESS_THREADS_H
#define CMOE_TESTS_HARNESS_THREADS_H

#include "core/context.h"

/* Most bodies of one job. */
enum { TEST_MOST_THREADS = 16 };

/* All bodies at once, each on its own new thread. */
void test_run_together(void *user, int n, cmoe_body body, void *arg);
/* One body after the other, last first. */
void test_run_in_turn(void *user, int n, cmoe_body body, void *arg);

#endif
