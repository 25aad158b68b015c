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
    STREAM_TILES = 2,           /* that each decode in registers: more share what is decoded once */
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

/* Weights whose scales are rounded into them, for rows of bf16: groups so short that scaling sums costs more, and
 * zero points. */
static bool rounds(cmoe_format a, cmoe_format w)
{
    return a.scaling == CMOE_SCALE_NONE && (w.scaling == CMOE_SCALE_GROUP || w.zero);
}

bool cmoe__cpu_spans_layout(cmoe_format a, cmoe_format w, int64_t k, struct cmoe_cpu_spans *out)
{
    struct cmoe_cpu_spans s = {.x = own_span(a, k), .w = own_span(w, k), .w_folds = folds(w)};
    s.plain = a.scaling == CMOE_SCALE_NONE;
    if (s.plain ? a.dtype != CMOE_BF16 : w.scaling == CMOE_SCALE_NONE) return false;
    if (rounds(a, w)) {
        *out = (struct cmoe_cpu_spans){.plain = true, .w_folds = true, .rounds = true};
        return true;
    }
    const int64_t low = cmoe__min64(s.x, s.w), high = cmoe__max64(s.x, s.w);
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
    if (!g->spans.w_folds && l->scale == CMOE_F32) {
        memcpy(out, panel + l->head + group * l->group, CMOE_CPU_PANEL * sizeof *out);
        return;
    }
    for (int j = 0; j < CMOE_CPU_PANEL; j++)
        out[j] =
            g->spans.w_folds ? 1.0f : cmoe__load(l->scale, panel + l->head + group * l->group, j);
}

/* What a pass over k's of a panel reads. */
struct pass {
    const char *panel;
    struct cmoe_cpu_panel codes; /* its layout, without the scales that stay apart */
    int64_t first, packed;       /* k of the panel, and in packed rows */
    int64_t k;                   /* how many of both */
    const uint16_t *pairs; /* of all k's from there on; NULL: codes go straight into few rows */
    bool scaled;           /* sums have to be */
    bool rounds;           /* decoded weights are no bf16 yet */
};

/* Whether a flushed sum of codes would be more than 0 after its scale: one above 1, or NaN. */
static bool enlarges(const struct cmoe_cpu_gemm *g, const char *panel)
{
    const struct cmoe_cpu_panel *const l = &g->panel; /* one scale a channel or block: f32 */
    bool any = false;
    for (int64_t at = l->head; at < l->bytes; at += l->group) {
        const float *const scale = (const float *)(const void *)(panel + at);
        for (int j = 0; j < CMOE_CPU_PANEL; j++)
            any |= !(scale[j] <= 1);
    }
    return any;
}

/* Codes [first, first + k) of a panel as pairs, with the scales that go into them. */
static const uint16_t *decode_pairs(const struct cmoe_cpu_item *it, const struct pass *pass,
                                    int64_t first, int64_t k)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    float *const decoded = it->gathered + DECODED;
    uint16_t *const pairs = (uint16_t *)(void *)(it->gathered + PAIRS);
    if (g->tile->decode && g->tile->decode(&pass->codes, pass->panel, first, k, pairs))
        return pairs;
    for (int64_t at = 0; at < k; at += CMOE_CPU_PIECE) {
        const int64_t n = cmoe__min64(CMOE_CPU_PIECE, k - at);
        uint16_t *const to = pairs + at * CMOE_CPU_PANEL;
        g->quant->decode(&pass->codes, pass->panel, first + at, n, decoded);
        (pass->rounds ? g->tile->pair : g->tile->join)(n, decoded, to);
    }
    return pairs;
}

/* What the tiles of a pass over n k's fetch: the codes of as many that follow. */
static struct cmoe_cpu_share share_of(const struct cmoe_cpu_item *it, const struct pass *pass,
                                      int64_t n)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const int64_t bytes = g->panel.bytes;
    return cmoe__cpu_share_ahead(it->m, g->tile->rows, n,
                                 pass->panel + bytes * (pass->first + n) / g->k, bytes * n / g->k);
}

/* Rows [r, r + m) by k's [at, at + k) of the pass. ahead: of its first k. */
static void dot(const struct cmoe_cpu_item *it, struct pass *pass, int r, int m, int64_t at,
                int64_t k, float *c, int64_t ldc, bool more, struct cmoe_cpu_ahead ahead)
{
    const struct cmoe_cpu_tile_ops *const tile = it->g->tile;
    const char *const a =
        cmoe__cpu_packed_row(it, r) + 2 * (pass->packed + at) * cmoe__round_up(m, tile->unit);
    const uint16_t *pairs = pass->pairs ? pass->pairs + at * CMOE_CPU_PANEL : NULL;
    if (!pairs && tile->stream(&pass->codes, pass->panel, pass->first + at, k, m, a, c, ldc, more))
        return;
    if (!pairs) pairs = decode_pairs(it, pass, pass->first + at, k);
    if (k == pass->k) pass->pairs = pairs; /* for the next tile */
    ahead.at =
        (const void *)((uintptr_t)ahead.at + (uintptr_t)(at / CMOE_CPU_CHUNK * 64 * ahead.lines));
    tile->dot_bf16(m, k, a, pairs, c, ldc, more, ahead);
}

