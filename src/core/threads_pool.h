/* SPDX-License-Identifier: MIT
 * The library's own threads: started when first needed, parked when idle, one job at a time. */
#ifndef CMOE_CORE_THREADS_POOL_H
#define CMOE_CORE_THREADS_POOL_H

#include "core/numa.h"
#include <cmoe/context.h>
#include <stdbool.h>

struct cmoe_pool;

/* `size` counts the calling thread; `spin`: idle threads wait a while before they sleep. With more than one
 * node, thread i stays on the CPUs of node i % nodes, except for the calling thread, which is the
 * caller's; `numa` (NULL: none) outlives the pool. */
cmoe_status cmoe__pool_create(cmoe_context *ctx, int size, bool spin, const struct cmoe_numa *numa,
                              struct cmoe_pool **out);
void cmoe__pool_destroy(cmoe_context *ctx, struct cmoe_pool *pool);

/* Run body(arg, i, m) on m threads at once, the caller being number 0, with m as near to n as there
 * are threads. `together`: for every i in [0, m); else bodies that have not begun when the caller's
 * returns are left out: each does whatever work is left, and none is. False, with nothing run, when the pool serves another job (the
 * caller may itself be part of that one) or has no thread besides the caller. */
bool cmoe__pool_run(struct cmoe_pool *pool, int n, bool together, cmoe_body body, void *arg);

#endif
