/* SPDX-License-Identifier: MIT
 * An item over packed panels of quantised weights.
 *
 * Integer dots read rows of int8 as they are. Everything else decodes: a panel's k's to an f32
 * scratch that all rows of the item share, or, for the few rows of a small batch, in registers while
 * the panel streams by. Both give the same bits. */
#include "backends/cpu/gemm_item.h"

#include "backends/cpu/ops_quant.h"
#include "core/format.h"
#include "core/numeric.h"
#include "core/size.h"

void cmoe__cpu_pack_values(const struct cmoe_cpu_item *it, int tile, int64_t first, int64_t k)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const int64_t k_padded = cmoe__round_up(k, CMOE_CPU_CHUNK);
    const int64_t size = g->a_dtype == CMOE_F32 ? 4 : 2;
    const void *rows[CMOE_CPU_PANEL_ROWS];
    for (int r = 0, m; r < it->m; r += m) {
        m = cmoe__cpu_next_tile(it->m - r, tile);
        float *const a = it->a + r * k_padded;
        for (int i = 0; i < m; i++) {
            const struct cmoe_cpu_input in = cmoe__cpu_input_row(it, r + i);
            float groups[CMOE_CPU_GROUPS];
            if (cmoe__cpu_is_float(in.f.dtype)) {
                rows[i] = in.codes + first * size;
                continue;
            }
            const struct cmoe_cpu_x_scale s = cmoe__cpu_x_scale(&in, first, k, groups);
            const int64_t skip = first * cmoe_dtype_bits((cmoe_dtype)in.f.dtype) / 8;
            g->quant->decode_x((cmoe_dtype)in.f.dtype, &s, in.codes + skip, k,
                               a + i * CMOE_CPU_CHUNK, (int64_t)m * CMOE_CPU_CHUNK);
        }
        if (cmoe__cpu_is_float(g->a_dtype)) it->run->ops->pack_rows(g->a_dtype, rows, m, k, a);
    }
}

/* k's [first, first + k) of one panel times all rows, to column j of c. */
static void multiply_block(const struct cmoe_cpu_item *it, const char *panel, int64_t first,
                           int64_t k, int64_t j)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const struct cmoe_cpu_ops *const ops = it->run->ops;
    const int64_t k_padded = cmoe__round_up(k, CMOE_CPU_CHUNK);
    if (it->m <= g->quant->stream_rows) {
        g->quant->stream(&g->panel, panel, it->m, first, k, it->a, it->c + j, g->run, first > 0);
        return;
    }
    /* About where a piece lies: scales are in line. */
    const int64_t bytes = CMOE_CPU_PIECE * g->panel.group / g->panel.span;
    const char *const start = panel + first / CMOE_CPU_PIECE * bytes;
    const char *next = start + bytes;
    for (int64_t at = 0; at < k; at += CMOE_CPU_PIECE, next += bytes) {
        const int64_t n = cmoe__min64(CMOE_CPU_PIECE, k - at);
        if (at + n == k) next = start + g->panel.bytes;
        struct cmoe_cpu_share share = cmoe__cpu_share_ahead(it->m, ops->tile_rows, n, next, bytes);
        g->quant->decode(&g->panel, panel, first + at, n, it->gathered);
        for (int r = 0, m; r < it->m; r += m) {
            m = cmoe__cpu_next_tile(it->m - r, ops->tile_rows);
            ops->gemm_p32(CMOE_F32, m, n, it->a + r * k_padded + at * m, it->gathered,
                          it->c + r * g->run + j, g->run, first + at > 0,
                          cmoe__cpu_next_share(&share));
        }
    }
}

int64_t cmoe__cpu_dot_block(const struct cmoe_cpu_gemm *g)
{
    enum { ALL_K = 6144, BLOCK_K = 3584 };
    if (g->panel.code == CMOE_CPU_CODE_U4 || g->k <= ALL_K) return g->k;
    return cmoe__round_up(cmoe__ceil_div(g->k, cmoe__ceil_div(g->k, BLOCK_K)), CMOE_CPU_CHUNK);
}

int64_t cmoe__cpu_dot_row(const struct cmoe_cpu_gemm *g)
{
    if (g->panel.code == CMOE_CPU_CODE_U4) return cmoe__round_up(g->k, 8);
    return cmoe__ceil_div(cmoe__cpu_dot_block(g), 4) * g->quant->quad_bytes;
}

void cmoe__cpu_multiply_codes(const struct cmoe_cpu_item *it)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const int tile = it->m <= g->quant->stream_rows ? it->m : it->run->ops->tile_rows;
    const char *const panels = cmoe__cpu_first_panel(it);
    for (int64_t first = 0; first < g->k; first += CMOE_CPU_K_BLOCK) {
        const int64_t k = cmoe__min64(CMOE_CPU_K_BLOCK, g->k - first);
        cmoe__cpu_pack_values(it, tile, first, k);
        for (int64_t j = 0; j < it->cols; j += CMOE_CPU_PANEL)
            multiply_block(it, panels + j / CMOE_CPU_PANEL * g->panel.bytes, first, k, j);
    }
}

