/* SPDX-License-Identifier: MIT
 * What the tiles of all extensions share: rows in steps, f32 panels as pairs of bf16, and scales. */
#ifndef CMOE_BACKENDS_CPU_ISA_TILE_PACK_H
#define CMOE_BACKENDS_CPU_ISA_TILE_PACK_H

#include "backends/cpu/isa/vec.h"
#include "backends/cpu/ops_tile.h"
#include <string.h>

/* padded: rows of a step; those past m are 0. */
CMOE_INLINE void pack_steps(const void *const *rows, int m, int padded, int64_t bytes, char *a)
{
    const int64_t whole = bytes / CMOE_CPU_STEP, tail = bytes % CMOE_CPU_STEP;
    const int64_t step = (int64_t)padded * CMOE_CPU_STEP;
    for (int r = 0; r < padded; r++) {
        char *to = a + r * CMOE_CPU_STEP;
        const char *from = r < m ? rows[r] : NULL;
        for (int64_t i = 0; i < whole; i++, to += step) {
            if (from)
                memcpy(to, from + i * CMOE_CPU_STEP, CMOE_CPU_STEP);
            else
                memset(to, 0, CMOE_CPU_STEP);
        }
        if (!tail) continue;
        memset(to, 0, CMOE_CPU_STEP);
        if (from) memcpy(to, from + whole * CMOE_CPU_STEP, (size_t)tail);
    }
}

/* Row r of steps of `padded` rows, from f32. */
CMOE_INLINE void pack_floats(const float *v, int64_t k, int r, int padded, char *a)
{
    enum { EACH = CMOE_CPU_STEP / 2 }; /* k's of a step */
    char *to = a + r * CMOE_CPU_STEP;
    for (; k > 0; k -= EACH, v += EACH, to += padded * CMOE_CPU_STEP) {
        uint16_t codes[EACH] = {0};
        const int64_t n = k < EACH ? k : EACH;
        for (int64_t i = 0; i < n; i += VEC)
            v_store_bf16(codes + i, v_load(v + i));
        for (int64_t i = n; i < EACH; i++)
            codes[i] = 0;
        memcpy(to, codes, sizeof codes);
    }
}

static void scale(int m, const float *from, int64_t ld_from, const float *row, const float *col,
                  float *c, int64_t ldc, bool more)
{
    for (int r = 0; r < m; r++, from += ld_from, c += ldc)
        for (int j = 0; j < CMOE_CPU_PANEL; j += VEC) {
            const vf factor = v_set(row[r]) * v_load(col + j), sum = v_load(from + j);
            v_store(c + j, more ? v_fma(sum, factor, v_load(c + j)) : sum * factor);
        }
}

/* The bf16 nearest to v, ties to even, in the upper half; NaN stays NaN. */
CMOE_INLINE uint32_t bf16_bits(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    return (bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : rounded;
}

static void pair(int64_t k, const float *w, uint16_t *out)
{
    uint32_t *to = (uint32_t *)(void *)out;
    for (int64_t i = 0; i < k; i += 2, w += 2 * CMOE_CPU_PANEL, to += CMOE_CPU_PANEL) {
        if (i + 1 == k) {
            for (int j = 0; j < CMOE_CPU_PANEL; j++)
                to[j] = bf16_bits(w[j]) >> 16;
            continue;
        }
        for (int j = 0; j < CMOE_CPU_PANEL; j++)
            to[j] = bf16_bits(w[j]) >> 16 | (bf16_bits(w[CMOE_CPU_PANEL + j]) & 0xffff0000);
    }
}

static void join(int64_t k, const float *w, uint16_t *out)
{
    uint32_t *to = (uint32_t *)(void *)out;
    for (int64_t i = 0; i < k; i += 2, w += 2 * CMOE_CPU_PANEL, to += CMOE_CPU_PANEL)
        for (int j = 0; j < CMOE_CPU_PANEL; j += VEC) {
            const vu even = (vu)v_bits(v_load(w + j)) >> 16;
            const vu odd = i + 1 < k ? (vu)v_bits(v_load(w + CMOE_CPU_PANEL + j)) : (vu){0};
            const vu both = even | (odd & 0xffff0000);
            memcpy(to + j, &both, sizeof both);
        }
}

#endif
