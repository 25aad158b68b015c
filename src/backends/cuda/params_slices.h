/* SPDX-License-Identifier: MIT
 * Parameters of the kernels that take slices of experts: a slice is 256 bytes of every row of the second
 * matrix, and the rows of the first that make it. */
#ifndef CMOE_BACKENDS_CUDA_PARAMS_SLICES_H
#define CMOE_BACKENDS_CUDA_PARAMS_SLICES_H

#include "backends/cuda/params.h"
#include <cuda.h>

enum {
    CMOE_SLICE_MATH = 256,    /* threads that multiply */
    CMOE_SLICE_THREADS = 288, /* and a warp that asks for weights */
    CMOE_SLICE_CLUSTER = 8,   /* blocks that share a slice */
    CMOE_SLICE_TOKENS = 8,
    CMOE_SLICE_IDS = 64,
    CMOE_SLICE_BYTES = 256, /* of a row of the second matrix */
    CMOE_SLICE_SPAN = 128,  /* bytes of a row in a box: a swizzle span */
    CMOE_SLICE_STAGE = 16384,
    CMOE_SLICE_DOWN = 64, /* rows of the second matrix in a stage */
    CMOE_SLICE_STAGES = 12,
    CMOE_SLICE_LEAST_STAGES = 4,
    CMOE_SLICE_WIDEST = 8192,    /* columns of x */
    CMOE_SLICE_TAIL = 28 * 1024, /* bytes of shared memory beside stages and rows of x */
    CMOE_SLICE_PAD = 16,         /* bytes between rows of x */
};

/* Bits of a sum that is not there yet: a NaN that no addition makes. */
#define CMOE_SLICE_UNWRITTEN 0xffffffffu

typedef struct cmoe_gpu_slices {
    /* Gate and up, down, down for half a slice: (byte of a span, row, gate or up, span, expert) */
    CUtensorMap map[3];
    cmoe_gpu_call call;
    cmoe_problem p;
    const void *x;
    int64_t x_stride; /* bytes */
    int32_t x_dtype;
    int32_t spans;     /* of a row of x, 128 columns each where it is quantised, or 512 bytes */
    uint32_t per_span; /* 2^31 over spans, rounded up */
    int32_t slices;    /* of an expert */
    int32_t stages;    /* of the ring */
    int32_t stages1, stages2;          /* that a block takes of a slice's rows of both matrices */
    int32_t x_pitch;                   /* bytes of a row of x in shared memory */
    int32_t x_at, x_scale_at, tail_at; /* bytes of shared memory before them */
    const float *scale[3];             /* of expert 0's row of blocks 0 of each matrix's half */
    int64_t scale_stride[3];           /* bytes from expert to expert */
    int32_t blocks[2];                 /* scales of a row of either matrix */
    float *part;                       /* [cluster][token][hidden] */
    int32_t hidden, weigh;
    int32_t swapped; /* 1: up lies before gate */
    int32_t halves;  /* slices left after fewer rounds of clusters than this are halved */
} cmoe_gpu_slices;

typedef struct cmoe_gpu_slice_sum {
    cmoe_gpu_call call;
    const float *part;
    void *y;
    int64_t y_stride; /* bytes */
    float accumulate;
    int32_t hidden, dtype, clusters;
} cmoe_gpu_slice_sum;

#endif
