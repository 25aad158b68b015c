/* SPDX-License-Identifier: MIT
 * A call's arguments: checks and strides. */
#ifndef CMOE_PLAN_TENSORS_H
#define CMOE_PLAN_TENSORS_H

#include "plan/plan.h"

/* Everything that plan's first and last stage need is there, strides are long enough, y does not
 * partly overlap x. */
cmoe_status cmoe__plan_check_tensors(const struct cmoe_plan *plan, const cmoe_tensors *t,
                                     const cmoe_weights *w, int64_t tokens);

/* Bytes from row to row of x; from token to token of y. */
int64_t cmoe__plan_x_stride(const cmoe_problem *p, const struct cmoe_shape *s,
                            const cmoe_tensors *t);
int64_t cmoe__plan_y_stride(const cmoe_problem *p, const struct cmoe_shape *s,
                            const cmoe_tensors *t);

#endif
