/* SPDX-License-Identifier: MIT
 * The tile over a p32 panel: rows x 32 columns, accumulators in registers.
 *
 * Each element has one accumulator that takes k ascending, one fused multiply-add a step, so its
 * bits depend neither on the rows beside it nor on where K is cut (partial sums are exact in c). */
#ifndef CMOE_BACKENDS_CPU_ISA_GEMM_P32_H
#define CMOE_BACKENDS_CPU_ISA_GEMM_P32_H

#include "backends/cpu/isa/fetch.h"
#include "backends/cpu/isa/vec.h"

/* Registers: TILE_ROWS * TILE_VECS accumulators, TILE_VECS of the panel (twice as many where K_LOADED is 2), one
 * of a. With few of them converting 16-bit weights in the tile costs more than reading f32 ones. Every AT_ROWS-th
 * row multiplies by v_fma_at: AVX-512 has loads to spare for half of them, where four operations a clock limit.
 * A chunk is straight code in PARTS: between them compilers may move sums about. */
#if defined CMOE_ISA_AVX512
enum { TILE_ROWS = 12, TILE_VECS = 2, K_LOADED = 2, AT_ROWS = 2, PARTS = 2, WIDEN_ROWS = 1 << 30 };
#elif defined CMOE_ISA_AVX2
enum { TILE_ROWS = 6, TILE_VECS = 2, K_LOADED = 1, AT_ROWS = 1, PARTS = 1, WIDEN_ROWS = 19 };
#else
enum { TILE_ROWS = 4, TILE_VECS = 2, K_LOADED = 2, AT_ROWS = 2, PARTS = 2, WIDEN_ROWS = 13 };
#endif
enum { TILE_COLS = TILE_VECS * VEC };

/* acc += a[.][at] * b for every row of the tile; rows of `a` are a chunk apart. */
CMOE_INLINE void p32_step(int m, const float *a, const vf b[TILE_VECS],
                          vf acc[TILE_ROWS][TILE_VECS])
{
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        const float *const at = a + r * CMOE_CPU_CHUNK;
        const vf s = v_set(*at);
        CMOE_UNROLL
        for (int v = 0; v < TILE_VECS; v++)
            acc[r][v] = r % AT_ROWS == AT_ROWS - 1 ? v_fma_at(at, b[v], acc[r][v])
                                                   : v_fma(s, b[v], acc[r][v]);
    }
}

/* The panel's row of the first of two k's (odd: of the second), which begin at b. */
CMOE_INLINE void p32_load(cmoe_dtype w, const char *b, bool odd, vf out[TILE_VECS])
{
    const int size = w == CMOE_F32 ? 4 : 2;
    CMOE_UNROLL
    for (int v = 0; v < TILE_VECS; v++) {
        vf both[2];
        if (w == CMOE_BF16) {
            v_load_bf16_pairs((const uint16_t *)(const void *)b + 2 * v * VEC, &both[0], &both[1]);
            out[v] = both[odd];
        } else {
            out[v] = v_load_as(w, b + size * (odd * CMOE_CPU_PANEL + v * VEC));
        }
    }
}

/* Two k's: `a` at the first, `b` at the panel's row of it. The step-th of a chunk. soon: a constant. */
CMOE_INLINE void p32_two(cmoe_dtype w, int m, const float *a, const char *b, bool soon,
                         struct cmoe_cpu_ahead ahead, int step, vf acc[TILE_ROWS][TILE_VECS])
{
    vf b0[TILE_VECS], b1[TILE_VECS];
    p32_load(w, b, false, b0);
    if (K_LOADED == 2) p32_load(w, b, true, b1);
    if (soon)
        fetch_soon(b, 2 * CMOE_CPU_PANEL * (w == CMOE_F32 ? 4 : 2));
    else
        fetch(ahead, step, CMOE_CPU_CHUNK / 2);
    p32_step(m, a, b0, acc);
    if (K_LOADED == 1) p32_load(w, b, true, b1);
    p32_step(m, a + 1, b1, acc);
}

/* A whole chunk. */
CMOE_INLINE void p32_chunk(cmoe_dtype w, int m, const float *a, const char *b, bool soon,
                           struct cmoe_cpu_ahead ahead, vf acc[TILE_ROWS][TILE_VECS])
{
    enum { TWOS = CMOE_CPU_CHUNK / 2 / PARTS };
    const int64_t bytes = 2 * CMOE_CPU_PANEL * (w == CMOE_F32 ? 4 : 2);
    for (int part = 0; part < PARTS; part++, a += 2 * TWOS, b += TWOS * bytes) {
        CMOE_UNROLL
        for (int i = 0; i < TWOS; i++)
            p32_two(w, m, a + 2 * i, b + i * bytes, soon, ahead, part * TWOS + i, acc);
    }
}

/* The k < 16 steps behind the last whole chunk. */
CMOE_INLINE void p32_rest(cmoe_dtype w, int m, int k, const float *a, const char *b,
                          vf acc[TILE_ROWS][TILE_VECS])
{
    vf b0[TILE_VECS];
    if (w == CMOE_BF16) {
        for (int i = 0; i < k; i += 2, b += 4 * CMOE_CPU_PANEL)
            p32_two(w, m, a + i, b, false, (struct cmoe_cpu_ahead){0}, 0, acc);
        return;
    }
    const int size = w == CMOE_F16 ? 2 : 4;
    for (int i = 0; i < k; i++, b += size * CMOE_CPU_PANEL) {
        CMOE_UNROLL
        for (int v = 0; v < TILE_VECS; v++)
            b0[v] = v_load_as(w, b + size * v * VEC);
        p32_step(m, a + i, b0, acc);
    }
}

