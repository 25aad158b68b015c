/* SPDX-License-Identifier: MIT
 * An item by the target's pairs of bf16 or quads of int8 (ops_tile.h).
 *
 * Panels of bf16 and of int8 are read as they lie; codes are gemm_spans.c's. */
#include "backends/cpu/gemm_item.h"

#include "backends/cpu/ops_quant.h"
#include "backends/cpu/ops_tile.h"
#include "core/format.h"
#include "core/numeric.h"
#include "core/size.h"

bool cmoe__cpu_tile_finishes(const struct cmoe_cpu_gemm *g)
{
    return cmoe__cpu_tile_k(g) == g->k;
}

int64_t cmoe__cpu_tile_scratch(const struct cmoe_cpu_gemm *g)
{
    return g->how == CMOE_CPU_MULTIPLY_SPANS ? cmoe__cpu_spans_scratch(g) : 0;
}

static void pack_rows(const struct cmoe_cpu_item *it, int64_t first, int64_t k)
{
    const struct cmoe_exec *const x = &it->run->x;
    const bool one = it->g->matrix == 1;
    const int64_t size = cmoe__cpu_tile_bytes(it->g);
    const int64_t stride = one ? x->xq_stride : x->shape->I * size;
    const char *const codes = one ? x->xq : x->hq;
    const void *rows[CMOE_CPU_TILE_ROWS];
    for (int r = 0, m; r < it->m; r += m) {
        m = cmoe__cpu_next_rows(it->g, it->m - r);
        if (it->g->how == CMOE_CPU_MULTIPLY_SPANS && !it->g->spans.plain) {
            cmoe__cpu_pack_spans(it, r, m, first, k, cmoe__cpu_packed_row(it, r));
            continue;
        }
        for (int i = 0; i < m; i++) {
            const int64_t row = it->rows[r + i];
            rows[i] = codes + (one ? cmoe__exec_x_row(x, row) : row) * stride + first * size;
        }
        it->g->tile->pack(rows, m, k * size, cmoe__cpu_packed_row(it, r));
    }
}

/* Scales of rows of int8. */
static void row_scales(const struct cmoe_cpu_item *it, float *scale)
{
    const struct cmoe_exec *const x = &it->run->x;
    const bool one = it->g->matrix == 1;
    const cmoe_format f = one ? x->p->x : x->p->mid;
    const size_t step = cmoe__row_scale_bytes(f, one ? x->shape->H : x->shape->I);
    const char *const scales = one ? x->xs : x->hs;
    for (int r = 0; r < it->m; r++) {
        const int64_t row = one ? cmoe__exec_x_row(x, it->rows[r]) : it->rows[r];
        scale[r] = *(const float *)(const void *)(scales + (size_t)row * step);
    }
}

/* What the tiles over n k's fetch: the same k's of the next panel. */
static struct cmoe_cpu_share share_of(const struct cmoe_cpu_item *it, const char *panel, int64_t n)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    if (it->m <= g->tile->rows) return cmoe__cpu_share_soon();
    const int64_t next = (int64_t)cmoe__cpu_p32_panel(it->run->x.p, g->matrix);
    return cmoe__cpu_share_ahead(it->m, g->tile->rows, n, panel + next, n * 2 * CMOE_CPU_PANEL);
}

/* k's [first, first + k), which are packed, of the panel at column j: to c, or to where all k's belong. */
static void multiply_panel(const struct cmoe_cpu_item *it, int64_t j, int64_t first, int64_t k)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const char *const panels = cmoe__cpu_first_panel(it);
    const bool finishes = cmoe__cpu_tile_finishes(g);
    const bool tiles = finishes && cmoe__cpu_stores_tiles(it);
    const int64_t ldc = finishes ? CMOE_CPU_PANEL : g->run;
    float *const to = finishes ? it->c : it->c + j;
    if (g->how == CMOE_CPU_MULTIPLY_SPANS) {
        const char *const panel = panels + j / CMOE_CPU_PANEL * g->panel.bytes;
        cmoe__cpu_multiply_spans(it, panel, first, k, to, ldc);
        if (finishes) cmoe__cpu_store_panel(it, j, to, ldc);
        return;
    }
    const int64_t bytes = (int64_t)cmoe__cpu_p32_panel(it->run->x.p, g->matrix);
    const char *const pairs = panels + j / CMOE_CPU_PANEL * bytes + first * 2 * CMOE_CPU_PANEL;
    struct cmoe_cpu_share share = share_of(it, pairs, k);
    for (int r = 0, m; r < it->m; r += m) {
        m = cmoe__cpu_next_rows(g, it->m - r);
        float *const c = tiles ? to : to + r * ldc;
        g->tile->dot_bf16(m, k, cmoe__cpu_packed_row(it, r), pairs, c, ldc, first > 0,
                          cmoe__cpu_next_share(&share));
        if (tiles) cmoe__cpu_store_tile(it, r, m, j, c, ldc);
    }
    if (finishes && !tiles) cmoe__cpu_store_panel(it, j, to, ldc);
}

static void multiply_pairs(const struct cmoe_cpu_item *it)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const bool spans = g->how == CMOE_CPU_MULTIPLY_SPANS;
    const int64_t block = spans ? cmoe__cpu_spans_block(it) : cmoe__cpu_tile_k(g);
    for (int64_t first = 0; first < g->k; first += block) {
        const int64_t k = cmoe__min64(block, g->k - first);
        if (!it->packed || k < g->k) pack_rows(it, first, k);
        for (int64_t j = 0; j < it->cols; j += CMOE_CPU_PANEL)
            multiply_panel(it, j, first, k);
    }
}

static void multiply_quads(const struct cmoe_cpu_item *it)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const char *const panels = cmoe__cpu_first_panel(it);
    float scale[CMOE_CPU_TILE_ROWS];
    row_scales(it, scale);
    if (!it->packed) pack_rows(it, 0, g->k);
    for (int64_t j = 0; j < it->cols; j += CMOE_CPU_PANEL) {
        const char *const panel = panels + j / CMOE_CPU_PANEL * g->panel.bytes;
        for (int r = 0, m; r < it->m; r += m) {
            m = cmoe__cpu_next_rows(g, it->m - r);
            g->tile->dot_i8(&g->panel, panel, m, cmoe__cpu_packed_row(it, r), scale + r,
                            it->c + r * CMOE_CPU_PANEL, CMOE_CPU_PANEL);
        }
        cmoe__cpu_store_panel(it, j, it->c, CMOE_CPU_PANEL);
    }
}

void cmoe__cpu_multiply_tiles(const struct cmoe_cpu_item *it)
{
    it->g->tile->begin();
    if (it->g->how == CMOE_CPU_MULTIPLY_DOTS)
        multiply_quads(it);
    else
        multiply_pairs(it);
    it->g->tile->end();
}
