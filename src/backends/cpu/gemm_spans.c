/* SPDX-License-Identifier: MIT
 * An item of quantised rows by packed weights as exact products of bf16.
 *
 * The 8 bits of a bf16 hold every code. Scales that are powers of two, and the e4m3 ones of e2m1, go
 * into the operands and leave them exact; sums over the k's that share any other pair of scales (a
 * span) are multiplied by both. */
#include "backends/cpu/gemm_item.h"

#include "backends/cpu/ops_quant.h"
#include "backends/cpu/ops_tile.h"
#include "core/format.h"
#include "core/numeric.h"
#include "core/size.h"
#include <string.h>

enum {
    STEP_K = CMOE_CPU_STEP / 2, /* k's of a step of bf16: the shortest span */
    TILE = 32,                  /* most rows of a call of any table */
};

static bool folds(cmoe_format f)
{
    return f.scaling == CMOE_SCALE_MX || f.scaling == CMOE_SCALE_NV;
}

/* k's that share a scale which is not folded; 0: all. */
static int64_t own_span(cmoe_format f, int64_t k)
{
    const int64_t span = cmoe__format_span(f, k);
    return folds(f) || span >= k ? 0 : span;
}

bool cmoe__cpu_spans_layout(cmoe_format a, cmoe_format w, int64_t k, struct cmoe_cpu_spans *out)
{
    struct cmoe_cpu_spans s = {.x = own_span(a, k), .w = own_span(w, k), .w_folds = folds(w)};
    const int64_t low = cmoe__min64(s.x, s.w), high = cmoe__max64(s.x, s.w);
    if (a.scaling == CMOE_SCALE_NONE || w.scaling == CMOE_SCALE_NONE) return false;
    s.span = low > 0 ? low : high;
    if (s.span > 0 && (s.span % STEP_K != 0 || high % s.span != 0 || CMOE_CPU_K_BLOCK % high != 0))
        return false;
    *out = s;
    return true;
}

/* What a worker holds beside its rows and results, in floats from the item's `gathered` on. */
enum {
    DECODED = 0,                                              /* [PIECE][32] of a panel */
    PAIRS = DECODED + CMOE_CPU_PIECE * CMOE_CPU_PANEL,        /* bf16 [K_BLOCK / 2][32][2] */
    VALUES = PAIRS + CMOE_CPU_K_BLOCK / 2 * CMOE_CPU_PANEL,   /* [K_BLOCK] of a row */
    SUMS = VALUES + CMOE_CPU_K_BLOCK,                         /* [TILE][32] of a span */
    COLS = SUMS + TILE * CMOE_CPU_PANEL,                      /* [spans of K_BLOCK][32]: scales */
    ROWS = COLS + CMOE_CPU_K_BLOCK / STEP_K * CMOE_CPU_PANEL, /* [spans of PAIRS_K][row_block] */
};

int64_t cmoe__cpu_spans_scratch(const struct cmoe_cpu_gemm *g)
{
    return ROWS + CMOE_CPU_PAIRS_K / STEP_K * g->row_block;
}

/* Scales of packed rows for the span at k `at` of those that are packed. */
static float *row_scales(const struct cmoe_cpu_item *it, int64_t at)
{
    const int64_t span = it->g->spans.x;
    return it->gathered + ROWS + (span > 0 ? at / span * it->g->row_block : 0);
}

/* Scales of columns for the span at k `at` of those that are decoded. */
static float *column_scales(const struct cmoe_cpu_item *it, int64_t at)
{
    const int64_t span = it->g->spans.span;
    return it->gathered + COLS + (span > 0 ? at / span * CMOE_CPU_PANEL : 0);
}

/* --- rows ----------------------------------------------------------------------------------- */

/* k's [first, first + k) of row r of the item, as row i of m in packed rows a. */
static void pack_row(const struct cmoe_cpu_item *it, int r, int i, int m, int64_t first, int64_t k,
                     char *a)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const struct cmoe_cpu_input in = cmoe__cpu_input_row(it, r);
    const cmoe_dtype dtype = (cmoe_dtype)in.f.dtype;
    float *const values = it->gathered + VALUES;
    for (int64_t at = 0; at < k; at += CMOE_CPU_K_BLOCK) {
        const int64_t n = cmoe__min64(CMOE_CPU_K_BLOCK, k - at);
        const char *const codes = in.codes + (first + at) * cmoe_dtype_bits(dtype) / 8;
        float groups[CMOE_CPU_GROUPS];
        struct cmoe_cpu_x_scale scale = cmoe__cpu_x_scale(&in, first + at, n, groups);
        if (g->spans.x > 0)
            for (int64_t c = 0; c < n; c += g->spans.x)
                row_scales(it, at + c)[r] = groups[c / g->spans.x];
        else if (folds(in.f))
            row_scales(it, at)[r] = scale.global;
        else
            row_scales(it, at)[r] = scale.span > 0 ? groups[0] : scale.one;
        if (!folds(in.f)) scale = (struct cmoe_cpu_x_scale){.one = 1};
        scale.global = 1;
        g->quant->decode_x(dtype, &scale, codes, n, values, CMOE_CPU_CHUNK);
        g->tile->pack_values(values, n, i, m, a + 2 * at * cmoe__round_up(m, g->tile->unit));
    }
}

