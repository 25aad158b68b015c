/* SPDX-License-Identifier: MIT
 * What the two ways of making a weights object share. */
#ifndef CMOE_PLAN_WEIGHTS_H
#define CMOE_PLAN_WEIGHTS_H

#include <cmoe/weights.h>

/* Refuse arguments and tables that cannot be right, before anything is read. */
cmoe_status cmoe__weights_check(const cmoe_device *dev, const cmoe_problem *p,
                                const cmoe_weights_desc *desc, cmoe_weights *const *out);

#endif
