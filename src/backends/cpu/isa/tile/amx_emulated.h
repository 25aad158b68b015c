/* SPDX-License-Identifier: MIT
 * AMX tiles in plain C: the same products and sums in the order that Intel documents, so that tests
 * run the tile code on any machine. All tiles are 16 rows of 64 bytes, whatever is configured.
 *
 * TDPBF16PS sums the even and the odd products of a call apart, one rounding a step (a product of two
 * bf16 is exact), adds both sums and then adds that to the tile. Subnormals count as zero. */
#ifndef CMOE_BACKENDS_CPU_ISA_TILE_AMX_EMULATED_H
#define CMOE_BACKENDS_CPU_ISA_TILE_AMX_EMULATED_H

#include "core/attr.h"
#include <float.h>
#include <stdint.h>
#include <string.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };

struct tiles {
    char tile[TILES][ROWS][ROW_BYTES];
};

CMOE_INLINE void emulated_load(char tile[ROWS][ROW_BYTES], const void *p, int64_t stride)
{
    for (int r = 0; r < ROWS; r++)
        memcpy(tile[r], (const char *)p + r * stride, ROW_BYTES);
}

CMOE_INLINE void emulated_store(char tile[ROWS][ROW_BYTES], void *p, int64_t stride)
{
    for (int r = 0; r < ROWS; r++)
        memcpy((char *)p + r * stride, tile[r], ROW_BYTES);
}

CMOE_INLINE float flushed(float v)
{
    return v > -FLT_MIN && v < FLT_MIN ? 0.0f : v;
}

/* Element i of a row of bf16. */
CMOE_INLINE float bf16_at(const char *row, int i)
{
    uint16_t code;
    memcpy(&code, row + 2 * i, sizeof code);
    const uint32_t bits = (uint32_t)code << 16;
    float v;
    memcpy(&v, &bits, sizeof v);
    return flushed(v);
}

static void emulated_dot_bf16(char acc[ROWS][ROW_BYTES], char a[ROWS][ROW_BYTES],
                              char b[ROWS][ROW_BYTES])
{
    for (int r = 0; r < ROWS; r++) {
        float even[ROWS] = {0}, odd[ROWS] = {0}, sum[ROWS];
        for (int k = 0; k < ROW_BYTES / 4; k++) {
            const float a0 = bf16_at(a[r], 2 * k), a1 = bf16_at(a[r], 2 * k + 1);
            for (int n = 0; n < ROWS; n++) {
                even[n] = flushed(even[n] + a0 * bf16_at(b[k], 2 * n));
                odd[n] = flushed(odd[n] + a1 * bf16_at(b[k], 2 * n + 1));
            }
        }
        memcpy(sum, acc[r], sizeof sum);
        for (int n = 0; n < ROWS; n++)
            sum[n] = flushed(flushed(sum[n]) + flushed(even[n] + odd[n]));
        memcpy(acc[r], sum, sizeof sum);
    }
}

static void emulated_dot_i8(char acc[ROWS][ROW_BYTES], char a[ROWS][ROW_BYTES],
                            char b[ROWS][ROW_BYTES])
{
    for (int r = 0; r < ROWS; r++) {
        int32_t sum[ROWS];
        memcpy(sum, acc[r], sizeof sum);
        for (int k = 0; k < ROW_BYTES; k++)
            for (int n = 0; n < ROWS; n++)
                sum[n] += (int8_t)a[r][k] * (int8_t)b[k / 4][4 * n + k % 4];
        memcpy(acc[r], sum, sizeof sum);
    }
}

#define TILE_ZERO(t, n)             ((void)memset((t)->tile[n], 0, sizeof(t)->tile[n]))
#define TILE_LOAD(t, n, p, stride)  emulated_load((t)->tile[n], p, stride)
#define TILE_STORE(t, n, p, stride) emulated_store((t)->tile[n], p, stride)
#define TILE_DOT_BF16(t, acc, a, b) emulated_dot_bf16((t)->tile[acc], (t)->tile[a], (t)->tile[b])
#define TILE_DOT_I8(t, acc, a, b)   emulated_dot_i8((t)->tile[acc], (t)->tile[a], (t)->tile[b])

CMOE_INLINE void tiles_configure(const void *config)
{
    (void)config;
}

CMOE_INLINE void tiles_release(void) {}

#endif
