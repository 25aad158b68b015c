/* SPDX-License-Identifier: MIT
 * COMBINE: y of a token is the weighted sum of its slots' z in f32, in slot order, rounded once. An
 * item is a piece of the columns of some tokens. */
#include "backends/cpu/run.h"

#include "core/size.h"
#include <string.h>

/* Columns of an item: 4 KiB of sums. Tokens of an item once there are many. */
enum { PIECE = 1024, MANY_TOKENS = 64, ITEM_TOKENS = 8 };

enum { TOGETHER = 8 /* most slots that are read side by side */ };

/* Rows of y that are made: tokens, or slots when nothing is summed. */
static int64_t y_rows(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens)
{
    if (s->batched) return (int64_t)s->local * p->capacity;
    return p->flags & CMOE_NO_REDUCE ? tokens * s->slots : tokens;
}

static int64_t item_rows(int64_t rows)
{
    return rows >= MANY_TOKENS ? ITEM_TOKENS : 1;
}

int64_t cmoe__cpu_combine_items(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens)
{
    const int64_t rows = y_rows(p, s, tokens);
    return cmoe__ceil_div(rows, item_rows(rows)) * cmoe__ceil_div(s->H, PIECE);
}

static int begin(struct cmoe_cpu_run *run)
{
    return (int)cmoe__cpu_combine_items(run->x.p, run->x.shape, run->x.tokens);
}

/* Address of a row of y, NULL for a batched row that is not valid. */
static char *y_row(const struct cmoe_exec *x, int64_t row)
{
    char *const y = x->y;
    if (x->shape->batched) {
        const int64_t expert = row / x->p->capacity, at = row % x->p->capacity;
        return at < x->t->expert_offsets[expert] ? y + row * x->y_stride : NULL;
    }
    if (!(x->p->flags & CMOE_NO_REDUCE)) return y + row * x->y_stride;
    const int64_t slot_bytes = x->shape->H * cmoe_dtype_bits((cmoe_dtype)x->p->y) / 8;
    return y + row / x->shape->slots * x->y_stride + row % x->shape->slots * slot_bytes;
}

/* sum[n] += weight * z of slot rows [row, row + slots) that local experts computed, a few at a time: memory
 * answers for all of them at once. */
static void add_slots(const struct cmoe_cpu_run *run, int64_t row, int slots, int64_t col,
                      int64_t n, float *sum)
{
    const struct cmoe_exec *const x = &run->x;
    const bool weighted = x->p->weight_on == CMOE_WEIGHT_ON_OUTPUT;
    float weight[TOGETHER];
    const float *z[TOGETHER];
    for (int64_t i = row, m = 0; i < row + slots; i++) {
        const bool last = i + 1 == row + slots;
        if (x->shape->batched || cmoe__exec_local(x, x->ids[i]) >= 0) {
            weight[m] = weighted ? cmoe__exec_weight(x, i) : 1.0f;
            z[m++] = x->z + i * x->shape->H + col;
        }
        if (m < TOGETHER && !last) continue;
        run->ops->axpy(n, (int)m, weight, z, sum);
        m = 0;
    }
}

/* Columns [col, col + n) of one row of y. */
static void one_row(const struct cmoe_cpu_run *run, int64_t row, int64_t col, int64_t n)
{
    const struct cmoe_exec *const x = &run->x;
    const struct cmoe_shape *const s = x->shape;
    const cmoe_dtype dtype = (cmoe_dtype)x->p->y;
    char *const y = y_row(x, row);
    if (!y) return;
    char *const at = y + col * cmoe_dtype_bits(dtype) / 8;
    const bool one_slot = s->batched || (x->p->flags & CMOE_NO_REDUCE);
    const int64_t used = cmoe__max64(0, cmoe__min64(n, s->h_used - col));
    float sum[PIECE] = {0};
    add_slots(run, one_slot ? row : row * s->slots, one_slot ? 1 : s->slots, col, used, sum);
    if (!one_slot && x->p->accumulate != 0) {
        float old[PIECE];
        const float *const rows[] = {old};
        run->ops->load_row(dtype, at, n, old);
        run->ops->axpy(n, 1, &x->p->accumulate, rows, sum);
    }
    run->ops->store_row(dtype, at, n, sum);
}

static void item(struct cmoe_cpu_run *run, int i, int worker)
{
    const struct cmoe_exec *const x = &run->x;
    const int64_t pieces = cmoe__ceil_div(x->shape->H, PIECE);
    const int64_t all = y_rows(x->p, x->shape, x->tokens);
    const int64_t rows = item_rows(all), first = i / pieces * rows;
    const int64_t end = cmoe__min64(first + rows, all);
    const int64_t col = i % pieces * PIECE;
    (void)worker;
    for (int64_t row = first; row < end; row++)
        one_row(run, row, col, cmoe__min64(PIECE, x->shape->H - col));
}

const struct cmoe_cpu_loop cmoe__cpu_loop_combine = {.begin = begin, .item = item};
