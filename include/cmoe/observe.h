/* SPDX-License-Identifier: MIT
 * Calibration: largest magnitudes of a layer's input and intermediate over given tokens, from
 * which the static scales of fp8-tensor:static and mxfp4-w4a8 follow. */
#ifndef CMOE_OBSERVE_H
#define CMOE_OBSERVE_H

#include <cmoe/plan.h>

CMOE_BEGIN_DECLS

typedef struct cmoe_observation {
    size_t struct_size;
    int64_t tokens; /* tokens seen so far */
    float x_amax;   /* largest |x| of tokens that were routed */
    float mid_amax; /* largest |activation result| over all computed slots */
} cmoe_observation;

/** Run ROUTE..ACT of p (which must start at ROUTE, QUANT or SORT) on `dev` over the tokens of t and
 *  fold the magnitudes into *obs (zero it before the first call). p's x and mid formats are taken
 *  as unquantised, so the scales do not depend on themselves. NaN and infinities are skipped.
 *  Allocates and frees its own workspace. @return as cmoe_plan_create and cmoe_execute. */
CMOE_API cmoe_status cmoe_observe(cmoe_device *dev, const cmoe_problem *p, const cmoe_weights *w,
                                  const cmoe_tensors *t, cmoe_observation *obs) CMOE_MUST_CHECK;

/** Static scale of format f for a largest magnitude: amax / largest finite value of the dtype (NV:
 *  amax / (6 * 448)); 1 when amax is 0. */
CMOE_API float cmoe_static_scale(cmoe_format f, float amax);

CMOE_END_DECLS

#endif
