/* SPDX-License-Identifier: MIT
 * Error intervals through a rounding: what a value that is only known to +-d may become. */
#ifndef CMOE_BACKENDS_REF_ERROR_H
#define CMOE_BACKENDS_REF_ERROR_H

#include <cmoe/problem.h>

/* u of docs/numerics.md: half the distance from 1 to the next number. */
double cmoe__unit(cmoe_dtype dtype);

/* Largest distance between round(v) and round(v') for |v' - v| <= d, rounding to a float type. */
double cmoe__round_error(cmoe_dtype dtype, double v, double d);

/* Quantise v[n] (known to +-d[n]; zeros past the columns that count) as one row of format f:
 * value[n] the exact result, error[n] how far another kernel's result may lie from it.
 * amax, amax_error: of the whole tensor (TENSOR dynamic); else ignored. fixed: static scale. */
void cmoe__quantize_error(cmoe_format f, const double *v, const double *d, int64_t n, double amax,
                          double amax_error, const float *fixed, double *value, double *error);

#endif
