/* SPDX-License-Identifier: MIT
 * Parameters of the Hopper kernels: those of any GEMM, the weights' tensor maps, and how the work is
 * cut. Apart from params.h because CUtensorMap comes from cuda.h. */
#ifndef CMOE_BACKENDS_CUDA_PARAMS_SM90A_H
#define CMOE_BACKENDS_CUDA_PARAMS_SM90A_H

#include "backends/cuda/params.h"
#include <cuda.h>

enum {
    CMOE_WGMMA_MATH = 256,    /* threads that multiply: two warpgroups */
    CMOE_WGMMA_THREADS = 384, /* and one warpgroup that loads */
    CMOE_WGMMA_SPAN = 128,    /* bytes of a row that one pipeline stage holds: a swizzle span */
    CMOE_WGMMA_HALF = 128,    /* weight rows of one of a stage's two boxes */
    CMOE_WGMMA_STAGES = 8,
    CMOE_WGMMA_MOST_N = 160,     /* rows of x in a tile */
    CMOE_WGMMA_SCALED_N = 96,    /* and where each span's sums are scaled by themselves */
    CMOE_WGMMA_PAIR_N = 80,      /* the same in a kernel of both GEMMs */
    CMOE_WGMMA_MOST_H = 1 << 14, /* columns of h that such a kernel puts under one scale */
    CMOE_WGMMA_ROWS = 128,       /* rows of x in a tile whose M operand they are */
    CMOE_WGMMA_EXPERTS = 1024,   /* the table of tiles lies in shared memory */
    CMOE_WGMMA_TAIL = 21 * 1024, /* shared memory besides the stages */
    CMOE_WGMMA_SCALED_TAIL = 30 * 1024,
};

typedef struct cmoe_gpu_wgmma {
    CUtensorMap map[2]; /* both boxes of a stage: (k, row, expert) */
    cmoe_gpu_gemm g;
    int32_t tma;      /* map describes the weights; 0: they are read element by element */
    int32_t vectors;  /* rows of x can be copied 16 bytes at a time */
    int32_t gated;    /* box 0 is gate rows, box 1 up rows of the same units; else 2 x 128 rows */
    int32_t out_used; /* weight rows that count (gated: of either half) */
    int32_t out_cols; /* columns to write (gated: of either half); from out_used on they are 0 */
    int32_t tile_n;   /* most rows of x in a tile */
    int32_t m_tiles;  /* tiles along the weights' rows */
    int32_t stages;   /* of the ring */
    int32_t cluster;  /* blocks, 1 or 2, that share a tile of weights between rows of x */
    int32_t ahead;    /* the sort is complete when the kernel before this one starts */
    /* No bias, weights or limit, whole tiles, aligned rows: the sums, or silu(gate)*up. */
    int32_t plain;
    int32_t weigh_act;        /* multiply the activation's result by the routing weight */
    float alpha, beta, limit; /* gate*sigmoid(alpha*gate)*(up + beta), clamped at limit first */
    float *mid_scales;        /* of the result as e4m3, one a row and 128 units */
    int64_t mid_scale_stride; /* elements */
} cmoe_gpu_wgmma;

/* A GEMM whose M operand is rows of x. */
typedef struct cmoe_gpu_rows {
    cmoe_gpu_wgmma gemm;
    int32_t *taken; /* tiles, beyond every block's first: a word of progress (params.h) */
} cmoe_gpu_rows;

/* Both GEMMs in one kernel; the first with its activation, both with tiles of the same rows. */
typedef struct cmoe_gpu_wgmma_pair {
    cmoe_gpu_wgmma gemm[2];
    int32_t *progress; /* params.h; SORT has cleared it */
    int32_t each;      /* tiles of GEMM2 that a block takes at a time */
    int32_t early;     /* stages of weights on their way to L2 before SORT ends */
    /* With one scale a row of h: rounds of quantising taken, of each expert; warps that share a row, a
     * power of two; whether rows of f32 are whole lines of 128 bytes; rounds of who stores the last tile. */
    int32_t *turns;
    int32_t row_warps, lines, first_rounds;
    /* Not 0: a combine runs beside, so GEMM2 counts tiles stored by strip of columns, and so many blocks leave
     * their multiprocessors to it. */
    int32_t strips, leave;
} cmoe_gpu_wgmma_pair;

/* COMBINE beside the kernel of both GEMMs: strips of columns, of which that tells when all rows are stored, in tiles
 * of at most tile_n rows. */
typedef struct cmoe_gpu_beside {
    cmoe_gpu_combine c;
    int32_t *progress;
    int32_t strips, tile_n;
} cmoe_gpu_beside;

#endif
