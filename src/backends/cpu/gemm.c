/* SPDX-License-Identifier: MIT
 * GEMM1 and GEMM2. An item is a block of an expert's rows times a run of columns: its rows are
 * converted to f32 once, then every panel (or group of weight rows) of the run passes over them.
 *
 * Items are numbered expert by expert, runs outside, row blocks inside, so that neighbours read the
 * same weights. */
#include "backends/cpu/gemm_item.h"
#include "backends/cpu/ops_quant.h"
#include "backends/cpu/ops_tile.h"

#include "core/numa.h"
#include "core/numeric.h"
#include "core/size.h"
#include "core/weights.h"
#include <assert.h>

enum {
    /* Of an item's rows as integers: what panels leave of the second cache. */
    DIGIT_BYTES = 576 << 10,
    DIGIT_LEAST = 32, /* rows that decoding a panel is worth, however long they are */
};

void cmoe__cpu_gemm_plan(const cmoe_problem *p, const struct cmoe_shape *s, int matrix,
                         const struct cmoe_kernel *k, struct cmoe_cpu_gemm *out)
{
    const bool first = matrix == 1, p32 = cmoe__cpu_reads_p32(k);
    const struct cmoe_cpu_config *const config = k->config;
    struct cmoe_cpu_gemm g = {
        .matrix = matrix,
        .p32 = p32,
        .decodes = config->decodes,
        .how = config->tiles && config->how == CMOE_CPU_MULTIPLY_CODES ? CMOE_CPU_MULTIPLY_SPANS
                                                                       : config->how,
        .quant = cmoe__cpu_quant_ops((enum cmoe_isa)k->target),
        .a_dtype = (cmoe_dtype)(first ? p->x.dtype : p->mid.dtype),
        .w_dtype = (cmoe_dtype)p->w.dtype,
        .k = first ? s->h_used : s->i_used,
        .n = first ? s->rows1 : s->h_used,
        .n_stride = first ? s->rows1 : s->H,
        /* A decoded weight row costs like many dots: share it widely. */
        .row_block = config->decodes ? CMOE_CPU_ROW_BLOCK : CMOE_CPU_DOT_BLOCK,
    };
    if (p32) g.row_block = CMOE_CPU_PANEL_ROWS;
    if (config->how != CMOE_CPU_MULTIPLY_FLOATS) cmoe__cpu_panel_layout(p, matrix, &g.panel);
    if (config->how == CMOE_CPU_MULTIPLY_DIGITS) {
        (void)cmoe__cpu_digits_layout(first ? p->x : p->mid, p->w, g.k, &g.digits);
        const int64_t fit = DIGIT_BYTES / cmoe__max64(1, cmoe__cpu_digits_row(&g));
        g.row_block = (int)cmoe__max64(DIGIT_LEAST, cmoe__min64(g.row_block, fit / 8 * 8));
    }
    if (g.how == CMOE_CPU_MULTIPLY_SPANS)
        (void)cmoe__cpu_spans_layout(first ? p->x : p->mid, p->w, g.k, &g.spans);
    if (config->tiles) {
        g.tile = cmoe__cpu_tile_ops((enum cmoe_isa)k->target);
        g.row_block = cmoe__cpu_tile_block(&g);
    }
    g.cols = g.n;
    if (p32 && first) g.cols = cmoe__cpu_p32_panels(p, 1) * CMOE_CPU_PANEL;
    if (p32 && !first) g.cols = cmoe__round_up(g.n, CMOE_CPU_PANEL);
    const int64_t panel_bytes = g.k * CMOE_CPU_PANEL * cmoe_dtype_bits(g.w_dtype) / 8;
    const int64_t fit = CMOE_CPU_RUN_BYTES / cmoe__max64(1, panel_bytes);
    g.run = CMOE_CPU_PANEL * cmoe__max64(1, cmoe__min64(fit, CMOE_CPU_RUN_COLS / CMOE_CPU_PANEL));
    g.runs = (int)cmoe__ceil_div(g.cols, g.run);
    g.fused = p32 && first && k->first <= CMOE_STAGE_GEMM1 && k->last >= CMOE_STAGE_ACT;
    if (g.fused && k->last == CMOE_STAGE_REQUANT && s->I <= CMOE_CPU_H_COLS) g.h_cols = s->I;
    *out = g;
}

/* A worker holds the rows of an item in f32, its results, and where rows must be gathered or decoded
 * first, a few of them, or a decoded panel. */
