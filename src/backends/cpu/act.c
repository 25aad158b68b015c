/* SPDX-License-Identifier: MIT
 * ACT: gate and up of the sorted rows to h, in pieces that stay in the first cache. */
#include "backends/cpu/run.h"

#include "core/size.h"
#include <string.h>

/* Values of an item, about: some microseconds of work. Columns of a piece: 2 KiB of f32. */
enum { ITEM_VALUES = 4096, PIECE = 512 };

static int64_t item_rows(const struct cmoe_exec *x)
{
    return cmoe__max64(1, ITEM_VALUES / x->shape->I);
}

static int begin(struct cmoe_cpu_run *run)
{
    const struct cmoe_exec *const x = &run->x;
    return (int)cmoe__ceil_div(x->offsets[x->shape->local], item_rows(x));
}

static void one_row(const struct cmoe_cpu_run *run, int64_t row)
{
    const struct cmoe_exec *const x = &run->x;
    const struct cmoe_shape *const s = x->shape;
    const cmoe_dtype dtype = cmoe__shape_h_dtype(x->p);
    const int64_t size = dtype == CMOE_F32 ? 4 : 2;
    const float *const gate = x->gu + row * s->rows1;
    const float *const up = s->gated ? gate + s->I : NULL;
    char *const h = (char *)x->h + row * s->I * size;
    const bool weighted = x->p->weight_on == CMOE_WEIGHT_ON_ACT;
    const float weight = weighted ? cmoe__exec_weight(x, row) : 1.0f;
    for (int64_t first = 0; first < s->i_used; first += PIECE) {
        const int64_t n = cmoe__min64(PIECE, s->i_used - first);
        float v[PIECE];
        run->ops->act(&run->act, n, gate + first, up ? up + first : NULL, v);
        if (weighted) run->ops->scale(n, weight, v);
        run->ops->store_row(dtype, h + first * size, n, v);
    }
    memset(h + s->i_used * size, 0, (size_t)((s->I - s->i_used) * size));
}

static void item(struct cmoe_cpu_run *run, int i, int worker)
{
    const struct cmoe_exec *const x = &run->x;
    const int64_t rows = item_rows(x), first = i * rows;
    const int64_t end = cmoe__min64(first + rows, x->offsets[x->shape->local]);
    (void)worker;
    for (int64_t r = first; r < end; r++)
        one_row(run, x->rows[r]);
}

const struct cmoe_cpu_loop cmoe__cpu_loop_act = {.begin = begin, .item = item};
