/* SPDX-License-Identifier: MIT
 * Helpers for tests that plan: apart, so that tests of lower layers link without the planner. */
#include "harness.h"

void *test_workspace(struct guard *g, const cmoe_plan *plan)
{
    return guard_alloc(g, cmoe_plan_workspace_size(plan), 256, GUARD_OUTPUT);
}
