/* SPDX-License-Identifier: MIT
 * The plan object: one path of steps and one workspace layout for every bucket of token counts. */
#ifndef CMOE_PLAN_PLAN_H
#define CMOE_PLAN_PLAN_H

#include "backends/backend.h"
#include "core/arena.h"
#include "plan/kernel.h"

enum {
    CMOE_PLAN_BUCKETS = 32,                 /* token counts 2^0 .. 2^31 */
    CMOE_PLAN_STEPS = CMOE_STAGE_COUNT + 4, /* stages and conversions at both ends */
    CMOE_PLAN_FORMATS = 16,                 /* weight formats considered for one matrix */
};

struct cmoe_path {
    int tokens; /* upper end of the bucket */
    int n_steps;
    double cost_us;
    double regret; /* log(cost / best over all weight formats) */
    struct cmoe_step step[CMOE_PLAN_STEPS];
    struct cmoe_arena arena;
};

struct cmoe_plan {
    cmoe_context *ctx;
    cmoe_device *dev;
    cmoe_problem p;
    struct cmoe_shape shape;
    struct cmoe_props props;       /* the device's, with the plan's thread count */
    const cmoe_weights *w;         /* NULL: in cmoe_tensors */
    char *pin;                     /* or NULL */
    bool *pinned;                  /* [rows] whether the pin names the row; NULL: no pin */
    double *tuned;                 /* [rows][buckets] us, negative: not measured; NULL: no table */
    const char *format1, *format2; /* read by the paths; NULL: no step reads that matrix */
    int n_buckets;
    struct cmoe_path *path; /* [n_buckets] */
    int chunk;              /* tokens a pass of execute takes: max_tokens, or less under a limit */
    size_t workspace;
};

/* Smallest bucket whose upper end holds n tokens (n >= 1). */
int cmoe__plan_bucket(int64_t n);
/* Upper end of bucket b, at most max_tokens. */
int cmoe__plan_bucket_tokens(const cmoe_problem *p, int b);

/* The boundary a plan starts and ends at. */
struct cmoe_edge cmoe__plan_first_edge(const cmoe_problem *p);
struct cmoe_edge cmoe__plan_last_edge(const cmoe_problem *p);
/* Whether a stage has nothing to do in this problem (QUANT, REQUANT). */
bool cmoe__plan_skips(const struct cmoe_shape *s, int stage);

/* What rows are asked about: the plan for this number of tokens. */
struct cmoe_query cmoe__plan_query(const struct cmoe_plan *plan, int tokens);
/* Cheapest path for `tokens` among rows that read weights in (format1, format2) ("": any). Returns
 * its cost, infinite when there is none; fills *out when not NULL. */
double cmoe__path_search(const struct cmoe_plan *plan, int tokens, const char *format1,
                         const char *format2, struct cmoe_path *out);
/* The steps of another path for `tokens`; false where a row does not run that many. */
bool cmoe__path_repeat(const struct cmoe_plan *plan, int tokens, const struct cmoe_path *from,
                       struct cmoe_path *out);
/* All checks that come before a family's own: target, weight format. */
bool cmoe__kernel_usable(const struct cmoe_kernel *k, const struct cmoe_query *q,
                         struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why);

/* Book every boundary buffer and the steps' scratch of a path; place them. */
cmoe_status cmoe__plan_book(const struct cmoe_plan *plan, struct cmoe_path *path);

/* Whether weights fit the plan's problem and, once chosen, its formats; else CMOE_ERR_MISMATCH. */
cmoe_status cmoe__plan_check_weights(const struct cmoe_plan *plan, const cmoe_weights *w);

/* Rows of all compiled backends, one list. */
const struct cmoe_kernel *cmoe__kernel_at(int i, const struct cmoe_backend **backend);

#endif
