/* SPDX-License-Identifier: MIT
 * What the parts of the generator share while a call is made. */
#ifndef CMOE_CLI_GEN_STATE_H
#define CMOE_CLI_GEN_STATE_H

#include "cli/gen.h"

/* The values of EXACT inputs. All scales are powers of two.
 *
 * x[t, 0] and the first column of every scale group hold `plant`, the largest value of x's type
 * times a power of two: a dynamic scale comes out as a power of two. x[t, one] is 1; under nv16 it
 * lies in a block of its own with a 6, so that it stays 1. All others are 0, 1 or 2. A gate row has one code 4, so gate is 0 or large enough for every activation to be
 * the identity there; an up row has up to four codes 1 or 2. Where mid has a dynamic f32 scale,
 * the first row of every group of the intermediate is planted: gate reads column `one`, up column 0. */
struct gen_exact {
    float plant;
    int64_t one;          /* a column */
    float scale1, scale2; /* smaller one of the two scales of matrix 1 and 2 */
    float x_scale, mid_scale;
    bool plant_mid;
};

struct gen_state {
    struct gen_call *call;
    const cmoe_problem *p;
    struct gen_options options;
    struct gen_exact exact;
    int64_t T, S, ids, local, H, I, rows1, h_used, i_used;
    bool gated;
    bool loose; /* strides and where buffers start are drawn */
};

/* With one_expert: rows of x and of a matrix that are drawn. A multiple of 128, but of no
 * intermediate size, so that gate and up rows differ. */
enum { GEN_DRAWN_ROWS = 640 };

enum gen_purpose {
    GEN_FOR_LAYOUT = 1,
    GEN_FOR_X,
    GEN_FOR_ROUTE,
    GEN_FOR_MAP,
    GEN_FOR_Y,
    GEN_FOR_MATRIX1,
    GEN_FOR_UP,
    GEN_FOR_MATRIX2,
    GEN_FOR_PROBLEM,
};

struct gen_exact gen_exact_values(const cmoe_problem *p);
/* Columns [first, first + group) of the scale scopes of an activation format over n columns. */
int64_t gen_scope(cmoe_format f, int64_t n);
/* A largest magnitude of f's type that gives a power-of-two scale. */
float gen_plant(cmoe_format f);
bool gen_is_quantized(cmoe_format f);
/* A dynamic scale that is not a power of two by itself. */
bool gen_needs_plant(cmoe_format f);

/* From row to row of so many bytes, where that is not drawn. */
int64_t gen_row_stride(const struct gen_state *s, int64_t bytes);
/* A buffer between guard bytes; NULL without memory. Outputs are poisoned. */
void *gen_input(struct gen_state *s, int64_t bytes);
void *gen_output(struct gen_state *s, int64_t bytes);
/* From here on a change of an input is damage. */
void gen_seal_inputs(struct gen_call *call);

cmoe_status gen_weights(struct gen_state *s);
cmoe_status gen_routing(struct gen_state *s);
cmoe_status gen_rows(struct gen_state *s);
cmoe_status gen_outputs(struct gen_state *s);
/* Buffers for an order in the problem's format, made by gen_input or gen_output. */
cmoe_status gen_sort_buffers(struct gen_state *s, void *(*make)(struct gen_state *, int64_t));
/* The order in the problem's format, for plans that start at GEMM1. */
cmoe_status gen_sorted(struct gen_state *s);
/* The problem that the reference is given. */
cmoe_status gen_reference(struct gen_state *s);

#endif
