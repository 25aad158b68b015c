/* SPDX-License-Identifier: MIT
 * The refusal that stops a problem, by its id in refusals.def. */
#ifndef CMOE_CORE_PROBLEM_CHECK_H
#define CMOE_CORE_PROBLEM_CHECK_H

#include <cmoe/problem.h>

/* cmoe_problem_check; *id is "P01" ... or NULL for an accepted problem. */
cmoe_status cmoe__problem_check(const cmoe_problem *p, const char **id);

#endif
