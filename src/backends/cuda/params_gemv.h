/* SPDX-License-Identifier: MIT
 * Parameters of the kernels that take a handful of tokens without a sort: a GEMM, what lies on both
 * sides of it, and how its work is cut. */
#ifndef CMOE_BACKENDS_CUDA_PARAMS_GEMV_H
#define CMOE_BACKENDS_CUDA_PARAMS_GEMV_H

#include "backends/cuda/params.h"

enum {
    CMOE_GEMV_THREADS = 384,
    CMOE_GEMV_ROWS = 128, /* slots of all tokens */
    CMOE_GEMV_DEPTH = 5,  /* steps of a warp of GEMM1 in flight */
    CMOE_GEMV_CODES = 1024,
    CMOE_GEMV_SCALES = 256, /* bytes of a step: 8 rows of 128, and of 8 words */
};

/* Weights that are not told apart by the type of their codes alone: e2m1 under NV scales, e4m3 under MX. */
enum {
    CMOE_GEMV_NV = 64,
    CMOE_GEMV_MX8 = 65,
};

/* One half of all experts whose rows, scales and biases lie at one distance from the next expert's. */
typedef struct cmoe_gpu_rows {
    const uint8_t *data, *scale;
    const float *bias;
    int64_t row_stride, expert_stride, scale_stride, bias_stride; /* bytes */
    int32_t first, step;
} cmoe_gpu_rows;

/* A handful of tokens without a sort: a GEMM whose warps own outputs, and what lies on both sides of it. */
typedef struct cmoe_gpu_gemv {
    cmoe_gpu_gemm g;
    cmoe_problem p;
    const void *from;   /* rows before they are quantised: tokens for GEMM1, slots for GEMM2 */
    const float *fixed; /* their given scale, or NULL */
    int64_t from_stride, out_stride; /* bytes */
    void *out;                       /* h by slots, or y */
    cmoe_gpu_rows half[2];           /* gate and up, or down; if not strided, g.experts says */
    int32_t strided;
    int32_t
        plain; /* strided, whole aligned pieces, scales as the type of w has them, no zero points */
    int32_t from_dtype, out_dtype;
    int32_t columns, used; /* outputs of a half; of those that are not 0 */
    int32_t gated, vectors, from_vectors, weigh;
    int32_t strips;         /* tiles of a slot (GEMM1) or a token (GEMM2) */
    int32_t pieces, steps;  /* of 16 and of 128 bytes of a row of weights */
    uint32_t per_span;      /* 2^31 over the spans of a row of x, rounded up */
    int32_t spans, x_shift; /* factors of a row of x; log2 of the columns that share one */
    int32_t scales, shift,
        grid_shift;      /* of a row of weights; log2 of the columns, and rows, of one */
    int32_t step_scales; /* of a row's step */
    int32_t scale_type, scale_bytes;
    int32_t x_at, factor_at, amax_at, part_at; /* bytes of shared memory before them */
    float accumulate;
    int32_t route_floats; /* a call that routes: of shared memory for a token */
    int32_t depth;        /* steps of a warp in flight */
    int32_t release;      /* GEMM1: steps that a warp has yet to ask for when GEMM2 may start */
    int32_t wide;         /* large experts: L2 brings 256 bytes of a row at once */
} cmoe_gpu_gemv;

#endif
