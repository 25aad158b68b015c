/* SPDX-License-Identifier: MIT
 * Finding things in a weights object: logical rows, biases, smooth vectors, packed slabs.
 *
 * Every reader addresses gate rows [0, I) and up rows [I, 2I); this file alone knows how the
 * storage orders them. */
#include "core/weights.h"
#include "core/fail.h"
#include "core/size.h"
#include <cmoe/record.h>

/* Where a logical row is stored. */
struct place {
    const cmoe_matrix *matrix;
    int64_t row;  /* physical */
    int64_t grid; /* row of the block-scale grid */
};

static struct place find(const cmoe_weights *w, int matrix, int expert, int64_t n)
{
    const int64_t inter = w->p.inter;
    if (matrix == 2) return (struct place){.matrix = &w->down[expert], .row = n, .grid = n / 128};
    const bool is_up = w->p.gate != CMOE_GATE_NONE && n >= inter;
    const int64_t row = is_up ? n - inter : n;
    if (is_up && w->up[expert].data)
        return (struct place){.matrix = &w->up[expert], .row = row, .grid = row / 128};
    struct place place = {.matrix = &w->gate[expert], .row = n, .grid = n / 128};
    if (w->p.gate == CMOE_GATE_INTERLEAVED) {
        place.row = 2 * row + is_up;
        place.grid = place.row / 128;
    } else if (is_up && !(w->p.flags & CMOE_BLOCK_JOINT)) {
        place.grid = cmoe__ceil_div(inter, 128) + row / 128;
    }
    return place;
}

void cmoe__weights_row(const cmoe_weights *w, int matrix, int expert, int64_t n,
                       struct cmoe_row *out)
{
    const struct place place = find(w, matrix, expert, n);
    const int64_t cols = matrix == 1 ? w->p.hidden : w->p.inter;
    cmoe__matrix_row(w->p.w, place.matrix, place.row, place.grid, cols, out);
}

float cmoe__weights_bias(const cmoe_weights *w, int matrix, int expert, int64_t n)
{
    if (!(w->p.flags & (matrix == 1 ? CMOE_BIAS1 : CMOE_BIAS2))) return 0;
    const struct place place = find(w, matrix, expert, n);
    return place.matrix->bias[place.row];
}

const float *cmoe__weights_smooth(const cmoe_weights *w, int matrix, int expert)
{
    return matrix == 1 ? w->gate[expert].smooth : w->down[expert].smooth;
}

void *cmoe__weights_panel(const cmoe_weights *w, int matrix, int expert, int64_t panel)
{
    const struct cmoe_packed *const p = &w->packed[matrix - 1];
    const int node = p->nodes > 1 ? (int)(((panel + 1) * p->nodes - 1) / p->panels) : 0;
    const size_t at = (size_t)(panel - cmoe__packed_first(p, node)) * p->panel_bytes;
    return (uint8_t *)p->data + (size_t)node * p->region + (size_t)expert * p->stride + at;
}

const char *cmoe_weights_format(const cmoe_weights *w, int matrix)
{
    if (!w) return NULL;
    const struct cmoe_packing_format *const format =
        matrix == 1 || matrix == 2 ? w->format[matrix - 1] : NULL;
    return format ? format->name : "canonical";
}

size_t cmoe_weights_owned_bytes(const cmoe_weights *w)
{
    return w ? w->owned : 0;
}

cmoe_status cmoe_weights_matrix(const cmoe_weights *w, int expert, int matrix,
                                cmoe_matrix *gate_or_down, cmoe_matrix *up)
{
    if (!w || !gate_or_down)
        return CMOE_FAIL(CMOE_ERR_INVALID, "%s is NULL", w ? "gate_or_down" : "weights");
    if (matrix != 1 && matrix != 2)
        return CMOE_FAIL(CMOE_ERR_INVALID, "matrix is %d, not 1 or 2", matrix);
    if (expert < 0 || expert >= w->experts)
        return CMOE_FAIL(CMOE_ERR_INVALID, "expert %d is outside [0, %d)", expert, w->experts);
    if (w->format[matrix - 1])
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "matrix %d is packed as %s: it has no canonical form", matrix,
                         w->format[matrix - 1]->name);
    *gate_or_down = matrix == 1 ? w->gate[expert] : w->down[expert];
    if (up) *up = matrix == 1 ? w->up[expert] : (cmoe_matrix){0};
    return CMOE_OK;
}
