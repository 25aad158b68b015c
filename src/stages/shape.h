/* SPDX-License-Identifier: MIT
 * Sizes that follow from a problem, computed once and used by every stage. */
#ifndef CMOE_STAGES_SHAPE_H
#define CMOE_STAGES_SHAPE_H

#include <cmoe/problem.h>
#include <stdbool.h>
#include <stddef.h>

struct cmoe_shape {
    int32_t slots; /* S: slots a token (topk + shared; E for ROUTE_ALL; 1 batched, m-indices) */
    int32_t ids;   /* valid ids are [0, ids): experts + shared */
    int32_t local; /* E_local: experts whose weights are here */
    int64_t H, I;  /* strides */
    int64_t h_used, i_used; /* columns that count */
    int64_t rows1;          /* rows of matrix 1: 2I or I */
    bool gated;
    bool batched; /* rows are e*capacity + r; there are no tokens */
    bool
        x_slots; /* GEMM1 reads one x row a slot (smooth, weight on input, batched), else a token */
    bool x_given;   /* x arrives in format x: X_QUANTIZED, or a plan that starts after QUANT */
    bool quant;     /* QUANT has something to do: x is not read in place */
    bool requant;   /* REQUANT has something to do */
    bool m_indices; /* the caller sorted: one local expert id a row */
    bool route_all;
};

void cmoe__shape(const cmoe_problem *p, struct cmoe_shape *s);

/* Rows of the slot-ordered buffers for `tokens` tokens: tokens*S, or E_local*capacity. */
int64_t cmoe__shape_rows(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens);
/* Of these, how many the local experts are expected to have. */
double cmoe__shape_local_rows(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens);

/* Element type of ACT's result: f32 when mid is quantised, else mid's type. */
cmoe_dtype cmoe__shape_h_dtype(const cmoe_problem *p);
/* Format in which GEMM1 reads x: p->x, or `in` unscaled when x is unquantised. */
bool cmoe__format_is_quantized(cmoe_format f);

/* Flops and bytes of a stage for costs: tokens routed uniformly, each expert's weights read once. */
double cmoe__stage_flops(const cmoe_problem *p, int stage, int64_t tokens);
double cmoe__stage_bytes(const cmoe_problem *p, int stage, int64_t tokens);
/* Bytes of one expert's matrix with its scales. */
double cmoe__expert_bytes(const cmoe_problem *p, int matrix);
/* Experts hit on average by tokens*topk uniform choices. */
double cmoe__experts_hit(const cmoe_problem *p, int64_t tokens);

#endif
