/* SPDX-License-Identifier: MIT
 * p32: an expert's matrix as panels of 32 output columns, each panel all of K, in the order in which
 * the tile reads it: [K][32] for f32 and f16, [K/2][32][2] for bf16.
 *
 * Columns of a panel of a gated first matrix are 16 gate rows and the 16 up rows that belong to
 * them. Missing columns (N is rounded up), a missing last k (bf16) and everything past the columns
 * that count are zero. */
#include "backends/cpu/run.h"

#include "core/size.h"
#include "core/weights.h"
#include <stdio.h>
#include <string.h>

/* k's of a panel that are filled together, so that 32 strided columns stay in the first cache. */
enum { PACK_K = 64 };

static int64_t used_k(const cmoe_problem *p, int matrix)
{
    return matrix == 1 ? (int64_t)p->hidden - p->hidden_pad : (int64_t)p->inter - p->inter_pad;
}

static bool paired(const cmoe_problem *p, int matrix)
{
    return matrix == 1 && p->gate != CMOE_GATE_NONE;
}

static bool holds(const cmoe_problem *p, int matrix, char *why, size_t len)
{
    (void)matrix;
    if (p->w.scaling == CMOE_SCALE_NONE && cmoe__cpu_is_float(p->w.dtype)) return true;
    snprintf(why, len, "p32 holds f32, f16 and bf16 weights without scales, not %s",
             cmoe_dtype_name((cmoe_dtype)p->w.dtype));
    return false;
}

size_t cmoe__cpu_p32_panel(const cmoe_problem *p, int matrix)
{
    const int64_t k = cmoe__round_up(used_k(p, matrix), 2);
    return (size_t)k * CMOE_CPU_PANEL * (p->w.dtype == CMOE_F32 ? 4 : 2);
}

int64_t cmoe__cpu_p32_panels(const cmoe_problem *p, int matrix)
{
    if (paired(p, matrix)) return cmoe__ceil_div(p->inter, CMOE_CPU_PANEL / 2);
    return cmoe__ceil_div(matrix == 1 ? p->inter : p->hidden, CMOE_CPU_PANEL);
}

int64_t cmoe__cpu_p32_row(const cmoe_problem *p, int matrix, int64_t panel, int j)
{
    const int half = CMOE_CPU_PANEL / 2;
    if (paired(p, matrix)) {
        const int64_t i = panel * half + j % half;
        if (i >= p->inter) return -1;
        return j < half ? i : p->inter + i;
    }
    const int64_t n = panel * CMOE_CPU_PANEL + j;
    return n < (matrix == 1 ? p->inter : p->hidden) ? n : -1;
}

static void copy_f32(const struct cmoe_row *row, int64_t first, int64_t n, uint32_t *dst)
{
    const int64_t step = row->col_stride ? row->col_stride : 4;
    const char *src = (const char *)row->codes + first * step;
    for (int64_t k = 0; k < n; k++, src += step)
        memcpy(dst + k * CMOE_CPU_PANEL, src, 4);
}

/* pair: consecutive k's of a column lie side by side. */
static void copy_16(const struct cmoe_row *row, int64_t first, int64_t n, bool pair, uint16_t *dst)
{
    const int64_t step = row->col_stride ? row->col_stride : 2;
    const char *src = (const char *)row->codes + first * step;
    for (int64_t k = 0; k < n; k++, src += step) {
        const int64_t at = pair ? k / 2 * 2 * CMOE_CPU_PANEL + k % 2 : k * CMOE_CPU_PANEL;
        memcpy(dst + at, src, 2);
    }
}

/* One panel: dst is zero, `row` its 32 columns (codes NULL: padding). */
static void fill(cmoe_dtype dtype, const struct cmoe_row *row, int64_t k, char *dst)
{
    const size_t size = dtype == CMOE_F32 ? 4 : 2;
    for (int64_t first = 0; first < k; first += PACK_K) {
        const int64_t n = cmoe__min64(PACK_K, k - first);
        char *const block = dst + (size_t)first * CMOE_CPU_PANEL * size;
        for (int j = 0; j < CMOE_CPU_PANEL; j++) {
            if (!row[j].codes) continue;
            if (dtype == CMOE_F32)
                copy_f32(&row[j], first, n, (uint32_t *)(void *)block + j);
            else if (dtype == CMOE_BF16)
                copy_16(&row[j], first, n, true, (uint16_t *)(void *)block + 2 * j);
            else
                copy_16(&row[j], first, n, false, (uint16_t *)(void *)block + j);
        }
    }
}

static void pack(const cmoe_weights *w, int matrix, int expert, int64_t first, int64_t end,
                 void *dst)
{
    const cmoe_problem *const p = &w->p;
    const size_t panel_bytes = cmoe__cpu_p32_panel(p, matrix);
    const int64_t k = used_k(p, matrix);
    char *at = dst;
    for (int64_t panel = first; panel < end; panel++, at += panel_bytes) {
        struct cmoe_row row[CMOE_CPU_PANEL];
        memset(row, 0, sizeof row);
        memset(at, 0, panel_bytes);
        for (int j = 0; j < CMOE_CPU_PANEL; j++) {
            const int64_t n = cmoe__cpu_p32_row(p, matrix, panel, j);
            if (n >= 0) cmoe__weights_row(w, matrix, expert, n, &row[j]);
        }
        fill((cmoe_dtype)p->w.dtype, row, k, at);
    }
}

const struct cmoe_packing_format cmoe__cpu_p32 = {.name = "p32",
                                                  .holds = holds,
                                                  .panels = cmoe__cpu_p32_panels,
                                                  .panel_bytes = cmoe__cpu_p32_panel,
                                                  .pack = pack};

bool cmoe__cpu_reads_p32(const struct cmoe_kernel *k)
{
    const char *const format = k->format1 ? k->format1 : k->format2;
    return format && strncmp(format, cmoe__cpu_p32.name, strlen(cmoe__cpu_p32.name)) == 0;
}