/* TILE_COLS columns of the panel, from column `col` on. m, w and soon are constants after inlining. */
CMOE_INLINE void p32_tile(cmoe_dtype w, int m, int64_t k, const float *a, const char *b, float *c,
                          int64_t ldc, bool more, bool soon, struct cmoe_cpu_ahead ahead)
{
    const int64_t chunk_bytes = CMOE_CPU_CHUNK * CMOE_CPU_PANEL * (w == CMOE_F32 ? 4 : 2);
    vf acc[TILE_ROWS][TILE_VECS];
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        CMOE_UNROLL
        for (int v = 0; v < TILE_VECS; v++)
            acc[r][v] = more ? v_load(c + r * ldc + v * VEC) : v_set(0);
    }
    for (; k >= CMOE_CPU_CHUNK; k -= CMOE_CPU_CHUNK) {
        p32_chunk(w, m, a, b, soon, ahead, acc);
        ahead.at = (const void *)((uintptr_t)ahead.at + 64U * (unsigned)ahead.lines);
        a += m * CMOE_CPU_CHUNK;
        b += chunk_bytes;
    }
    p32_rest(w, m, (int)k, a, b, acc);
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        CMOE_UNROLL
        for (int v = 0; v < TILE_VECS; v++)
            v_store(c + r * ldc + v * VEC, acc[r][v]);
    }
}

CMOE_INLINE void p32_rows(cmoe_dtype w, int m, int64_t k, const float *a, const void *panel,
                          float *c, int64_t ldc, bool more, struct cmoe_cpu_ahead ahead)
{
    /* Columns are pairs of bf16, single f16 or f32. */
    const int64_t col_bytes = w == CMOE_F16 ? 2 : 4;
    for (int col = 0; col < CMOE_CPU_PANEL; col += TILE_COLS) {
        const char *const b = (const char *)panel + col * col_bytes;
        if (col == 0 && ahead.soon)
            p32_tile(w, m, k, a, b, c, ldc, more, true, ahead);
        else
            p32_tile(w, m, k, a, b, c + col, ldc, more, false,
                     col == 0 ? ahead : (struct cmoe_cpu_ahead){0});
    }
}

/* One body for each number of rows, so that accumulators are registers. */
CMOE_INLINE void p32_dispatch(cmoe_dtype w, int m, int64_t k, const float *a, const void *b,
                              float *c, int64_t ldc, bool more, struct cmoe_cpu_ahead ahead)
{
    switch (m) {
    case 1:
        p32_rows(w, 1, k, a, b, c, ldc, more, ahead);
        break;
    case 2:
        p32_rows(w, 2, k, a, b, c, ldc, more, ahead);
        break;
    case 3:
        p32_rows(w, 3, k, a, b, c, ldc, more, ahead);
        break;
    case 4:
        p32_rows(w, 4, k, a, b, c, ldc, more, ahead);
        break;
#if defined CMOE_ISA_AVX512 || defined CMOE_ISA_AVX2
    case 5:
        p32_rows(w, 5, k, a, b, c, ldc, more, ahead);
        break;
    case 6:
        p32_rows(w, 6, k, a, b, c, ldc, more, ahead);
        break;
#endif
#if defined CMOE_ISA_AVX512
    case 7:
        p32_rows(w, 7, k, a, b, c, ldc, more, ahead);
        break;
    case 8:
        p32_rows(w, 8, k, a, b, c, ldc, more, ahead);
        break;
    case 9:
        p32_rows(w, 9, k, a, b, c, ldc, more, ahead);
        break;
    case 10:
        p32_rows(w, 10, k, a, b, c, ldc, more, ahead);
        break;
    case 11:
        p32_rows(w, 11, k, a, b, c, ldc, more, ahead);
        break;
    case 12:
        p32_rows(w, 12, k, a, b, c, ldc, more, ahead);
        break;
#endif
    }
}

static void gemm_p32(cmoe_dtype w, int m, int64_t k, const float *a, const void *panel, float *c,
                     int64_t ldc, bool more, struct cmoe_cpu_ahead ahead)
{
    if (w == CMOE_BF16)
        p32_dispatch(CMOE_BF16, m, k, a, panel, c, ldc, more, ahead);
    else if (w == CMOE_F16)
        p32_dispatch(CMOE_F16, m, k, a, panel, c, ldc, more, ahead);
    else
        p32_dispatch(CMOE_F32, m, k, a, panel, c, ldc, more, ahead);
}

/* f32 of a bf16 or f16 panel. */
static void widen(cmoe_dtype w, int64_t k, const void *panel, float *out)
{
    const uint16_t *from = panel;
    if (w == CMOE_BF16) {
        for (; k > 0; k -= 2, out += 2 * CMOE_CPU_PANEL)
            for (int j = 0; j < CMOE_CPU_PANEL; j += VEC, from += 2 * VEC) {
                vf even, odd;
                v_load_bf16_pairs(from, &even, &odd);
                v_store(out + j, even);
                if (k > 1) v_store(out + CMOE_CPU_PANEL + j, odd);
            }
        return;
    }
    for (int64_t i = 0; i < k * CMOE_CPU_PANEL; i += VEC)
        v_store(out + i, v_load_f16(from + i));
}

#endif