/* Scales of m rows from r on. */
static const float *scales_of(const struct cmoe_cpu_item *it, int r, int64_t at)
{
    static const float ones[TILE] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                     1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    return it->g->spans.plain ? ones : row_scales(it, at) + r;
}

/* Rows [r, r + m) by n k's of the pass, added to c a span at a time. */
static void add_spans(const struct cmoe_cpu_item *it, struct pass *pass, int r, int m, int64_t n,
                      struct cmoe_cpu_ahead ahead, float *c, int64_t ldc)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const int64_t span = g->spans.span;
    float *const sums = it->gathered + SUMS;
    for (int64_t i = 0; i < n; i += span) {
        dot(it, pass, r, m, i, cmoe__min64(span, n - i), sums, CMOE_CPU_PANEL, false, ahead);
        g->tile->scale(m, sums, CMOE_CPU_PANEL, scales_of(it, r, pass->packed + i),
                       column_scales(it, i), c, ldc, pass->first + i > 0);
    }
}

/* n k's of the pass by all rows; the last ones finish results. */
static void multiply_pass(const struct cmoe_cpu_item *it, struct pass *pass, int64_t n, float *c,
                          int64_t ldc)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const int64_t span = g->spans.span > 0 && pass->scaled ? g->spans.span : n;
    for (int64_t i = 0; i < n && pass->scaled; i += span)
        load_scales(g, pass->panel, pass->first + i, column_scales(it, i));
    struct cmoe_cpu_share share = share_of(it, pass, n);
    for (int r = 0, m; r < it->m; r += m) {
        m = cmoe__cpu_next_rows(g, it->m - r);
        const struct cmoe_cpu_ahead ahead = cmoe__cpu_next_share(&share);
        float *const to = c + r * ldc;
        if (g->spans.span > 0 && pass->scaled) {
            add_spans(it, pass, r, m, n, ahead, to, ldc);
            continue;
        }
        dot(it, pass, r, m, 0, n, to, ldc, pass->first > 0, ahead);
        if (pass->scaled && pass->first + n == g->k)
            g->tile->scale(m, to, ldc, scales_of(it, r, 0), column_scales(it, 0), to, ldc, false);
    }
}

/* A pass over a panel, whose k's are still to be said. */
static struct pass begin_pass(const struct cmoe_cpu_gemm *g, const char *panel)
{
    const bool folds = g->spans.w_folds || (g->spans.plain && enlarges(g, panel));
    struct pass pass = {.panel = panel,
                        .codes = g->panel,
                        .scaled = !g->spans.plain || !folds || g->panel.global,
                        .rounds = g->spans.plain && folds && !g->spans.w_folds};
    pass.rounds |= g->spans.rounds;
    pass.codes.global = false;
    if (!folds) pass.codes.scale = CMOE_NONE;
    return pass;
}

/* Whether the item's rows are one tile that decodes as it goes and whose sums are scaled at the end. */
static bool streams(const struct cmoe_cpu_item *it)
{
    return it->m <= it->g->tile->few && it->g->spans.span == 0;
}

int64_t cmoe__cpu_spans_block(const struct cmoe_cpu_item *it)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const int64_t room = g->row_block * cmoe__cpu_tile_row(g) * 4;
    const int64_t all = it->m * cmoe__round_up(2 * g->k, CMOE_CPU_STEP);
    return streams(it) && all <= room ? g->k : cmoe__cpu_tile_k(g);
}

/* All k's at once. false: not so, c as it was. */
static bool stream_panel(const struct cmoe_cpu_item *it, const struct pass *pass, int64_t first,
                         int64_t k, float *c, int64_t ldc)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    if (!streams(it) || !g->tile->stream(&pass->codes, pass->panel, first, k, it->m,
                                         cmoe__cpu_packed_row(it, 0), c, ldc, first > 0))
        return false;
    if (pass->scaled && first + k == g->k) {
        load_scales(g, pass->panel, 0, column_scales(it, 0));
        g->tile->scale(it->m, c, ldc, scales_of(it, 0, 0), column_scales(it, 0), c, ldc, false);
    }
    return true;
}

void cmoe__cpu_multiply_spans(const struct cmoe_cpu_item *it, const char *panel, int64_t first,
                              int64_t k, float *c, int64_t ldc)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    struct pass pass = begin_pass(g, panel);
    if (stream_panel(it, &pass, first, k, c, ldc)) return;
    for (int64_t at = 0, n; at < k; at += n) {
        n = cmoe__min64(CMOE_CPU_K_BLOCK, k - at);
        pass.first = first + at;
        pass.packed = at;
        pass.k = n;
        pass.pairs =
            it->m <= STREAM_TILES * g->tile->few ? NULL : decode_pairs(it, &pass, pass.first, n);
        multiply_pass(it, &pass, n, c, ldc);
    }
}