static int64_t block_k(const struct cmoe_cpu_gemm *g)
{
    if (g->tile) return cmoe__cpu_tile_row(g);
    if (g->how == CMOE_CPU_MULTIPLY_DIGITS) return cmoe__cpu_digits_row(g) / 4;
    if (g->how == CMOE_CPU_MULTIPLY_DOTS) /* floats that hold a row of quads */
        return cmoe__round_up(cmoe__ceil_div(cmoe__cpu_dot_row(g), 4), CMOE_CPU_CHUNK);
    return cmoe__round_up(g->p32 ? cmoe__min64(g->k, CMOE_CPU_K_BLOCK) : g->k, CMOE_CPU_CHUNK);
}

enum {
    GATHER_ROWS = 8, /* at least dot_cols of every instruction set */
    DECODE_AT = 4,   /* gathered rows from here on hold one row in f64; at least dot_rows */
};

/* Whether panels are finished and stored one at a time, all k's of a block of rows being packed. */
static bool finishes_panels(const struct cmoe_cpu_gemm *g)
{
    if (g->tile) return cmoe__cpu_tile_finishes(g);
    if (g->how == CMOE_CPU_MULTIPLY_DOTS) return cmoe__cpu_dot_block(g) == g->k;
    return g->how == CMOE_CPU_MULTIPLY_DIGITS;
}

/* Most columns of an item whose results wait in memory, with its rows in the second cache. */
enum { WIDE_COLS = 1024 };

/* Tiles of a matrix unit multiply so fast that uneven items would cost more than packing rows again. */
static bool is_fast(const struct cmoe_cpu_gemm *g)
{
    return g->tile && g->tile->unit > 1;
}

/* Whether items may have more columns than `run`: theirs are as many as `begin` finds best. */
static bool widens(const struct cmoe_cpu_gemm *g)
{
    return finishes_panels(g) || (g->p32 && !is_fast(g));
}

/* Columns of results that a worker holds. */
static int64_t c_cols(const struct cmoe_cpu_gemm *g)
{
    if (finishes_panels(g)) return CMOE_CPU_PANEL;
    return widens(g) ? cmoe__max64(g->run, cmoe__min64(g->cols, WIDE_COLS)) : g->run;
}

/* Floats of it->gathered, in whole cache lines. */
static int64_t gathered_floats(const struct cmoe_cpu_gemm *g)
{
    int64_t n = g->p32 ? CMOE_CPU_PIECE * CMOE_CPU_PANEL : GATHER_ROWS * block_k(g);
    if (g->how == CMOE_CPU_MULTIPLY_DOTS) /* an offset of every row's groups */
        n = g->row_block * cmoe__ceil_div(g->k, g->panel.span);
    if (g->how == CMOE_CPU_MULTIPLY_DIGITS) n = cmoe__cpu_digits_scratch(g);
    if (g->tile) n = cmoe__cpu_tile_scratch(g);
    return cmoe__round_up(n, CMOE_CPU_CHUNK);
}

size_t cmoe__cpu_gemm_worker(const struct cmoe_cpu_gemm *g)
{
    const int64_t row = block_k(g) + c_cols(g);
    /* One more row of h is what rounding it needs. */
    const int64_t h = g->h_cols > 0 ? (g->row_block + 1) * g->h_cols : 0;
    return (size_t)(g->row_block * row + gathered_floats(g) + h) * sizeof(float);
}

/* A row of x or of the intermediate in any format, decoded to f32 in gathered row `slot`. */
static const void *decoded_row(const struct cmoe_cpu_item *it, int r, int slot)
{
    const struct cmoe_cpu_input in = cmoe__cpu_input_row(it, r);
    const bool tensor = in.f.scaling == CMOE_SCALE_TENSOR;
    const bool fixed = in.f.scaling == CMOE_SCALE_NV && in.f.fixed;
    float *const out = it->gathered + slot * block_k(it->g);
    double *const exact = (double *)(void *)(it->gathered + DECODE_AT * block_k(it->g));
    cmoe__dequantize_row_f64(in.f, in.codes, in.scales,
                             tensor ? (const float *)in.scales : (fixed ? in.global : NULL),
                             fixed ? NULL : in.global, it->g->k, exact);
    for (int64_t i = 0; i < it->g->k; i++)
        out[i] = (float)exact[i];
    return out;
}