void cmoe__cpu_pack_spans(const struct cmoe_cpu_item *it, int r, int m, int64_t first, int64_t k,
                          char *a)
{
    const int64_t padded = cmoe__round_up(m, it->g->tile->unit);
    if (padded != m) memset(a, 0, (size_t)(padded * cmoe__round_up(2 * k, CMOE_CPU_STEP)));
    for (int i = 0; i < m; i++)
        pack_row(it, r + i, i, m, first, k, a);
}

/* --- panels --------------------------------------------------------------------------------- */

/* Scales that a panel's columns have at k. */
static void load_scales(const struct cmoe_cpu_gemm *g, const char *panel, int64_t k,
                        float out[CMOE_CPU_PANEL])
{
    const struct cmoe_cpu_panel *const l = &g->panel;
    const int64_t group = g->spans.w > 0 ? k / g->spans.w : 0;
    if (g->spans.w_folds && l->global) {
        memcpy(out, panel, CMOE_CPU_PANEL * sizeof *out);
        return;
    }
    for (int j = 0; j < CMOE_CPU_PANEL; j++)
        out[j] =
            g->spans.w_folds ? 1.0f : cmoe__load(l->scale, panel + l->head + group * l->group, j);
}

/* Codes [first, first + k) of a panel as pairs, with the scales that go into them, and the others. */
static const void *decode_pairs(const struct cmoe_cpu_item *it, const char *panel, int64_t first,
                                int64_t k)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const int64_t span = g->spans.span > 0 ? g->spans.span : k;
    float *const decoded = it->gathered + DECODED;
    uint16_t *const pairs = (uint16_t *)(void *)(it->gathered + PAIRS);
    struct cmoe_cpu_panel codes = g->panel;
    codes.global = false;
    if (!g->spans.w_folds) codes.scale = CMOE_NONE;
    for (int64_t at = 0; at < k; at += CMOE_CPU_PIECE) {
        const int64_t n = cmoe__min64(CMOE_CPU_PIECE, k - at);
        g->quant->decode(&codes, panel, first + at, n, decoded);
        g->tile->join(n, decoded, pairs + at * CMOE_CPU_PANEL);
    }
    for (int64_t at = 0; at < k; at += span)
        load_scales(g, panel, first + at, column_scales(it, at));
    return pairs;
}

/* Rows [r, r + m) by k's [at, at + k) of those that are packed, added to c a span at a time. */
static void add_spans(const struct cmoe_cpu_item *it, int r, int m, int64_t at, int64_t k,
                      const char *pairs, float *c, int64_t ldc, bool more)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const int64_t padded = cmoe__round_up(m, g->tile->unit), span = g->spans.span;
    const char *const a = cmoe__cpu_packed_row(it, r) + 2 * at * padded;
    float *const sums = it->gathered + SUMS;
    for (int64_t i = 0; i < k; i += span) {
        g->tile->dot_bf16(m, cmoe__min64(span, k - i), a + 2 * i * padded,
                          pairs + 2 * i * CMOE_CPU_PANEL, sums, CMOE_CPU_PANEL, false,
                          (struct cmoe_cpu_ahead){0});
        g->tile->scale(m, sums, CMOE_CPU_PANEL, row_scales(it, at + i) + r, column_scales(it, i), c,
                       ldc, more || i > 0);
    }
}

void cmoe__cpu_multiply_spans(const struct cmoe_cpu_item *it, const char *panel, int64_t first,
                              int64_t k, float *c, int64_t ldc)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    for (int64_t at = 0, n; at < k; at += n) {
        n = cmoe__min64(CMOE_CPU_K_BLOCK, k - at);
        const void *const pairs = decode_pairs(it, panel, first + at, n);
        const bool more = first + at > 0, last = first + at + n == g->k;
        for (int r = 0, m; r < it->m; r += m) {
            m = cmoe__cpu_next_rows(g, it->m - r);
            float *const to = c + r * ldc;
            if (g->spans.span > 0) {
                add_spans(it, r, m, at, n, pairs, to, ldc, more);
                continue;
            }
            g->tile->dot_bf16(
                m, n, cmoe__cpu_packed_row(it, r) + 2 * at * cmoe__round_up(m, g->tile->unit),
                pairs, to, ldc, more, (struct cmoe_cpu_ahead){0});
            if (last)
                g->tile->scale(m, to, ldc, row_scales(it, 0) + r, column_scales(it, 0), to, ldc,
                               false);
        }
    }
}
