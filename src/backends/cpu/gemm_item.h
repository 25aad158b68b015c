/* SPDX-License-Identifier: MIT
 * One item of a GEMM as the multipliers see it: some rows of one expert times a run of columns. */
#ifndef CMOE_BACKENDS_CPU_GEMM_ITEM_H
#define CMOE_BACKENDS_CPU_GEMM_ITEM_H

#include "backends/cpu/run.h"

struct cmoe_cpu_item {
    const struct cmoe_cpu_run *run;
    const struct cmoe_cpu_gemm *g;
    int expert;
    const int32_t *rows; /* slot rows of the block */
    int m;
    int64_t col, cols; /* columns [col, col + cols) */
    float *a, *c, *gathered;
};

/* Rows are cut into tiles of nearly equal size, at most `tile`: 17 is 9 + 8, not 12 + 5. */
static inline int cmoe__cpu_next_tile(int left, int tile)
{
    const int tiles = (left + tile - 1) / tile;
    return (left + tiles - 1) / tiles;
}

/* Bytes of a row that integer dots read. */
int64_t cmoe__cpu_dot_row(const struct cmoe_cpu_gemm *g);

/* Results of the item to c, from packed panels of quantised weights: by integer dots, or decoded. */
void cmoe__cpu_multiply_dots(const struct cmoe_cpu_item *it);
void cmoe__cpu_multiply_codes(const struct cmoe_cpu_item *it);

#endif
