/* SPDX-License-Identifier: MIT
 * Parallel loops over the caller's executor, the process's OpenMP runtime, or an own pool.
 *
 * A body must not depend on which thread runs it or on how many there are: work is cut by the
 * problem alone, which is what makes results the same for any number of threads. */
#ifndef CMOE_CORE_THREADS_H
#define CMOE_CORE_THREADS_H

#include <cmoe/context.h>
#include <stdbool.h>

struct cmoe_threads;

/* n_threads >= 1; run NULL: OpenMP if the process has it, else an own pool started on first use. */
cmoe_status cmoe__threads_create(cmoe_context *ctx, struct cmoe_threads **out);
void cmoe__threads_destroy(cmoe_context *ctx, struct cmoe_threads *threads);
int cmoe__threads_count(const struct cmoe_threads *threads);
const char *cmoe__threads_name(const struct cmoe_threads *threads);
/* Nodes that weights are divided among: those of the option `nodes`, or of the machine. */
int cmoe__threads_nodes(const struct cmoe_threads *threads);

/* body(arg, item, n_items) for every item in [0, n), spread over at most `limit` threads (0: all);
 * items are handed out dynamically. Returns when all are done. A call made while the own pool serves another
 * one runs on the calling thread. */
void cmoe__parallel(struct cmoe_threads *threads, int limit, int n, cmoe_body body, void *arg);

/* One fork for a whole chain of loops: body(arg, team) runs on `size` threads at once, which then
 * use cmoe__team_barrier and cmoe__team_next. Falls back to a team of one when the executor cannot
 * run bodies concurrently or is busy. */
struct cmoe_team {
    int size, rank;
    void *shared; /* barrier and counters, private to threads.c */
};
void cmoe__team_run(struct cmoe_threads *threads, int limit,
                    void (*body)(void *arg, struct cmoe_team *team), void *arg);
/* Every member waits until all have arrived. */
void cmoe__team_barrier(struct cmoe_team *team);
/* Members take the numbers 0, 1, 2 ... of one counter (0..7); a counter restarts at a barrier that
 * follows cmoe__team_reset by one member. Returns the next number. */
int cmoe__team_next(struct cmoe_team *team, int counter);
void cmoe__team_reset(struct cmoe_team *team, int counter);

/* The node whose share of a divided job a member takes: where the own pool's threads stay (threads_pool.h), else
 * neighbours are taken to be near each other. -1: every one's, when some node has no member. */
int cmoe__team_node(const struct cmoe_team *team, int nodes);
/* The next of nodes * n items for a member, -1 when none is left; item i belongs to node i / n. Takes the
 * counters from 0 on, one a node. */
int cmoe__team_take(struct cmoe_team *team, int nodes, int n);
/* The same of all of them for the next job, as cmoe__team_reset. */
void cmoe__team_restart(struct cmoe_team *team, int nodes);

/* CPUs this process may use: affinity mask and cgroup quota. At least 1. */
int cmoe__threads_default(void);

#endif
