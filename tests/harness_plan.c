/* SPDX-License-Identifier: MIT
 * Helpers for tests that plan: apart, so that tests of lower layers link without the planner. */
#include "harness.h"

#include <string.h>

int test_pins(cmoe_device *dev, const cmoe_problem *p, cmoe_stage stage, const char **pins)
{
    int n = 0;
    pins[n++] = NULL;
    cmoe_kernel_info info;
    for (int i = 0; cmoe_kernel_describe(i, &info); i++) {
        const bool alone = !info.conversion && info.first == stage && info.last == stage;
        if (alone && strcmp(info.backend, "ref") != 0 && n < TEST_PINS &&
            cmoe_kernel_supports(i, dev, p, NULL, 0)) {
            pins[n++] = info.name;
        }
    }
    return n;
}

void *test_workspace(struct guard *g, const cmoe_plan *plan)
{
    return guard_alloc(g, cmoe_plan_workspace_size(plan), 256, GUARD_OUTPUT);
}
