/* SPDX-License-Identifier: MIT
 * COMBINE: weighted sum over a token's slots in slot order, rounded once. */
#include "backends/ref/ref.h"

#include "core/numeric.h"

/* y[row] = z[row] for every valid row of every expert's block. */
static void copy_batched(const struct cmoe_exec *x)
{
    const struct cmoe_shape *s = x->shape;
    for (int32_t e = 0; e < s->local; e++)
        for (int32_t r = 0; r < x->t->expert_offsets[e] && r < x->p->capacity; r++) {
            const int64_t row = (int64_t)e * x->p->capacity + r;
            char *y = (char *)x->y + row * x->y_stride;
            for (int64_t h = 0; h < s->H; h++)
                cmoe__store((cmoe_dtype)x->p->y, y, h, h < s->h_used ? x->z[row * s->H + h] : 0);
        }
}

/* Factor of a row's z, or 0 with *valid false when the slot is not computed here. */
static double row_factor(const struct cmoe_exec *x, int64_t row, bool *valid)
{
    *valid = cmoe__exec_local(x, x->ids[row]) >= 0;
    return x->p->weight_on == CMOE_WEIGHT_ON_OUTPUT ? (double)cmoe__exec_weight(x, row) : 1;
}

static void reduce_token(const struct cmoe_exec *x, int64_t t, char *y)
{
    const struct cmoe_shape *s = x->shape;
    const cmoe_dtype dtype = (cmoe_dtype)x->p->y;
    for (int64_t h = 0; h < s->H; h++) {
        double sum = 0;
        if (x->p->accumulate != 0) sum = (double)x->p->accumulate * (double)cmoe__load(dtype, y, h);
        for (int32_t i = 0; i < s->slots && h < s->h_used; i++) {
            const int64_t row = t * s->slots + i;
            bool valid;
            const double factor = row_factor(x, row, &valid);
            if (valid) sum += factor * (double)x->z[row * s->H + h];
        }
        cmoe__store(dtype, y, h, (float)sum);
    }
}

static void store_slots(const struct cmoe_exec *x, int64_t t, char *y)
{
    const struct cmoe_shape *s = x->shape;
    const cmoe_dtype dtype = (cmoe_dtype)x->p->y;
    for (int32_t i = 0; i < s->slots; i++) {
        const int64_t row = t * s->slots + i;
        bool valid;
        const double factor = row_factor(x, row, &valid);
        for (int64_t h = 0; h < s->H; h++)
            cmoe__store(dtype, y, i * s->H + h,
                        valid && h < s->h_used ? (float)(factor * (double)x->z[row * s->H + h])
                                               : 0);
    }
}

cmoe_status cmoe__ref_combine(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    if (x->shape->batched) {
        copy_batched(x);
        return CMOE_OK;
    }
    for (int64_t t = 0; t < x->tokens; t++) {
        char *y = (char *)x->y + t * x->y_stride;
        if (x->p->flags & CMOE_NO_REDUCE)
            store_slots(x, t, y);
        else
            reduce_token(x, t, y);
    }
    return CMOE_OK;
}
