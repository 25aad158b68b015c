/* SPDX-License-Identifier: MIT
 * One item of a GEMM as the multipliers see it: some rows of one expert times a run of columns.
 *
 * Calls go one way: gemm.c cuts items and picks a multiplier, gemm_quant, gemm_digits or gemm_tile, with
 * gemm_spans below it; these ask gemm_item.c where rows and panels are, and end in gemm_store.c. */
#ifndef CMOE_BACKENDS_CPU_GEMM_ITEM_H
#define CMOE_BACKENDS_CPU_GEMM_ITEM_H

#include "backends/cpu/ops_quant.h"
#include "backends/cpu/run.h"

struct cmoe_cpu_item {
    const struct cmoe_cpu_run *run;
    const struct cmoe_cpu_gemm *g;
    int expert;
    const int32_t *rows; /* slot rows of the block */
    int m;
    bool packed;       /* the rows are in `a` from the worker's item before, where all k's fit */
    int64_t col, cols; /* columns [col, col + cols) */
    float *a, *c, *gathered;
    float *h; /* [m][I]: what ACT makes, where the item quantises it; else NULL */
};

/* Rows are cut into tiles of nearly equal size, at most `tile`: 17 is 9 + 8, not 12 + 5. */
static inline int cmoe__cpu_next_tile(int left, int tile)
{
    const int tiles = (left + tile - 1) / tile;
    return (left + tiles - 1) / tiles;
}

/* The same cut once for all passes over the rows: the first `larger` tiles have a row more than `each`. */
struct cmoe_cpu_cut {
    int each, larger;
};

static inline struct cmoe_cpu_cut cmoe__cpu_cut_rows(int m, int tile)
{
    const int tiles = (m + tile - 1) / tile;
    return (struct cmoe_cpu_cut){.each = m / tiles, .larger = m % tiles};
}

static inline int cmoe__cpu_cut_size(struct cmoe_cpu_cut cut, int i)
{
    return cut.each + (i < cut.larger);
}

/* What the tiles over n k's fetch beside their work: some of the weights that come next each, all of them
 * together and nothing twice. */
struct cmoe_cpu_share {
    const char *next; /* what comes next */
    uint32_t chunks;  /* of a tile's k's */
    uint32_t lines;   /* that every tile would fetch a chunk if it were alone */
    uint32_t tiles, tile;
    bool soon; /* each what it reads itself instead */
};

static inline struct cmoe_cpu_share cmoe__cpu_share_ahead(int m, int tile, int64_t n,
                                                          const char *next, int64_t bytes)
{
    const uint32_t chunks = (uint32_t)(n + CMOE_CPU_CHUNK - 1) / CMOE_CPU_CHUNK;
    const uint32_t lines = ((uint32_t)(bytes / 64) + chunks - 1) / chunks;
    return (struct cmoe_cpu_share){.next = next,
                                   .chunks = chunks,
                                   .lines = lines,
                                   .tiles = (uint32_t)(m + tile - 1) / (uint32_t)tile};
}

/* What the only tile over a panel fetches. */
static inline struct cmoe_cpu_share cmoe__cpu_share_soon(void)
{
    return (struct cmoe_cpu_share){.soon = true, .tiles = 1};
}

/* The share of the tile now; moves on to the next one's. Earlier tiles have the larger ones. */
static inline struct cmoe_cpu_ahead cmoe__cpu_next_share(struct cmoe_cpu_share *s)
{
    const uint32_t from = (s->lines * s->tile + s->tiles - 1) / s->tiles;
    const uint32_t to = (s->lines * (s->tile + 1) + s->tiles - 1) / s->tiles;
    s->tile++;
    return (struct cmoe_cpu_ahead){
        .at = (const void *)((uintptr_t)s->next + (uintptr_t)from * s->chunks * 64),
        .lines = (int)(to - from),
        .soon = s->soon};
}

/* Results of all rows for the panel at column j of the item, c[m][ldc], to where they belong. */
void cmoe__cpu_store_panel(const struct cmoe_cpu_item *it, int64_t j, const float *c, int64_t ldc);

/* Whether that is better done tile by tile: stores past the caches wait for memory while the next tile
 * multiplies; others do better all at once, and so do activations. */
bool cmoe__cpu_stores_tiles(const struct cmoe_cpu_item *it);

/* The same for m of the rows from r on, c[m][ldc]; results that stay gu or z. */
void cmoe__cpu_store_tile(const struct cmoe_cpu_item *it, int r, int m, int64_t j, const float *c,
                          int64_t ldc);

