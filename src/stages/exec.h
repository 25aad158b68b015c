/* SPDX-License-Identifier: MIT
 * What a kernel sees while it runs: the call's tensors and the buffers between stages.
 *
 * The stage contracts, for every backend (S slots a token, row = t*S + s, or e*capacity + r):
 *   ROUTE    reads logits (or x, router_w); writes ids, weights for all T tokens
 *   QUANT    reads tensors.x (and weights, smooth); writes xq, xs, xg. Only when shape.quant
 *   SORT     reads ids; writes rows, offsets: for each local expert its rows, ascending; clears progress
 *   GEMM1    for every row in the sort: gu[row] = x . w1 (scaled), times weight if WEIGHT_ON_GEMM1,
 *            plus b1. Rows that are not in the sort are neither written nor read, here and below
 *   ACT      h[row] = act(gu[row]), times weight if WEIGHT_ON_ACT; columns past i_used are 0
 *   REQUANT  h -> hq, hs, hg. Only when shape.requant
 *   GEMM2    z[row] = hq . w2 (scaled) + b2
 *   COMBINE  y[t] = accumulate*y[t] + sum over valid local slots in order of weight*z; NO_REDUCE:
 *            y[t, s]; columns past h_used are 0. Batched: y[row] = z[row]
 * NaN may reach values, never addresses: ids are checked with cmoe__exec_local before any use. */
#ifndef CMOE_STAGES_EXEC_H
#define CMOE_STAGES_EXEC_H

#include "core/threads.h"
#include "core/weights.h"
#include "stages/shape.h"
#include <cmoe/plan.h>

enum cmoe_region {
#define REGION(name, made, read) CMOE_REGION_##name,
#include "stages/region.def"
#undef REGION
    CMOE_REGION_SCRATCH, /* the running step's own */
    CMOE_REGION_COUNT,
};

/* Words of `progress` before those of the experts. */
enum { CMOE_PROGRESS = 160 };

struct cmoe_exec {
    const cmoe_problem *p;
    const struct cmoe_shape *shape;
    const cmoe_tensors *t;
    const cmoe_weights *w;
    struct cmoe_device *dev;
    struct cmoe_threads *threads;
    int n_threads;
    void *stream;
    int32_t tokens; /* T of this call, n_tokens_dev applied (host) */

    const void *x;    /* first row; the caller's x, also when quant makes xq */
    int64_t x_stride; /* bytes */
    void *y;
    int64_t y_stride; /* bytes between tokens (NO_REDUCE: between tokens' blocks of S rows) */

    /* Boundary buffers: the caller's at the plan's ends, else the workspace's */
    int32_t *ids;
    float *weights;
    void *xq, *xs; /* what GEMM1 reads: x itself when !shape.quant */
    float *xg;
    int64_t xq_stride; /* bytes from row to row of xq */
    int32_t *rows, *offsets;
    int32_t *progress; /* of devices: for kernels whose blocks wait for one another; NULL: none */
    float *gu;
    void *h;       /* rows are I elements apart */
    void *hq, *hs; /* = h when !shape.requant */
    float *hg;
    float *z;
    void *scratch;
    void *spent; /* device: the largest part of the workspace that the step before read last */
    size_t spent_bytes;
};

/* Local expert of id, or -1: outside [0, ids), outside the slice, or mapped to something invalid. */
int32_t cmoe__exec_local(const struct cmoe_exec *x, int32_t id);
/* Row of xq that row `row` reads. */
static inline int64_t cmoe__exec_x_row(const struct cmoe_exec *x, int64_t row)
{
    return x->shape->x_slots ? row : row / x->shape->slots;
}
/* Static NV global of x: beside codes that the caller gives, else what QUANT is told to use. */
static inline const float *cmoe__exec_x_static_global(const struct cmoe_exec *x)
{
    return x->shape->quant ? x->t->x_scale : x->t->x_global;
}
/* Whether slot `row` has an id in [0, ids), local or not. */
bool cmoe__exec_slot_counts(const struct cmoe_exec *x, int64_t row);
/* Whether token t has an id in [0, ids): the rows that dynamic tensor scales look at. */
bool cmoe__exec_token_counts(const struct cmoe_exec *x, int64_t t);
/* Routing weight of a row: 1 when batched or when the caller gave none. */
float cmoe__exec_weight(const struct cmoe_exec *x, int64_t row);

#endif
