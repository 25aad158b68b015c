/* SPDX-License-Identifier: MIT
 * The state of cmoe_reference while it computes one layer with its errors. */
#ifndef CMOE_BACKENDS_REF_LAYER_H
#define CMOE_BACKENDS_REF_LAYER_H

#include "stages/exec.h"

#define U 0x1p-24 /* u(f32) */

struct cmoe_layer_error {
    struct cmoe_shape shape;
    struct cmoe_exec x;
    double *hv, *hd, *hq; /* [rows, I]: intermediate, its error, its independent error */
    double *rd;           /* [rows]: error of the routing weight */
    double *w;            /* one decoded weight row */
    double *xv, *xd;      /* an expert's inputs [row, H] */
    double *gv, *gd, *gq; /* an expert's GEMM1 results [row, rows1], as for h */
    double *y, *bound;
    void *block; /* all of it */
};

/* Routing weight of a row in fp64. */
static inline double cmoe__layer_weight(const struct cmoe_layer_error *l, int64_t row)
{
    return (double)cmoe__exec_weight(&l->x, row);
}

/* GEMM1..GEMM2 and the weighted sum of every computed row: y and bound before the last rounding. */
void cmoe__layer_experts(struct cmoe_layer_error *l);

#endif