/* Pack k's [first, first + k) of all rows, tile by tile. */
static void pack_block(const struct cmoe_cpu_item *it, int tile, int64_t first, int64_t k)
{
    const cmoe_dtype dtype = it->g->decodes ? CMOE_F32 : it->g->a_dtype;
    const int64_t size = dtype == CMOE_F32 ? 4 : 2;
    const int64_t k_padded = cmoe__round_up(k, CMOE_CPU_CHUNK);
    const void *rows[CMOE_CPU_ROW_BLOCK];
    for (int r = 0, m; r < it->m; r += m) {
        m = cmoe__cpu_next_tile(it->m - r, tile);
        for (int i = 0; i < m; i++)
            rows[i] = it->g->decodes ? decoded_row(it, r + i, i)
                                     : cmoe__cpu_input_row(it, r + i).codes + first * size;
        it->run->ops->pack_rows(dtype, rows, m, k, it->a + r * k_padded);
    }
}

/* k's of one panel times all rows, to column j of c. Tiles of 16-bit weights convert on the way, or a
 * piece is converted once where many rows share it. next: where the next panel's k's begin. */
static void multiply_panel(const struct cmoe_cpu_item *it, const char *panel, const char *next,
                           int64_t k, int64_t j, bool more)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const struct cmoe_cpu_ops *const ops = it->run->ops;
    const int64_t k_padded = cmoe__round_up(k, CMOE_CPU_CHUNK);
    const int64_t k_bytes = CMOE_CPU_PANEL * (g->w_dtype == CMOE_F32 ? 4 : 2);
    const bool converts = g->w_dtype != CMOE_F32 && it->m >= ops->widen_rows;
    const int64_t piece = converts ? CMOE_CPU_PIECE : k;
    for (int64_t at = 0; at < k; at += piece) {
        const int64_t n = cmoe__min64(piece, k - at);
        const char *const b = panel + at * k_bytes;
        const char *const ahead = at + n < k ? b + n * k_bytes : next;
        struct cmoe_cpu_share share =
            it->m <= ops->tile_rows
                ? cmoe__cpu_share_soon()
                : cmoe__cpu_share_ahead(it->m, ops->tile_rows, n, ahead, n * k_bytes);
        if (converts) ops->widen(g->w_dtype, n, b, it->gathered);
        for (int r = 0, m; r < it->m; r += m) {
            m = cmoe__cpu_next_tile(it->m - r, ops->tile_rows);
            ops->gemm_p32(converts ? CMOE_F32 : g->w_dtype, m, n, it->a + r * k_padded + at * m,
                          converts ? (const void *)it->gathered : b, it->c + r * g->run + j, g->run,
                          more || at > 0, cmoe__cpu_next_share(&share));
        }
    }
}

/* k's of a pass over panels: as many as fit where CMOE_CPU_K_BLOCK of a whole block of rows do, so that few
 * rows read each panel from end to end. */
static int64_t pass_k(const struct cmoe_cpu_item *it)
{
    const int64_t fit = it->g->row_block * block_k(it->g) / it->m;
    return fit / CMOE_CPU_CHUNK * CMOE_CPU_CHUNK;
}

static void multiply_p32(const struct cmoe_cpu_item *it)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const int64_t panel_bytes = (int64_t)cmoe__cpu_p32_panel(it->run->x.p, g->matrix);
    const int64_t k_bytes = CMOE_CPU_PANEL * (g->w_dtype == CMOE_F32 ? 4 : 2);
    const char *const panels = cmoe__cpu_first_panel(it);
    const int64_t block = pass_k(it);
    for (int64_t first = 0; first < g->k; first += block) {
        const int64_t k = cmoe__min64(block, g->k - first);
        if (!it->packed || k < g->k) pack_block(it, it->run->ops->tile_rows, first, k);
        for (int64_t j = 0; j < it->cols; j += CMOE_CPU_PANEL) {
            const char *const b = panels + j / CMOE_CPU_PANEL * panel_bytes + first * k_bytes;
            multiply_panel(it, b, b + panel_bytes, k, j, first > 0);
        }
    }
}

/* Pointers to n weight rows from column j on, and the type they are in; rows whose columns are
 * strided and those of quantised formats are copied out as f32. */
static cmoe_dtype weight_rows(const struct cmoe_cpu_item *it, int64_t j, int n, const void **rows)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    struct cmoe_row row;
    bool copied = g->decodes;
    for (int i = 0; i < n; i++) {
        cmoe__weights_row(it->run->x.w, g->matrix, it->expert, j + i, &row);
        rows[i] = row.codes;
        copied = copied || row.col_stride != 0;
    }
    if (!copied) return g->w_dtype;
    for (int i = 0; i < n; i++) {
        float *const copy = it->gathered + i * block_k(g);
        cmoe__weights_row(it->run->x.w, g->matrix, it->expert, j + i, &row);
        cmoe__row_decode_f32(it->run->x.p->w, &row, g->k, copy);
        rows[i] = copy;
    }
    return CMOE_F32;
}

