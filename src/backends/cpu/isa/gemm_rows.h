/* SPDX-License-Identifier: MIT
 * Dots of packed rows with weight rows as a checkpoint has them: K contiguous.
 *
 * Each element has one vector accumulator: lane i takes k = i, i + VEC, ...; at the end the halves
 * are added. The last, partial chunk is copied out first, so nothing past a row's end is read. */
#ifndef CMOE_BACKENDS_CPU_ISA_GEMM_ROWS_H
#define CMOE_BACKENDS_CPU_ISA_GEMM_ROWS_H

#include "backends/cpu/isa/vec.h"
#include "backends/cpu/ops.h"

#if defined CMOE_ISA_AVX512
enum { DOT_ROWS = 4, DOT_COLS = 4 };
#else
enum { DOT_ROWS = 2, DOT_COLS = 4 };
#endif

/* One chunk of 16 k's of all rows and columns; b[j] points at the chunk. */
CMOE_INLINE void dot_chunk(cmoe_dtype w, int m, int n, const float *a,
                           const char *const b[DOT_COLS], vf acc[DOT_ROWS][DOT_COLS])
{
    const int size = w == CMOE_F32 ? 4 : 2;
#pragma GCC unroll 4
    for (int i = 0; i < CMOE_CPU_CHUNK; i += VEC) {
#pragma GCC unroll 4
        for (int j = 0; j < n; j++) {
            const vf bj = v_load_as(w, b[j] + i * size);
#pragma GCC unroll 4
            for (int r = 0; r < m; r++)
                acc[r][j] = v_fma(v_load(a + r * CMOE_CPU_CHUNK + i), bj, acc[r][j]);
        }
    }
}

/* The columns after these, at the same k, where rows of weights follow one another. */
CMOE_INLINE void fetch_columns(int n, const char *const at[DOT_COLS], uintptr_t after)
{
#pragma GCC unroll 4
    for (int j = 0; j < n; j++)
        __builtin_prefetch((const void *)((uintptr_t)at[j] + after), 0, 2);
}

/* m, n and w are constants after inlining. */
CMOE_INLINE void dot_tile(cmoe_dtype w, int m, int n, int64_t k, const float *a,
                          const void *const *b, float *c, int64_t ldc)
{
    const int size = w == CMOE_F32 ? 4 : 2;
    vf acc[DOT_ROWS][DOT_COLS];
    const char *at[DOT_COLS];
#pragma GCC unroll 4
    for (int j = 0; j < n; j++) {
        at[j] = b[j];
#pragma GCC unroll 4
        for (int r = 0; r < m; r++)
            acc[r][j] = v_set(0);
    }
    const uintptr_t after = n > 1 ? (unsigned)n * ((uintptr_t)b[1] - (uintptr_t)b[0]) : 0;
    for (; k >= CMOE_CPU_CHUNK; k -= CMOE_CPU_CHUNK, a += m * CMOE_CPU_CHUNK) {
        if (n > 1) fetch_columns(n, at, after);
        dot_chunk(w, m, n, a, at, acc);
#pragma GCC unroll 4
        for (int j = 0; j < n; j++)
            at[j] += CMOE_CPU_CHUNK * size;
    }
    if (k > 0) {
        float tail[DOT_COLS][CMOE_CPU_CHUNK] = {{0}};
        for (int j = 0; j < n; j++) {
            memcpy(tail[j], at[j], (size_t)k * (size_t)size);
            at[j] = (const char *)tail[j];
        }
        dot_chunk(w, m, n, a, at, acc);
    }
    for (int r = 0; r < m; r++)
        for (int j = 0; j < n; j++)
            c[r * ldc + j] = v_sum(acc[r][j]);
}

CMOE_INLINE void dot_dispatch_cols(cmoe_dtype w, int m, int n, int64_t k, const float *a,
                                   const void *const *b, float *c, int64_t ldc)
{
    if (n == DOT_COLS) {
        dot_tile(w, m, DOT_COLS, k, a, b, c, ldc);
        return;
    }
    for (int j = 0; j < n; j++)
        dot_tile(w, m, 1, k, a, b + j, c + j, ldc);
}

CMOE_INLINE void dot_dispatch(cmoe_dtype w, int m, int n, int64_t k, const float *a,
                              const void *const *b, float *c, int64_t ldc)
{
    switch (m) {
    case 1:
        dot_dispatch_cols(w, 1, n, k, a, b, c, ldc);
        break;
    case 2:
        dot_dispatch_cols(w, 2, n, k, a, b, c, ldc);
        break;
#if defined CMOE_ISA_AVX512
    case 3:
        dot_dispatch_cols(w, 3, n, k, a, b, c, ldc);
        break;
    case 4:
        dot_dispatch_cols(w, 4, n, k, a, b, c, ldc);
        break;
#endif
    }
}

static void gemm_rows(cmoe_dtype w, int m, int n, int64_t k, const float *a, const void *const *b,
                      float *c, int64_t ldc)
{
    if (w == CMOE_BF16)
        dot_dispatch(CMOE_BF16, m, n, k, a, b, c, ldc);
    else if (w == CMOE_F16)
        dot_dispatch(CMOE_F16, m, n, k, a, b, c, ldc);
    else
        dot_dispatch(CMOE_F32, m, n, k, a, b, c, ldc);
}

#endif