/* Rows [r, r + m) of a tile: where their codes are from k `first` on, and their scales. */
static void dot_rows(const struct cmoe_cpu_item *it, int r, int m, int64_t first, const void **rows,
                     float *scale)
{
    for (int i = 0; i < m; i++) {
        const struct cmoe_cpu_input in = cmoe__cpu_input_row(it, r + i);
        rows[i] = in.codes + first;
        scale[i] = cmoe__cpu_one_scale(&in);
    }
}

/* All rows of an item as the dots read them. */
struct packed {
    int64_t row_bytes, groups;
    struct cmoe_cpu_cut cut;
    char *words;
    int32_t *offsets; /* of every group of a row; 4-bit codes only */
    float scale[CMOE_CPU_PANEL_ROWS];
};

/* k's [first, first + k) of all rows; all k's of groups. */
static void pack_dots(const struct cmoe_cpu_item *it, bool grouped, int64_t first, int64_t k,
                      struct packed *to)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const void *rows[CMOE_CPU_PANEL_ROWS];
    for (int r = 0, i = 0, m; r < it->m; r += m, i++) {
        m = cmoe__cpu_cut_size(to->cut, i);
        dot_rows(it, r, m, first, rows, to->scale + r);
        char *const words = to->words + r * to->row_bytes;
        if (it->packed && k == g->k) continue;
        if (grouped)
            g->quant->pack_u4(&g->panel, rows, m, words, to->offsets + r * to->groups);
        else
            g->quant->pack_i8(rows, m, k, words);
    }
}

/* k's [first, first + k), which are packed, of all rows by the panel at column j: to c, or to where all k's
 * belong. */
static void multiply_dots(const struct cmoe_cpu_item *it, const struct packed *a, const char *panel,
                          int64_t first, int64_t k, struct cmoe_cpu_share share, int64_t j)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const struct cmoe_cpu_quant_ops *const ops = g->quant;
    const bool finishes = cmoe__cpu_dot_block(g) == g->k;
    const bool tiles = finishes && cmoe__cpu_stores_tiles(it);
    const int64_t ldc = finishes ? CMOE_CPU_PANEL : g->run;
    float *const to = finishes ? it->c : it->c + j;
    for (int r = 0, i = 0, m; r < it->m; r += m, i++) {
        float *const c = tiles ? to : to + r * ldc;
        const char *const words = a->words + r * a->row_bytes;
        m = cmoe__cpu_cut_size(a->cut, i);
        if (g->panel.code == CMOE_CPU_CODE_U4)
            ops->dot_u4(&g->panel, panel, m, words, a->offsets + r * a->groups, a->scale + r, c,
                        ldc);
        else
            ops->dot_i8(&g->panel, panel, first, k, m, words, a->scale + r, c, ldc,
                        cmoe__cpu_next_share(&share));
        if (tiles) cmoe__cpu_store_tile(it, r, m, j, c, ldc);
    }
    if (finishes && !tiles) cmoe__cpu_store_panel(it, j, to, ldc);
}

void cmoe__cpu_multiply_dots(const struct cmoe_cpu_item *it)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const bool grouped = g->panel.code == CMOE_CPU_CODE_U4;
    const int tile = grouped ? g->quant->dot4_rows : g->quant->dot_rows;
    const bool soon = it->m <= tile;
    /* One tile reads panels from end to end, where there is room for its rows. */
    const bool whole =
        soon && tile * cmoe__round_up(g->k, 4) <= g->row_block * cmoe__cpu_dot_block(g);
    const int64_t block = whole ? g->k : cmoe__cpu_dot_block(g);
    const char *const panels = cmoe__cpu_first_panel(it);
    struct packed a = {.row_bytes = cmoe__cpu_dot_row(g),
                       .groups = cmoe__ceil_div(g->k, g->panel.span),
                       .cut = cmoe__cpu_cut_rows(it->m, tile),
                       .words = (char *)it->a,
                       .offsets = (int32_t *)(void *)it->gathered};
    for (int64_t first = 0; first < g->k; first += block) {
        const int64_t k = cmoe__min64(block, g->k - first);
        /* Without the few lines before them, for which every share would be a line longer. */
        const int64_t bytes = k * g->panel.unit / g->panel.step;
        const int64_t skip = g->panel.bytes + first * g->panel.unit / g->panel.step;
        struct cmoe_cpu_share share =
            soon ? cmoe__cpu_share_soon() : cmoe__cpu_share_ahead(it->m, tile, k, NULL, bytes);
        pack_dots(it, grouped, first, k, &a);
        for (int64_t j = 0; j < it->cols; j += CMOE_CPU_PANEL) {
            const char *const panel = panels + j / CMOE_CPU_PANEL * g->panel.bytes;
            share.next = panel + skip;
            multiply_dots(it, &a, panel, first, k, share, j);
        }
    }
}