/* k's that integer dots add up at a time: all, or so many that rows and panels of them fit the second cache,
 * and bytes of a packed row of them. */
int64_t cmoe__cpu_dot_block(const struct cmoe_cpu_gemm *g);
int64_t cmoe__cpu_dot_row(const struct cmoe_cpu_gemm *g);

enum { CMOE_CPU_GROUPS = CMOE_CPU_K_BLOCK / 16 }; /* most scales of a row in a block of k's */

/* A row of x or of the intermediate, with its scales. */
struct cmoe_cpu_input {
    cmoe_format f;
    const char *codes;
    const void *scales;  /* of this row, or of the tensor */
    const float *global; /* NV */
};
struct cmoe_cpu_input cmoe__cpu_input_row(const struct cmoe_cpu_item *it, int r);
/* The scale of a row that has only one. */
float cmoe__cpu_one_scale(const struct cmoe_cpu_input *in);
/* Scales of k's [first, first + k); groups: storage for those that are not f32. */
struct cmoe_cpu_x_scale cmoe__cpu_x_scale(const struct cmoe_cpu_input *in, int64_t first, int64_t k,
                                          float groups[CMOE_CPU_GROUPS]);
/* k's [first, first + k) of all rows as gemm_p32 wants them. */
void cmoe__cpu_pack_values(const struct cmoe_cpu_item *it, int tile, int64_t first, int64_t k);
/* The item's first panel; the others follow. */
const char *cmoe__cpu_first_panel(const struct cmoe_cpu_item *it);

/* How rows of format `a` meet weights of format w over k inputs; false: not as integers. */
bool cmoe__cpu_digits_layout(cmoe_format a, cmoe_format w, int64_t k, struct cmoe_cpu_digits *out);
/* What it needs of a worker: bytes of a packed row, and floats beside them. */
int64_t cmoe__cpu_digits_row(const struct cmoe_cpu_gemm *g);
int64_t cmoe__cpu_digits_scratch(const struct cmoe_cpu_gemm *g);
void cmoe__cpu_multiply_digits(const struct cmoe_cpu_item *it);

/* From packed panels of quantised weights: by integer dots to where results belong, or decoded to c. */
void cmoe__cpu_multiply_dots(const struct cmoe_cpu_item *it);
void cmoe__cpu_multiply_codes(const struct cmoe_cpu_item *it);

/* The same by pairs of bf16 and quads of int8. */
void cmoe__cpu_multiply_tiles(const struct cmoe_cpu_item *it);
/* Rows of the next call: calls of nearly equal size, in whole units. */
int cmoe__cpu_next_rows(const struct cmoe_cpu_gemm *g, int left);
/* Packed row r of the item, all of the block's k's. */
char *cmoe__cpu_packed_row(const struct cmoe_cpu_item *it, int r);
/* Whether they finish and store a panel at a time. */
bool cmoe__cpu_tile_finishes(const struct cmoe_cpu_gemm *g);
/* Rows of an item, k's of a row that are packed at a time, and bytes of one. */
int cmoe__cpu_tile_block(const struct cmoe_cpu_gemm *g);
int64_t cmoe__cpu_tile_k(const struct cmoe_cpu_gemm *g);
int cmoe__cpu_tile_bytes(const struct cmoe_cpu_gemm *g);
/* What it needs of a worker, in floats: a packed row, and where panels are decoded. */
int64_t cmoe__cpu_tile_row(const struct cmoe_cpu_gemm *g);
int64_t cmoe__cpu_tile_scratch(const struct cmoe_cpu_gemm *g);

/* How rows of format `a` meet weights of format w over k inputs as exact bf16; false: not so. */
bool cmoe__cpu_spans_layout(cmoe_format a, cmoe_format w, int64_t k, struct cmoe_cpu_spans *out);
/* Floats of scratch. */
int64_t cmoe__cpu_spans_scratch(const struct cmoe_cpu_gemm *g);
/* k's [first, first + k) of rows [r, r + m) to packed rows a; at most CMOE_CPU_PAIRS_K of them. */
void cmoe__cpu_pack_spans(const struct cmoe_cpu_item *it, int r, int m, int64_t first, int64_t k,
                          char *a);
/* c[it->m][ldc] (+)= those k's of all rows, which are packed, times the panel's; whole after the last. */
void cmoe__cpu_multiply_spans(const struct cmoe_cpu_item *it, const char *panel, int64_t first,
                              int64_t k, float *c, int64_t ldc);
/* k's of the item's rows that are packed at a time. */
int64_t cmoe__cpu_spans_block(const struct cmoe_cpu_item *it);

#endif