static void multiply_rows(const struct cmoe_cpu_item *it)
{
    const struct cmoe_cpu_gemm *const g = it->g;
    const struct cmoe_cpu_ops *const ops = it->run->ops;
    const int64_t k_padded = block_k(g);
    if (!it->packed) pack_block(it, ops->dot_rows, 0, g->k);
    for (int64_t j = 0; j < it->cols; j += ops->dot_cols) {
        const void *rows[GATHER_ROWS];
        const int n = (int)cmoe__min64(ops->dot_cols, it->cols - j);
        const cmoe_dtype dtype = weight_rows(it, it->col + j, n, rows);
        for (int r = 0, m; r < it->m; r += m) {
            m = cmoe__cpu_next_tile(it->m - r, ops->dot_rows);
            ops->gemm_rows(dtype, m, n, g->k, it->a + r * k_padded, rows, it->c + r * g->run + j,
                           g->run);
        }
    }
}

static int64_t items_of(const struct cmoe_cpu_gemm *g, const struct cmoe_exec *x, int32_t expert)
{
    const int64_t rows = x->offsets[expert + 1] - x->offsets[expert];
    return cmoe__ceil_div(rows, g->row_block) * g->runs;
}

/* Rows are packed for every run of columns, so that there are no more runs than make items enough: twice as
 * many while an item's time is that of reading weights, and four times for fast tiles. */
static void widen_runs(const struct cmoe_exec *x, struct cmoe_cpu_gemm *g)
{
    int64_t blocks = 0;
    if (!widens(g)) return;
    for (int32_t e = 0; e < x->shape->local; e++)
        blocks += cmoe__ceil_div(x->offsets[e + 1] - x->offsets[e], g->row_block);
    const bool few = x->offsets[x->shape->local] < 8 * blocks;
    if (few && is_fast(g)) return;
    const int64_t enough = (is_fast(g) ? 4 : (few ? 2 : 1)) * CMOE_CPU_MANY_ITEMS;
    const int64_t most = finishes_panels(g) ? g->cols : c_cols(g);
    const int64_t runs =
        cmoe__max64(cmoe__ceil_div(g->cols, most), cmoe__ceil_div(enough, cmoe__max64(1, blocks)));
    if (runs >= g->runs) return;
    g->run = cmoe__round_up(cmoe__ceil_div(g->cols, runs), CMOE_CPU_PANEL);
    g->runs = (int)cmoe__ceil_div(g->cols, g->run);
}

/* First column of a node's share of an expert; of `nodes`: the end. */
static int64_t node_col(const struct cmoe_cpu_gemm *g, int node)
{
    if (g->nodes == 1) return node == 0 ? 0 : g->cols;
    return cmoe__min64(g->cols, g->panels * node / g->nodes * CMOE_CPU_PANEL);
}

/* Runs end where a node's share of packed weights does; all nodes have as many. */
static void share_runs(const struct cmoe_exec *x, struct cmoe_cpu_gemm *g)
{
    const struct cmoe_packed *const packed = &x->w->packed[g->matrix - 1];
    g->nodes = g->p32 ? packed->nodes : 1;
    if (g->nodes == 1) return;
    g->panels = packed->panels;
    const int64_t most = cmoe__ceil_div(g->panels, g->nodes) * CMOE_CPU_PANEL;
    g->runs = (int)cmoe__ceil_div(most, g->run);
}

static int begin(struct cmoe_cpu_run *run, struct cmoe_cpu_gemm *g)
{
    const int32_t local = run->x.shape->local;
    int64_t next = 0;
    widen_runs(&run->x, g);
    share_runs(&run->x, g);
    run->nodes = g->nodes;
    for (int32_t e = 0; e < local; e++) {
        g->item_of[e] = (int32_t)next;
        next += items_of(g, &run->x, e);
    }
    g->item_of[local] = (int32_t)next;
    run->in_order =
        g->nodes == 1 && run->x.offsets[local] * g->runs < (int64_t)CMOE_CPU_STREAM_ROWS * next;
    assert(next <= INT32_MAX / CMOE_NODES); /* more would be results of terabytes */
    return (int)next;
}

/* h of an item that has all its columns, to codes. */
static void requant(const struct cmoe_cpu_item *it)
{
    const int64_t inter = it->run->x.shape->I;
    for (int r = 0; r < it->m; r++)
        cmoe__cpu_requant_row(it->run, it->rows[r], it->expert, it->h + r * inter,
                              it->h + it->g->row_block * inter);
}

