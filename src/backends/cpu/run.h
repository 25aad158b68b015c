/* SPDX-License-Identifier: MIT
 * How every row of this backend runs: its stages become a list of loops.
 *
 * A loop is a count of items that follows from the problem and the routing, and a body for one
 * item. A row of one stage runs each loop with cmoe__parallel; a row of several stages forks once
 * and its workers walk the list together, with a barrier between loops. Either way an item's result
 * does not depend on who runs it. */
#ifndef CMOE_BACKENDS_CPU_RUN_H
#define CMOE_BACKENDS_CPU_RUN_H

#include "backends/cpu/ops.h"
#include "backends/cpu/panel.h"
#include "core/attr.h"
#include "plan/kernel.h"
#include <stdatomic.h>

enum {
    CMOE_CPU_LOOPS = 10,     /* most loops of a row */
    CMOE_CPU_ROW_BLOCK = 48, /* rows that share a pass over canonical weights that are decoded */
    CMOE_CPU_RUN_BYTES = 2 << 20, /* most weights that an item reads, about */
    CMOE_CPU_RUN_COLS = 512,      /* most columns of an item */
    CMOE_CPU_H_COLS = 2048,   /* most columns of h that a worker holds for all rows of an item */
    CMOE_CPU_MANY_ITEMS = 64, /* enough for any number of threads to share evenly, about */
    CMOE_CPU_PANEL_ROWS = 96, /* rows of one expert that share a pass over panels */
    CMOE_CPU_K_BLOCK = 1024,  /* k's of a pass over panels; whole groups and chunks */
    CMOE_CPU_PIECE = 128,     /* k's of a panel decoded at a time: 16 KiB of the first cache */
    CMOE_CPU_PAIRS_K = 2048,  /* bf16 of a row that are packed at a time; whole steps */
    CMOE_CPU_TILE_ROWS = 128, /* the same of pairs and quads: the most of all rows */
    CMOE_CPU_FAR_BYTES = 32 << 20, /* of gu or z that no cache keeps until it is read, about */
    CMOE_CPU_DOT_BLOCK = 16,       /* rows that share a pass over canonical weights */
    CMOE_CPU_SMALL_TOKENS = 16,    /* most tokens of a whole-layer row */
    CMOE_CPU_QUANT_ROWS = 8,       /* rows of an item of QUANT or REQUANT */
};

/* What the GEMMs of a row multiply. */
enum cmoe_cpu_multiply {
    CMOE_CPU_MULTIPLY_FLOATS, /* f32 by weights in place or p32 */
    CMOE_CPU_MULTIPLY_CODES,  /* f32 by packed quantised weights, decoded */
    CMOE_CPU_MULTIPLY_DOTS,   /* int8 by packed int8 */
    CMOE_CPU_MULTIPLY_DIGITS, /* anything as integers by packed 4-bit codes */
    CMOE_CPU_MULTIPLY_SPANS,  /* codes or bf16 by packed codes, both as bf16, scales apart */
};

/* The family's config. */
struct cmoe_cpu_config {
    bool decodes; /* GEMM rows: operands of any format, decoded to f32; else f32, f16 and bf16 */
    bool tiles;   /* by the target's cmoe_cpu_tile_ops: pairs of bf16, quads of int8 */
    enum cmoe_cpu_multiply how;
};

struct cmoe_cpu_quant_ops;
struct cmoe_cpu_tile_ops;

/* How rows of x become integers whose products with 4-bit codes are exact over a span of k's. */
struct cmoe_cpu_digits {
    int span;      /* 16 or 32 k's */
    int digits;    /* bytes of an integer: 1 or 3 */
    bool grouped;  /* every span of a row has its own scale */
    int minus;     /* what codes count from; 1: zero points */
    float factor;  /* makes values integers; 0: by the span's largest */
    float unit;    /* what a product of two ones stands for, but for scales */
    int64_t spans; /* of a row */
};

/* Which k's of exact products share scales that are applied to their sum; 0: all. */
struct cmoe_cpu_spans {
    int64_t x, w; /* a scale of a row, of a column */
    int64_t span; /* both */
    bool plain;   /* rows are bf16 themselves */
    bool w_folds; /* scales of weights are part of the operands */
    bool rounds;  /* and are rounded into them */
};

/* One GEMM of a run: geometry and how it is cut into items. */
struct cmoe_cpu_gemm {
    int matrix;        /* 1 or 2 */
    bool p32, decodes; /* p32: columns in the order of panels */
    bool fused;        /* the row covers ACT: results become h */
    int64_t h_cols; /* the row covers REQUANT: columns of h that a worker can hold, 0: too many */
    enum cmoe_cpu_multiply how;
    const struct cmoe_cpu_quant_ops *quant; /* codes, dots */
    const struct cmoe_cpu_tile_ops *tile;   /* NULL: f32 and the tiles of `quant` */
    struct cmoe_cpu_panel panel;
    struct cmoe_cpu_digits digits;
    struct cmoe_cpu_spans spans;
    cmoe_dtype a_dtype, w_dtype;
    int64_t k;        /* inputs that count */
    int64_t n;        /* outputs that count */
    int64_t n_stride; /* of the result's rows */
    int64_t cols;     /* outputs as they are cut: n, or 32 a panel */
    int64_t run;      /* columns of an item, a multiple of 32 */
    int runs;         /* items of one row block, of a node */
    int nodes;        /* that share every expert's columns */
    int64_t panels;   /* of packed weights, more than one node */
    int row_block;    /* rows of an item */
    int32_t *item_of; /* [local + 1] first item of each expert */
};

