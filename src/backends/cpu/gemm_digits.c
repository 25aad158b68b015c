/* SPDX-License-Identifier: MIT
 * An item over packed 4-bit codes by exact sums of spans (isa/tile_digits.h): all its rows are made
 * integers once, then panels pass. Rows with values that no integers of a span can stand for, which are
 * infinite, NaN or out of all proportion, stream in f32 instead. */
#include "backends/cpu/gemm_item.h"

#include "backends/cpu/ops_quant.h"
#include "core/format.h"
#include "core/size.h"
#include <string.h>

/* Most k's that integers of a span are summed over: 32 * 15 * 2^22 fits int32. */
enum { SPAN = 32 };

/* How a type of x becomes integers: the factor (0: by the span's largest value), and bytes. */
static bool digits_of(int dtype, struct cmoe_cpu_digits *out)
{
    switch ((cmoe_dtype)dtype) {
    case CMOE_BF16:
    case CMOE_F16:
        *out = (struct cmoe_cpu_digits){.digits = 3, .factor = 0};
        return true;
    case CMOE_E4M3: /* multiples of 2^-9, at most 448 */
        *out = (struct cmoe_cpu_digits){.digits = 3, .factor = 512};
        return true;
    case CMOE_E2M1:
        *out = (struct cmoe_cpu_digits){.digits = 1, .factor = 2};
        return true;
    case CMOE_I8:
        *out = (struct cmoe_cpu_digits){.digits = 1, .factor = 1};
        return true;
    case CMOE_NONE:
    case CMOE_F32:
    case CMOE_E4M3FNUZ:
    case CMOE_E5M2:
    case CMOE_E8M0:
    case CMOE_U8:
    case CMOE_I4:
    case CMOE_U4:
    case CMOE_I32:
    case CMOE_I64:
    case CMOE_DTYPE_COUNT:
        break;
    }
    return false;
}

bool cmoe__cpu_digits_layout(cmoe_format a, cmoe_format w, int64_t k, struct cmoe_cpu_digits *out)
{
    const int64_t x_span = cmoe__format_span(a, INT64_MAX), w_span = cmoe__format_span(w, k);
    struct cmoe_cpu_digits d;
    if (!digits_of(a.dtype, &d)) return false;
    if (w.dtype != CMOE_E2M1 && w.dtype != CMOE_I4 && w.dtype != CMOE_U4) return false;
    d.span = SPAN;
    if ((x_span != INT64_MAX && x_span % SPAN != 0) || (w_span < k && w_span % SPAN != 0))
        d.span = SPAN / 2;
    if (x_span != INT64_MAX && (x_span % d.span != 0 || CMOE_CPU_K_BLOCK % x_span != 0))
        return false;
    if (w_span < k && w_span % d.span != 0) return false;
    if (d.span != SPAN && w.dtype != CMOE_E2M1) return false;
    d.grouped = d.digits > 1 || x_span != INT64_MAX;
    if (d.span != SPAN && !d.grouped) return false;
    d.minus = w.zero ? 1 : (w.dtype == CMOE_E2M1 ? 12 : 8);
    d.unit = (w.dtype == CMOE_E2M1 ? 0.5f : 1.0f) / (d.factor == 0 ? 1 : d.factor);
    d.spans = cmoe__ceil_div(k, d.span);
    *out = d;
    return true;
}

int64_t cmoe__cpu_digits_row(const struct cmoe_cpu_gemm *g)
{
    return g->digits.spans * g->digits.span * g->digits.digits;
}

int64_t cmoe__cpu_digits_scratch(const struct cmoe_cpu_gemm *g)
{
    return 2 * g->row_block * g->digits.spans + CMOE_CPU_K_BLOCK + CMOE_CPU_PANEL_ROWS;
}

/* An item's rows as integers. */
struct packed {
    char *words;
    int32_t *offsets;
    float *scales; /* of every span, or one */
    float *chunk;  /* k's of one row in f32 */
    bool *streams; /* of every row */
    bool any;
};

/* Row r of the item times a panel, in f32. */
static void stream_row(const struct cmoe_cpu_item *it, int r, const char *panel, float *chunk)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const struct cmoe_cpu_item one = {
        .run = it->run, .g = g, .expert = it->expert, .rows = it->rows + r, .m = 1, .a = chunk};
    for (int64_t first = 0; first < g->k; first += CMOE_CPU_K_BLOCK) {
        const int64_t k = cmoe__min64(CMOE_CPU_K_BLOCK, g->k - first);
        cmoe__cpu_pack_values(&one, 1, first, k);
        g->quant->stream(&g->panel, panel, 1, first, k, chunk, it->c + r * CMOE_CPU_PANEL,
                         CMOE_CPU_PANEL, first > 0);
    }
}

/* k's [first, first + k) of all rows: a block. */
static void pack_block(const struct cmoe_cpu_item *it, int64_t first, int64_t k, struct packed *to)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const struct cmoe_cpu_digits *const d = &g->digits;
    const int64_t at = first / d->span * it->m;
    struct cmoe_cpu_digit_row rows[CMOE_CPU_PANEL_ROWS];
    float groups[CMOE_CPU_PANEL_ROWS][CMOE_CPU_GROUPS];
    cmoe_dtype dtype = CMOE_NONE;
    for (int r = 0; r < it->m; r++) {
        const struct cmoe_cpu_input in = cmoe__cpu_input_row(it, r);
        dtype = (cmoe_dtype)in.f.dtype;
        rows[r] = (struct cmoe_cpu_digit_row){
            .scale = cmoe__cpu_x_scale(&in, first, k, groups[r]),
            .codes = in.codes + first * cmoe_dtype_bits(dtype) / 8,
            .streams = &to->streams[r],
        };
    }
    g->quant->pack_digits(d, dtype, rows, it->m, k, to->words + at * d->digits * d->span,
                          to->offsets + at, to->scales + at);
}

static void pack_rows(const struct cmoe_cpu_item *it, struct packed *to)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const int64_t spans = it->m * g->digits.spans;
    to->words = (char *)it->a;
    to->offsets = (int32_t *)(void *)it->gathered;
    to->scales = it->gathered + spans;
    to->chunk = to->scales + spans;
    to->streams = (bool *)(to->chunk + CMOE_CPU_K_BLOCK);
    to->any = false;
    if (!it->packed) memset(to->streams, 0, (size_t)it->m * sizeof *to->streams);
    for (int64_t first = 0; first < g->k && !it->packed; first += CMOE_CPU_K_BLOCK)
        pack_block(it, first, cmoe__min64(CMOE_CPU_K_BLOCK, g->k - first), to);
    for (int r = 0; r < it->m; r++)
        to->any |= to->streams[r];
}

void cmoe__cpu_multiply_digits(const struct cmoe_cpu_item *it)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const char *const panels = cmoe__cpu_first_panel(it);
    struct packed rows;
    pack_rows(it, &rows);
    for (int64_t j = 0; j < it->cols; j += CMOE_CPU_PANEL) {
        const char *const panel = panels + j / CMOE_CPU_PANEL * g->panel.bytes;
        g->quant->dot_digits(&g->digits, &g->panel, panel, it->m, rows.words, rows.offsets,
                             rows.scales, it->c);
        for (int r = 0; r < it->m && rows.any; r++)
            if (rows.streams[r]) stream_row(it, r, panel, rows.chunk);
        cmoe__cpu_store_panel(it, j, it->c, CMOE_CPU_PANEL);
    }
}