static int32_t expert_of(const struct cmoe_cpu_gemm *g, int32_t local, int item)
{
    int32_t low = 0, high = local - 1; /* last expert whose first item is not after `item` */
    while (low < high) {
        const int32_t middle = low + (high - low + 1) / 2;
        if (g->item_of[middle] <= item)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* Whether the worker's last item had the same rows: those of one expert, or, of x, one row. They are its last from
 * here on. */
static bool knows_rows(const struct cmoe_cpu_item *it, struct cmoe_cpu_packed *last)
{
    const int64_t x_row = it->g->matrix == 1 ? cmoe__exec_x_row(&it->run->x, it->rows[0]) : -1;
    const bool same =
        last->rows == it->m &&
        (last->of == it->rows || (it->g->matrix == 1 && it->m == 1 && last->x_row == x_row));
    *last = (struct cmoe_cpu_packed){.rows = it->m, .of = it->rows, .x_row = x_row};
    return same;
}

static void do_item(struct cmoe_cpu_run *run, const struct cmoe_cpu_gemm *g, int item, int worker)
{
    const struct cmoe_exec *const x = &run->x;
    const int node = run->nodes > 1 ? item / run->n_items : 0;
    item -= node * run->n_items;
    const int32_t e = expert_of(g, x->shape->local, item);
    const int32_t first = x->offsets[e], rows = x->offsets[e + 1] - first;
    const int blocks = (int)cmoe__ceil_div(rows, g->row_block);
    const int local = item - g->item_of[e];
    const int block = local % blocks;
    const int32_t from =
        (int32_t)((int64_t)rows * block / blocks); /* blocks of nearly equal size */
    const int64_t col = node_col(g, node) + local / blocks * g->run, end = node_col(g, node + 1);
    if (col >= end) return;
    float *const scratch = cmoe__cpu_worker(run, worker);
    const int64_t k = block_k(g);
    struct cmoe_cpu_item it = {
        .run = run,
        .g = g,
        .expert = e,
        .rows = x->rows + first + from,
        .m = (int)((int64_t)rows * (block + 1) / blocks) - from,
        .col = col,
        .cols = cmoe__min64(g->run, end - col),
        .a = scratch,
        .c = scratch + g->row_block * k,
        .gathered = scratch + g->row_block * (k + c_cols(g)),
        .h = run->requants && g->matrix == 1
                 ? scratch + g->row_block * (k + c_cols(g)) + gathered_floats(g)
                 : NULL,
    };
    it.packed = knows_rows(&it, &run->packed[worker]);
    if (g->tile)
        cmoe__cpu_multiply_tiles(&it);
    else if (g->how == CMOE_CPU_MULTIPLY_DOTS)
        cmoe__cpu_multiply_dots(&it);
    else if (g->how == CMOE_CPU_MULTIPLY_DIGITS)
        cmoe__cpu_multiply_digits(&it);
    else if (g->how == CMOE_CPU_MULTIPLY_CODES)
        cmoe__cpu_multiply_codes(&it);
    else if (g->p32)
        multiply_p32(&it);
    else
        multiply_rows(&it);
    for (int64_t j = 0; j < it.cols && !finishes_panels(g); j += CMOE_CPU_PANEL)
        cmoe__cpu_store_panel(&it, j, it.c + j, g->run);
    run->ops->finish_far();
    if (it.h) requant(&it);
}

static int begin1(struct cmoe_cpu_run *run)
{
    struct cmoe_cpu_gemm *const g = &run->gemm[0];
    const cmoe_format mid = run->x.p->mid;
    const int items = begin(run, g);
    run->requants = g->h_cols > 0 && g->runs == 1 && g->nodes == 1 &&
                    (mid.scaling != CMOE_SCALE_TENSOR || mid.fixed);
    return items;
}

static void item1(struct cmoe_cpu_run *run, int item, int worker)
{
    do_item(run, &run->gemm[0], item, worker);
}

static int begin2(struct cmoe_cpu_run *run)
{
    return begin(run, &run->gemm[1]);
}

static void item2(struct cmoe_cpu_run *run, int item, int worker)
{
    do_item(run, &run->gemm[1], item, worker);
}

const struct cmoe_cpu_loop cmoe__cpu_loop_gemm1 = {.begin = begin1, .item = item1};
const struct cmoe_cpu_loop cmoe__cpu_loop_gemm2 = {.begin = begin2, .item = item2};
