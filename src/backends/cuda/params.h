/* SPDX-License-Identifier: MIT
 * What host and device agree on: one plain struct a kernel, passed by value. Included from C and
 * from CUDA; sizes are asserted on both sides through the same header. */
#ifndef CMOE_BACKENDS_CUDA_PARAMS_H
#define CMOE_BACKENDS_CUDA_PARAMS_H

#include <cmoe/problem.h>

/* One half of an expert's matrix: the gate rows, the up rows, or all rows of the second matrix.
 * Logical row n of the half lies n * row_stride bytes from data; its block-scale row is
 * (n * step + first) / 128, its scale, zero and bias row n * step + first. */
typedef struct cmoe_gpu_half {
    const uint8_t *data;
    const void *scale;
    const uint8_t *zero;
    const float *global;
    const float *bias;
    int64_t row_stride, col_stride; /* bytes; col_stride 0: contiguous */
    int32_t first, step;
} cmoe_gpu_half;

typedef struct cmoe_gpu_expert {
    cmoe_gpu_half half[3]; /* gate, up, down */
    const float *smooth[2];
} cmoe_gpu_expert;

/* Words of exec.h's progress: tiles that blocks have taken, halves of GEMM1's tiles that are done, of all
 * experts and from EXPERTS on of each; pieces of z that a combine beside them has taken, and from STRIPS on
 * halves of GEMM2's tiles that are stored, by strip of columns. A line each for what is written all the time. With
 * a kernel for each GEMM, the first two are their tiles taken. */
enum {
    CMOE_PROGRESS_TAKEN = 0,
    CMOE_PROGRESS_DONE = 32,
    CMOE_PROGRESS_COMBINED = 64,
    CMOE_PROGRESS_STRIPS = 96,
    CMOE_PROGRESS_EXPERTS = 160,
};

/* Rows and ids of a call, read by every kernel. */
typedef struct cmoe_gpu_call {
    const int32_t *n_tokens_dev; /* or NULL */
    const int32_t *ids;
    const float *weights;      /* or NULL: 1 */
    const int32_t *expert_map; /* or NULL */
    const int32_t *rows, *offsets;
    const int32_t *counts; /* batched: valid rows of each expert */
    int32_t tokens, slots, n_ids, local, routed_local, expert_first, experts, capacity;
    int32_t local_ids, batched, x_slots;
} cmoe_gpu_call;

typedef struct cmoe_gpu_route {
    cmoe_gpu_call call;
    cmoe_problem p;
    const void *logits, *x;
    int64_t logits_stride, x_stride; /* elements, bytes */
    const float *router_w, *router_b, *bias;
    const int32_t *hash_table;
    const int64_t *token_ids;
    int64_t vocab;
    int32_t *ids;
    float *weights;
    float *scratch; /* ROUTE_FROM_X: logits [T, columns] f32 */
    int32_t columns, h_used;
} cmoe_gpu_route;

/* Columns of rows that fewer registers hold. */
enum { CMOE_QUANT_SHORT = 2048 };

typedef struct cmoe_gpu_quant {
    cmoe_gpu_call call;
    cmoe_format f;
    const cmoe_gpu_expert *experts;
    const void *in;                              /* rows to quantise */
    int64_t in_stride, out_stride, scale_stride; /* bytes */
    void *codes, *scales;
    float *globals;
    const float *fixed;
    uint32_t *amax; /* dynamic tensor scale: bits of the running maximum */
    int32_t n, n_used;
    int32_t in_dtype, round_dtype; /* round_dtype: CMOE_NONE, or rounded to it first */
    int32_t weigh, smooth;         /* multiply by the routing weight; smooth vector 1, 2 or 0 */
    int32_t sorted; /* rows come from the sort (REQUANT), else from tokens or slots */
} cmoe_gpu_quant;

typedef struct cmoe_gpu_sort {
    cmoe_gpu_call call;
    int32_t *rows, *offsets;
    int32_t *progress; /* to clear, or NULL */
    const int64_t *ids64;
    int32_t *ids;
    int32_t *sorted_ids, *block_experts, *num_valid;
    float *sorted_weights;
    int32_t block_m, packed, n;
} cmoe_gpu_sort;

typedef struct cmoe_gpu_gemm {
    cmoe_gpu_call call;
    const cmoe_gpu_expert *experts;
    cmoe_format x, w;
    const uint8_t *a;
    const uint8_t *a_scale;
    const float *a_global;                        /* NV: a row's; NULL: a_fixed */
    const float *a_fixed;                         /* TENSOR scale, static NV global */
    int64_t a_stride, a_scale_stride, out_stride; /* bytes, bytes, elements */
    int64_t a_cols;   /* columns of a row with padding: where its scales count */
    int32_t k, n;     /* columns that count, outputs */
    int32_t half;     /* first half of the expert table to use: 0 gate|up, 2 down */
    int32_t split;    /* outputs before the second half; n when there is one */
    int32_t a_by_row; /* a row is indexed by slot row, else by token */
    int32_t weigh, bias;
    int32_t group; /* columns between changes of any scale; 0: none along k */
    float *out;
} cmoe_gpu_gemm;

/* The GEMMs of tiles of 128 outputs by 64 rows: a GEMM, and the activation behind GEMM1. */
typedef struct cmoe_gpu_tiles {
    cmoe_gpu_gemm g;
    cmoe_problem p;
    void *h; /* rows of the activation, columns of h_dtype; NULL: g.out */
    int32_t i, i_used, h_dtype;
    int32_t gated;                /* a block holds gate and up rows of 64 units */
    int32_t outputs;              /* units, or columns of g.out */
    int32_t x_vectors, w_vectors; /* rows start at 16 bytes and are contiguous */
    int32_t span;                 /* columns between scalings of sums; 0: only at the end */
    int32_t w_groups, x_groups;   /* scales of a row in 64 columns; 0: they do not change along k */
    int32_t w_shift, x_shift;     /* log2 of the columns that share one */
    int32_t w_scale, x_scale;     /* their dtypes; e4m3: multiplied into operands */
} cmoe_gpu_tiles;

typedef struct cmoe_gpu_act {
    cmoe_gpu_call call;
    cmoe_problem p;
    const float *gu;
    void *h;
    int32_t rows1, i, i_used, h_dtype;
} cmoe_gpu_act;

/* Columns and threads of a block of the combine where rows of z are whole pieces of 16 bytes, and rows of 16-bit z (half as many
 * of f32) that its threads load at once. */
enum { CMOE_COMBINE_COLUMNS = 1024, CMOE_COMBINE_THREADS = 128, CMOE_COMBINE_ROWS = 8 };

typedef struct cmoe_gpu_combine {
    cmoe_gpu_call call;
    const void *z;
    void *y;
    int64_t y_stride; /* bytes */
    float accumulate;
    int32_t h, h_used, dtype, weigh;
    int32_t tokens;  /* of a block, where it takes whole pieces of columns */
    int32_t ahead;   /* the ids are complete when the kernel before this one starts */
    int32_t discard; /* nobody reads z afterwards, and its rows are whole lines of 128 bytes */
    void *spent;     /* lines that the kernel before this one read last */
    int64_t spent_lines;
} cmoe_gpu_combine;

#endif