struct cmoe_cpu_run {
    struct cmoe_exec x; /* as given, with this row's own buffers where stages meet inside it */
    const struct cmoe_cpu_ops *ops;
    const struct cmoe_cpu_quant_ops *quant;
    struct cmoe_cpu_act act;
    struct cmoe_cpu_gemm gemm[2];
    float *logits;   /* [T, columns]: ROUTE from x */
    int logit_cols;  /* experts, and shared ones with their own logit */
    int32_t *counts; /* [sort_chunks][local]: SORT */
    float *amax;     /* of each item: QUANT, REQUANT */
    bool requants;   /* GEMM1's items have all columns: they make codes of h, and no loop does */
    int sort_chunks;
    char *worker_scratch; /* [workers][worker_bytes] */
    size_t worker_bytes;
    struct cmoe_cpu_packed *packed; /* [workers] */
    int n_items;                    /* of the loop that is running, of each node */
    int nodes;                      /* that share it: their items follow each other */
    bool in_order; /* items read what lies side by side: workers take several at once */
    CMOE_ALIGNED(64) atomic_int taken; /* items, where one node has them all */
};

/* Whose rows a worker has packed last; those of its next item are often the same. */
struct cmoe_cpu_packed {
    CMOE_ALIGNED(64) int rows; /* 0: nobody's */
    const int32_t *of;
    int64_t x_row; /* of the first */
};

struct cmoe_cpu_loop {
    int (*begin)(struct cmoe_cpu_run *run); /* once, alone: the number of items of a node; sets
                                               `nodes` when that is not 1 */
    void (*item)(struct cmoe_cpu_run *run, int item, int worker);
};

extern const struct cmoe_cpu_loop cmoe__cpu_loop_logits;  /* ROUTE: logits from x */
extern const struct cmoe_cpu_loop cmoe__cpu_loop_select;  /* ROUTE: ids and weights */
extern const struct cmoe_cpu_loop cmoe__cpu_loop_x_amax;  /* QUANT: maxima of items */
extern const struct cmoe_cpu_loop cmoe__cpu_loop_x_codes; /* QUANT */
extern const struct cmoe_cpu_loop cmoe__cpu_loop_h_amax;  /* REQUANT: maxima of items */
extern const struct cmoe_cpu_loop cmoe__cpu_loop_h_codes; /* REQUANT */
extern const struct cmoe_cpu_loop cmoe__cpu_loop_count;   /* SORT: histograms */
extern const struct cmoe_cpu_loop cmoe__cpu_loop_place;   /* SORT: rows and offsets */
extern const struct cmoe_cpu_loop cmoe__cpu_loop_gemm1;
extern const struct cmoe_cpu_loop cmoe__cpu_loop_act;
extern const struct cmoe_cpu_loop cmoe__cpu_loop_gemm2;
extern const struct cmoe_cpu_loop cmoe__cpu_loop_combine;

/* Bytes of scratch of a row's loops for `tokens` tokens and `workers` workers; with `run`, also
 * fills in the run's geometry and its pointers into `base`. */
size_t cmoe__cpu_lay_out(const struct cmoe_kernel *k, const cmoe_problem *p,
                         const struct cmoe_shape *s, int64_t tokens, int workers,
                         struct cmoe_cpu_run *run, char *base);

/* Whether a whole layer is over before another thread would have joined in: one runs it alone. */
bool cmoe__cpu_is_tiny(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens);

/* cmoe_family.run of every row. */
cmoe_status cmoe__cpu_run(const struct cmoe_step *step, const struct cmoe_exec *x);

/* Scratch of one worker. */
static inline void *cmoe__cpu_worker(const struct cmoe_cpu_run *run, int worker)
{
    return run->worker_scratch + (size_t)worker * run->worker_bytes;
}

/* Bytes that one worker of a stage needs. */
size_t cmoe__cpu_route_worker(const cmoe_problem *p, const struct cmoe_shape *s);
size_t cmoe__cpu_quant_worker(int64_t n);
size_t cmoe__cpu_gemm_worker(const struct cmoe_cpu_gemm *g);

/* Most items of QUANT or REQUANT. */
int64_t cmoe__cpu_quant_items(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens);
/* REQUANT of one row of h, v[I], of an expert; v is changed, copy has room for I values. */
void cmoe__cpu_requant_row(const struct cmoe_cpu_run *run, int64_t row, int32_t expert, float *v,
                           float *copy);
/* Items of COMBINE. */
int64_t cmoe__cpu_combine_items(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens);

/* Geometry of a GEMM: everything but item_of. */
void cmoe__cpu_gemm_plan(const cmoe_problem *p, const struct cmoe_shape *s, int matrix,
                         const struct cmoe_kernel *k, struct cmoe_cpu_gemm *out);
/* Chunks that SORT counts in parallel: by the number of slots alone. */
int cmoe__cpu_sort_chunks(int64_t slots);

/* p32: see pack.c. Bytes of a panel and of an expert. */
size_t cmoe__cpu_p32_panel(const cmoe_problem *p, int matrix);
int64_t cmoe__cpu_p32_panels(const cmoe_problem *p, int matrix);
/* Logical row of the matrix in column j of a panel, or -1: padding. */
int64_t cmoe__cpu_p32_row(const cmoe_problem *p, int matrix, int64_t panel, int j);
extern const struct cmoe_packing_format cmoe__cpu_p32;
/* Whether the row's GEMMs read weights in panels of 32 columns; else canonical ones. */
bool cmoe__cpu_reads_p32(const struct cmoe_kernel *k);

#endif
