/* SPDX-License-Identifier: MIT
 * The specification as a function: what a layer's result is, and how far a correct kernel may be
 * from it. For tests of kernels and of integrations; slow on purpose. */
#ifndef CMOE_REFERENCE_H
#define CMOE_REFERENCE_H

#include <cmoe/plan.h>

CMOE_BEGIN_DECLS

/** Compute a problem that ends in COMBINE (any first stage up to SORT) in fp64 from the tensors of
 *  t, and a bound for each element: |kernel - y| <= bound holds for every correct kernel
 *  (docs/numerics.md derives it: the same roundings replayed, plus accumulation and flips of
 *  requantised values near a rounding boundary). y and bound are f64, laid out and sized as
 *  cmoe_tensors.y without padding; either may be NULL. t->y is read only for `accumulate`.
 *  Allocates through ctx. @return as cmoe_execute. */
CMOE_API cmoe_status cmoe_reference(cmoe_context *ctx, const cmoe_problem *p, const cmoe_weights *w,
                                    const cmoe_tensors *t, double *y, double *bound)
    CMOE_MUST_CHECK;

typedef struct cmoe_error {
    int64_t n;        /* elements compared */
    int64_t outside;  /* elements outside their bound (NaN against a number counts) */
    int64_t first;    /* index of the first one outside, or -1 */
    double max_abs;   /* largest |got - want| */
    double max_ratio; /* largest |got - want| / bound */
    double rel_l2;    /* sqrt(sum (got-want)^2 / sum want^2) */
    double zeros; /* share of expected values that are 0: a comparison with > 0.5 proves little */
} cmoe_error;

/** Compare n values of type `dtype` with want and bound (NULL: 0). Stride in elements. */
CMOE_API void cmoe_compare(cmoe_dtype dtype, const void *got, const double *want,
                           const double *bound, int64_t n, cmoe_error *out);

CMOE_END_DECLS

#endif
