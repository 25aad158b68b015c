/* SPDX-License-Identifier: MIT
 * Pins: a caller's list of rows that must be taken wherever one of them can be. */
#ifndef CMOE_PLAN_PIN_H
#define CMOE_PLAN_PIN_H

#include "plan/plan.h"

/* Keep a copy of the list in the plan and mark the rows that it names; NULL: no pin. */
cmoe_status cmoe__pin_set(struct cmoe_plan *plan, const char *pin);
/* CMOE_ERR_INVALID unless a row that the pin names can be used for some number of tokens. */
cmoe_status cmoe__pin_check(const struct cmoe_plan *plan);
/* Bit s: a pinned row that is usable for q's tokens does stage s. */
uint32_t cmoe__pin_stages(const struct cmoe_plan *plan, const struct cmoe_query *q);
/* Whether row i is not pinned and does one of `stages`. */
bool cmoe__pin_excludes(const struct cmoe_plan *plan, int i, uint32_t stages);

#endif
