/* SPDX-License-Identifier: MIT
 * Measured chains of kernels for one problem and token count, and the lines of a tuned table that make a plan
 * take the fastest of them (docs/tuning.md). */
#ifndef CMOE_CLI_TUNE_H
#define CMOE_CLI_TUNE_H

#include "cli/session.h"

#include <stdio.h>

enum { TUNE_CHAINS = 256 };

struct tune_chain {
    char path[CLI_PATH_TEXT]; /* as cmoe_plan_path has it */
    double estimate, us;      /* of a call; us 0: not measured */
    bool confirmed;           /* measured for longer, by itself */
    double stage_us[CMOE_STAGE_COUNT];
};

struct tune_point {
    int64_t tokens;
    struct tune_chain chain[TUNE_CHAINS]; /* the first is what was planned */
    int n;
};

/* The chain with this path; NULL: none. */
struct tune_chain *tune_find(struct tune_point *point, const char *path);
/* Find or add; NULL when there are too many. */
struct tune_chain *tune_add(struct tune_point *point, const char *path, double estimate);
/* The fastest of those measured. */
const struct tune_chain *tune_best(const struct tune_point *point);
/* Chains that were not measured, by estimate; the planned one stays first. */
void tune_sort(struct tune_point *point);

/* The kernels of a chain as a pin: their names, comma separated. */
void tune_pin(const char *path, char *pin, size_t len);

/* A line for every row of a measured chain, so that the rows of each chain add up to its time: the fastest chain's time is
 * divided like its steps, of every other what is left goes to the rows that faster ones do not have.
 * @return the number of lines. */
int tune_print(FILE *out, const char *device, const cmoe_problem *p,
               const struct tune_point *point);

#endif
