/* SPDX-License-Identifier: MIT
 * Tuned choices: measured times that replace a row's estimate. docs/tuning.md has the format. */
#ifndef CMOE_PLAN_TUNED_H
#define CMOE_PLAN_TUNED_H

#include "plan/plan.h"

/* Read the context's tuned text into plan->tuned: microseconds of (row, bucket), negative where
 * nothing was measured. Lines for other devices, problems, kernels or versions of the format are
 * passed over; a file can slow a plan down but never make it wrong. */
cmoe_status cmoe__tuned_load(struct cmoe_plan *plan);

/* Measured time of the i-th row for a bucket, or negative. */
double cmoe__tuned_us(const struct cmoe_plan *plan, int row, int bucket);

#endif
