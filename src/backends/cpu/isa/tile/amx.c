/* SPDX-License-Identifier: MIT
 * 32 x 32 results in four AMX tiles, from two of rows and two of columns: four loads of 1 KiB for four
 * products of 16 x 16 x 64 bytes. Panels of pairs and of quads are tiles as they lie.
 *
 * Tiles 0 to 3 hold results (upper left, upper right, lower left, lower right), 4 and 5 rows, 6 and 7
 * columns. */
#include "backends/cpu/isa/tile/code_pairs.h"
#include "backends/cpu/isa/tile/pack.h"
#include "backends/cpu/probe.h"

#ifdef CMOE_EMULATE
#    include "backends/cpu/isa/tile/amx_emulated.h"
#else
#    include "backends/cpu/isa/tile/amx_native.h"
#endif

enum {
    HALF = 16,                         /* rows, and columns, of a tile */
    TILE_BYTES = HALF * CMOE_CPU_STEP, /* of a tile of rows */
    LINE = 4 * CMOE_CPU_PANEL,         /* bytes of a panel's pairs or quads of one k */
    STEP_BYTES = LINE * HALF,          /* of a panel in a step */
    AHEAD = 8 * STEP_BYTES,            /* panels are asked for so much earlier */
};

/* What ldtilecfg reads: palette 1, eight tiles of 16 rows of 64 bytes. */
struct config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static void begin(void)
{
    const struct config config = {.palette = 1,
                                  .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                  .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    tiles_configure(&config);
}

static void end(void)
{
    tiles_release();
}

static int padded(int m)
{
    return m > HALF ? 2 * HALF : HALF;
}

static void pack(const void *const *rows, int m, int64_t bytes, void *a)
{
    pack_steps(rows, m, padded(m), bytes, a);
}

static void pack_values(const float *v, int64_t k, int r, int m, void *a)
{
    pack_floats(v, k, r, padded(m), a);
}

/* One step: 32 columns of b by one or two tiles of rows. i8 and two are constants. */
CMOE_INLINE void multiply_step(struct tiles *t, bool i8, bool two, const char *a, const char *b)
{
    (void)t;
    TILE_LOAD(t, 6, b, LINE);
    TILE_LOAD(t, 4, a, CMOE_CPU_STEP);
    TILE_LOAD(t, 7, b + LINE / 2, LINE);
    if (i8) {
        TILE_DOT_I8(t, 0, 4, 6);
        TILE_DOT_I8(t, 1, 4, 7);
    } else {
        TILE_DOT_BF16(t, 0, 4, 6);
        TILE_DOT_BF16(t, 1, 4, 7);
    }
    if (!two) return;
    TILE_LOAD(t, 5, a + TILE_BYTES, CMOE_CPU_STEP);
    if (i8) {
        TILE_DOT_I8(t, 2, 5, 6);
        TILE_DOT_I8(t, 3, 5, 7);
    } else {
        TILE_DOT_BF16(t, 2, 5, 6);
        TILE_DOT_BF16(t, 3, 5, 7);
    }
}

/* All steps of `bytes` of a row. What the last one lacks is zero, not what follows the panel. */
CMOE_INLINE void multiply_steps(struct tiles *t, bool i8, bool two, int64_t bytes, const char *a,
                                const char *b)
{
    const int64_t step = two ? 2 * TILE_BYTES : TILE_BYTES;
    for (; bytes >= CMOE_CPU_STEP; bytes -= CMOE_CPU_STEP, a += step, b += STEP_BYTES) {
        for (uintptr_t line = 0; line < STEP_BYTES; line += 64)
            __builtin_prefetch((const void *)((uintptr_t)b + AHEAD + line), 0, 2);
        multiply_step(t, i8, two, a, b);
    }
    if (bytes > 0) {
        char last[STEP_BYTES] = {0};
        memcpy(last, b, (size_t)((bytes + 3) / 4 * LINE));
        multiply_step(t, i8, two, a, last);
    }
}

CMOE_INLINE void clear(struct tiles *t, bool two)
{
    (void)t;
    TILE_ZERO(t, 0);
    TILE_ZERO(t, 1);
    if (!two) return;
    TILE_ZERO(t, 2);
    TILE_ZERO(t, 3);
}

/* ldc: bytes between rows of results. */
CMOE_INLINE void load(struct tiles *t, bool two, const char *c, int64_t ldc)
{
    (void)t;
    TILE_LOAD(t, 0, c, ldc);
    TILE_LOAD(t, 1, c + 64, ldc);
    if (!two) return;
    TILE_LOAD(t, 2, c + HALF * ldc, ldc);
    TILE_LOAD(t, 3, c + HALF * ldc + 64, ldc);
}

CMOE_INLINE void store(struct tiles *t, bool two, char *c, int64_t ldc)
{
    (void)t;
    TILE_STORE(t, 0, c, ldc);
    TILE_STORE(t, 1, c + 64, ldc);
    if (!two) return;
    TILE_STORE(t, 2, c + HALF * ldc, ldc);
    TILE_STORE(t, 3, c + HALF * ldc + 64, ldc);
}

CMOE_INLINE void multiply(bool i8, bool two, int64_t bytes, const void *a, const void *b, void *c,
                          int64_t ldc, bool more)
{
    struct tiles t;
    if (more)
        load(&t, two, c, ldc);
    else
        clear(&t, two);
    multiply_steps(&t, i8, two, bytes, a, b);
    store(&t, two, c, ldc);
}

static void dot_bf16(int m, int64_t k, const void *a, const void *panel, float *c, int64_t ldc,
                     bool more, struct cmoe_cpu_ahead ahead)
{
    (void)ahead; /* every step asks for its own */
    if (m > HALF)
        multiply(false, true, 2 * k, a, panel, c, 4 * ldc, more);
    else
        multiply(false, false, 2 * k, a, panel, c, 4 * ldc, more);
}

static void dot_i8(const struct cmoe_cpu_panel *l, const void *panel, int m, const void *a,
                   const float *row_scale, float *c, int64_t ldc)
{
    const char *const b = (const char *)panel + l->head;
    const float *const scale = (const float *)(const void *)b;
    int32_t sums[2 * HALF][CMOE_CPU_PANEL];
    if (m > HALF)
        multiply(true, true, l->k, a, b + l->scales, sums, sizeof *sums, false);
    else
        multiply(true, false, l->k, a, b + l->scales, sums, sizeof *sums, false);
    for (int r = 0; r < m; r++)
        for (int j = 0; j < CMOE_CPU_PANEL; j++)
            c[r * ldc + j] = (float)sums[r][j] * (scale[j] * row_scale[r]);
}

/* --- ceilings ------------------------------------------------------------------------------- */

enum { PROBE_STEPS = 16 };

/* Four chains of products, as in a step, without its loads. */
CMOE_INLINE void probe(bool i8, int64_t rounds, const char *memory, float *sink)
{
    struct tiles t;
    float out[HALF][HALF] = {{0}};
    begin();
    clear(&t, true);
    TILE_LOAD(&t, 4, memory, CMOE_CPU_STEP);
    TILE_LOAD(&t, 5, memory + TILE_BYTES, CMOE_CPU_STEP);
    TILE_LOAD(&t, 6, memory + 2 * TILE_BYTES, CMOE_CPU_STEP);
    TILE_LOAD(&t, 7, memory + 3 * TILE_BYTES, CMOE_CPU_STEP);
    for (int64_t r = 0; r < rounds * PROBE_STEPS; r++) {
        if (i8) {
            TILE_DOT_I8(&t, 0, 4, 6);
            TILE_DOT_I8(&t, 1, 4, 7);
            TILE_DOT_I8(&t, 2, 5, 6);
            TILE_DOT_I8(&t, 3, 5, 7);
        } else {
            TILE_DOT_BF16(&t, 0, 4, 6);
            TILE_DOT_BF16(&t, 1, 4, 7);
            TILE_DOT_BF16(&t, 2, 5, 6);
            TILE_DOT_BF16(&t, 3, 5, 7);
        }
    }
    TILE_STORE(&t, 0, out, CMOE_CPU_STEP);
    end();
    *sink += out[0][0];
}

static void probe_bf16(int64_t rounds, const void *memory, float *sink)
{
    probe(false, rounds, memory, sink);
}

static void probe_i8(int64_t rounds, const void *memory, float *sink)
{
    probe(true, rounds, memory, sink);
}

const struct cmoe_cpu_probe cmoe__cpu_probe_amx = {
    .dot = {NULL, probe_bf16, probe_i8},
    .operations = {0, 4.0 * PROBE_STEPS * 16 * 16 * 64, 4.0 * PROBE_STEPS * 16 * 16 * 128},
};

const struct cmoe_cpu_tile_ops cmoe__cpu_tile_ops_amx = {
    .rows = 2 * HALF,
    .unit = HALF,
    .begin = begin,
    .end = end,
    .pack = pack,
    .pack_values = pack_values,
    .scale = scale,
    .dot_bf16 = dot_bf16,
    .dot_i8 = dot_i8,
    .pair = pair,
    .join = join,
#ifndef CMOE_EMULATE
    .decode = decode_pairs,
#endif
};
