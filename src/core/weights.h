/* SPDX-License-Identifier: MIT
 * The weights object, and how a logical row of a weight matrix is found and decoded. */
#ifndef CMOE_CORE_WEIGHTS_H
#define CMOE_CORE_WEIGHTS_H

#include "core/context.h"
#include <cmoe/weights.h>
#include <stdbool.h>

/* A packed form of one expert's matrix 1 (gate|up) or 2 (down); one const object a format. */
struct cmoe_packing_format {
    const char *name; /* "p32" ... ; never "canonical" or "none" */
    /* Whether weights of problem p can take this form; else a clause in why[len]. */
    bool (*holds)(const cmoe_problem *p, int matrix, char *why, size_t len);
    /* An expert is a number of panels of equal size, each some of its outputs. */
    int64_t (*panels)(const cmoe_problem *p, int matrix);
    size_t (*panel_bytes)(const cmoe_problem *p, int matrix);
    /* Write panels [first, end) of one expert. `w` has its canonical tables set. Called in parallel. */
    void (*pack)(const cmoe_weights *w, int matrix, int expert, int64_t first, int64_t end,
                 void *dst);
};

/* Packed experts of one matrix. Each node has a region of its own with its share of every expert's panels,
 * so that pages are touched, and read, by its threads alone. */
struct cmoe_packed {
    void *data;
    int nodes;      /* regions */
    int64_t panels; /* of an expert; node i has [panels * i / nodes, panels * (i + 1) / nodes) */
    size_t panel_bytes, /* of a panel */
        stride,         /* from expert to expert in a region */
        region;         /* from region to region */
};

struct cmoe_weights {
    cmoe_context *ctx;
    cmoe_problem p; /* as created */
    int32_t experts;
    bool has[2]; /* matrix 1, 2 was given; a plan of GEMM1 alone needs no matrix 2 */
    /* Canonical tables. GATE_SPLIT given fused: up[e] is NULL data and gate holds both halves. */
    cmoe_matrix *gate, *up, *down;
    const struct cmoe_packing_format *format[2]; /* NULL: canonical */
    struct cmoe_packed packed[2];
    float *vectors[2]; /* biases and smooth vectors of packed matrices, copied */
    size_t owned;      /* bytes of packed and vectors */
    cmoe_device *dev;  /* whose memory the tables point to */
    void *state;       /* the backend's own */
    void *memory;      /* of an upload: the device's, freed with the object */
};

/* Where logical row n of matrix 1 or 2 of an expert lies. Matrix 1's logical order is always gate
 * rows [0, I), then up rows [I, 2I), whatever the storage. Matrix 2 has rows [0, H). */
struct cmoe_row {
    const void *codes;
    int64_t col_stride;  /* bytes; 0: contiguous */
    const void *scale;   /* first scale of the row; NULL: none */
    const uint8_t *zero; /* first zero point of the row; NULL: none (u4: 8, u8: 128) */
    float global;        /* NV; else 1 */
};
void cmoe__weights_row(const cmoe_weights *w, int matrix, int expert, int64_t n,
                       struct cmoe_row *out);
/* Refuse a canonical matrix [rows, cols] that lacks a pointer f needs or whose strides are too small;
 * `name` begins the sentence: "gate_up of expert 3". Bias and smooth are not looked at. */
cmoe_status cmoe__matrix_check(cmoe_format f, const cmoe_matrix *m, int64_t rows, int64_t cols,
                               const char *name);
/* A physical row of one canonical matrix [.., cols]; grid: its row of block scales (BLOCK). */
void cmoe__matrix_row(cmoe_format f, const cmoe_matrix *m, int64_t row, int64_t grid, int64_t cols,
                      struct cmoe_row *out);
/* Bias of logical row n, 0 when the problem has none. */
float cmoe__weights_bias(const cmoe_weights *w, int matrix, int expert, int64_t n);
/* Smooth vector of matrix 1 or 2, NULL when none. */
const float *cmoe__weights_smooth(const cmoe_weights *w, int matrix, int expert);

/* Columns [0, n) of a row of format f, exact (f32 output: scaled code rounded once). */
void cmoe__row_decode_f64(cmoe_format f, const struct cmoe_row *row, int64_t n, double *out);
void cmoe__row_decode_f32(cmoe_format f, const struct cmoe_row *row, int64_t n, float *out);

/* First panel of a node's share; of `nodes`: the end. */
static inline int64_t cmoe__packed_first(const struct cmoe_packed *p, int node)
{
    return p->panels * node / p->nodes;
}

/* A panel of an expert, only when format[matrix - 1] is set; those after it follow as far as its node's share
 * goes. */
void *cmoe__weights_panel(const cmoe_weights *w, int matrix, int expert, int64_t panel);

#endif
