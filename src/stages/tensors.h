/* SPDX-License-Identifier: MIT
 * A call's arguments: what must be there, strides, and weights that fit. */
#ifndef CMOE_STAGES_TENSORS_H
#define CMOE_STAGES_TENSORS_H

#include "core/weights.h"
#include "stages/shape.h"
#include <cmoe/plan.h>

/* Everything that the first and last stage of p need is there, strides are long enough, and on a
 * host device y does not partly overlap x. w: NULL if neither the call nor the plan has weights. */
cmoe_status cmoe__tensors_check(const cmoe_problem *p, const struct cmoe_shape *s,
                                const cmoe_tensors *t, const cmoe_weights *w, bool host);

/* Bytes from row to row of x; from token to token of y. */
int64_t cmoe__tensors_x_stride(const cmoe_problem *p, const struct cmoe_shape *s,
                               const cmoe_tensors *t);
int64_t cmoe__tensors_y_stride(const cmoe_problem *p, const struct cmoe_shape *s,
                               const cmoe_tensors *t);

/* Whether weights were made for p's geometry and formats; else CMOE_ERR_MISMATCH naming both. */
cmoe_status cmoe__weights_fit(const cmoe_problem *p, const cmoe_weights *w);

#endif
