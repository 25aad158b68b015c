/* SPDX-License-Identifier: MIT
 * Which weight formats a plan reads. */
#ifndef CMOE_PLAN_FORMATS_H
#define CMOE_PLAN_FORMATS_H

#include "plan/plan.h"

/* Set plan->format1/2 (static strings of kernel rows, or only1/only2) and the paths' costs and
 * regrets. only1, only2: the formats that weights or options dictate, or NULL. A bucket that no
 * pair covers has infinite cost. False: out of memory. */
bool cmoe__plan_choose_formats(struct cmoe_plan *plan, const cmoe_plan_options *opt,
                               const char *only1, const char *only2);

#endif
