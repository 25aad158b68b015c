/* SPDX-License-Identifier: MIT
 * What every multiplier asks of an item: where its rows are and with which scales, its panels, and how
 * rows for pairs and quads lie. Nothing here calls a multiplier. */
#include "backends/cpu/gemm_item.h"

#include "backends/cpu/ops_tile.h"
#include "core/format.h"
#include "core/numeric.h"
#include "core/size.h"

struct cmoe_cpu_input cmoe__cpu_input_row(const struct cmoe_cpu_item *it, int r)
{
    const struct cmoe_exec *const x = &it->run->x;
    const bool first = it->g->matrix == 1;
    const cmoe_format f = first ? x->p->x : x->p->mid;
    const int64_t n = first ? x->shape->H : x->shape->I;
    const int64_t row = first ? cmoe__exec_x_row(x, it->rows[r]) : it->rows[r];
    const int64_t stride = first ? x->xq_stride : (int64_t)cmoe__row_code_bytes(f, n);
    const char *const scales = first ? x->xs : x->hs;
    const float *const globals = first ? x->xg : x->hg;
    struct cmoe_cpu_input in = {.f = f,
                                .codes = (const char *)(first ? x->xq : x->hq) + row * stride};
    if (scales) in.scales = scales + (size_t)row * cmoe__row_scale_bytes(f, n);
    if (f.scaling == CMOE_SCALE_NV && f.fixed)
        in.global = first ? cmoe__exec_x_static_global(x) : x->t->mid_scale;
    else if (f.scaling == CMOE_SCALE_NV && globals)
        in.global = globals + row;
    return in;
}

float cmoe__cpu_one_scale(const struct cmoe_cpu_input *in)
{
    return in->f.scaling == CMOE_SCALE_NONE ? 1.0f : *(const float *)in->scales;
}

struct cmoe_cpu_x_scale cmoe__cpu_x_scale(const struct cmoe_cpu_input *in, int64_t first, int64_t k,
                                          float groups[CMOE_CPU_GROUPS])
{
    const int64_t span = cmoe__format_span(in->f, INT64_MAX);
    struct cmoe_cpu_x_scale s = {.global = in->global ? *in->global : 1.0f};
    if (span == INT64_MAX) {
        s.one = cmoe__cpu_one_scale(in);
        return s;
    }
    const cmoe_dtype dtype = cmoe__format_scale_dtype(in->f);
    s.span = span;
    s.of_group = groups;
    for (int64_t g = 0; g * span < k; g++)
        groups[g] = cmoe__load(dtype, in->scales, first / span + g);
    return s;
}

const char *cmoe__cpu_first_panel(const struct cmoe_cpu_item *it)
{
    return cmoe__weights_panel(it->run->x.w, it->g->matrix, it->expert, it->col / CMOE_CPU_PANEL);
}

/* Rows of bf16 of all k's that leave room for panels in the second cache; fewer than these are not worth
 * reading panels for, and k's are cut instead. Matrix units read rows beside panels, however long. */
enum { PAIRS_BYTES = 576 << 10, PAIRS_LEAST = 48 };

static int64_t whole_rows(const struct cmoe_cpu_gemm *g)
{
    if (g->how != CMOE_CPU_MULTIPLY_FLOATS || g->tile->unit > 1) return 0;
    return PAIRS_BYTES / (2 * cmoe__max64(1, g->k));
}

int cmoe__cpu_tile_block(const struct cmoe_cpu_gemm *g)
{
    const int64_t fit = whole_rows(g);
    return fit < PAIRS_LEAST ? CMOE_CPU_TILE_ROWS : (int)cmoe__min64(fit, CMOE_CPU_TILE_ROWS);
}

int64_t cmoe__cpu_tile_k(const struct cmoe_cpu_gemm *g)
{
    if (g->how != CMOE_CPU_MULTIPLY_DOTS && whole_rows(g) >= PAIRS_LEAST) return g->k;
    return g->how == CMOE_CPU_MULTIPLY_DOTS ? g->k : cmoe__min64(g->k, CMOE_CPU_PAIRS_K);
}

int cmoe__cpu_tile_bytes(const struct cmoe_cpu_gemm *g)
{
    return g->how == CMOE_CPU_MULTIPLY_DOTS ? 1 : 2;
}

int64_t cmoe__cpu_tile_row(const struct cmoe_cpu_gemm *g)
{
    return cmoe__round_up(cmoe__cpu_tile_k(g) * cmoe__cpu_tile_bytes(g), CMOE_CPU_STEP) / 4;
}

int cmoe__cpu_next_rows(const struct cmoe_cpu_gemm *g, int left)
{
    const int each = cmoe__cpu_next_tile(left, g->tile->rows), unit = g->tile->unit;
    const int rows = (each + unit - 1) / unit * unit;
    return rows < left ? rows : left;
}

char *cmoe__cpu_packed_row(const struct cmoe_cpu_item *it, int r)
{
    return (char *)it->a + r * 4 * cmoe__cpu_tile_row(it->g);
}
