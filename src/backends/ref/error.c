/* SPDX-License-Identifier: MIT
 * Intervals through roundings. Every rounding here is monotone, so the images of an interval's ends
 * bound the image of the interval: no case analysis of "near a boundary" is needed. */
#include "backends/ref/error.h"

#include "core/format.h"
#include "core/numeric.h"
#include <float.h>
#include <math.h>

double cmoe__unit(cmoe_dtype dtype)
{
    return dtype == CMOE_BF16 ? 0x1p-8 : (dtype == CMOE_F16 ? 0x1p-11 : 0x1p-24);
}

static double rounded(cmoe_dtype dtype, double v)
{
    return (double)cmoe__decode(dtype, cmoe__encode(dtype, (float)v, CMOE_ROUND_NEAREST_EVEN));
}

double cmoe__round_error(cmoe_dtype dtype, double v, double d)
{
    const double at = rounded(dtype, v);
    if (!isfinite(v) || !isfinite(d)) return INFINITY;
    return fmax(fabs(rounded(dtype, v + d) - at), fabs(rounded(dtype, v - d) - at));
}

/* The scales that amax +- d can lead to. */
struct scales {
    double low, high;
};

static struct scales f32_scales(cmoe_format f, double amax, double d)
{
    const cmoe_dtype t = (cmoe_dtype)f.dtype;
    return (struct scales){cmoe__scale_f32(t, (float)fmax(0, amax - d)),
                           cmoe__scale_f32(t, (float)(amax + d))};
}

static struct scales mx_scales(cmoe_format f, double amax, double d)
{
    const cmoe_dtype t = (cmoe_dtype)f.dtype;
    const cmoe_mx_rounding r = (cmoe_mx_rounding)f.mx_rounding;
    return (struct scales){
        cmoe__decode(CMOE_E8M0, cmoe__scale_e8m0(t, (float)fmax(0, amax - d), r)),
        cmoe__decode(CMOE_E8M0, cmoe__scale_e8m0(t, (float)(amax + d), r))};
}

static double nv_scale(double amax, double global)
{
    const uint8_t code = cmoe__scale_nv_block((float)amax, (float)global);
    return (double)((float)cmoe__decode(CMOE_E4M3, code) * (float)global);
}

static struct scales nv_scales(double amax, double d, struct scales g)
{
    const double low =
        fmin(nv_scale(fmax(0, amax - d), g.low), nv_scale(fmax(0, amax - d), g.high));
    const double high = fmax(nv_scale(amax + d, g.low), nv_scale(amax + d, g.high));
    return (struct scales){fmin(low, high), fmax(low, high)};
}

/* Code of v under scale s, times scale t. */
static double coded(cmoe_format f, double v, double s, double t)
{
    const cmoe_dtype type = (cmoe_dtype)f.dtype;
    if (s == 0) return 0;
    return (double)cmoe__decode(
               type, cmoe__encode(type, (float)v / (float)s, (cmoe_rounding)f.rounding)) *
           t;
}

/* value[i] under the exact scale, error[i] from the ends of v +- d under both of s. value may be v
 * and error d. */
static void spread(cmoe_format f, const double *v, const double *d, int64_t n, double exact,
                   struct scales s, double *value, double *error)
{
    for (int64_t i = 0; i < n; i++) {
        const double from = v[i], off = d[i], to = coded(f, from, exact, exact);
        double worst = 0;
        for (int end = -1; end <= 1; end += 2) {
            const double at = from + end * off;
            worst = fmax(worst, fabs(coded(f, at, s.low, s.low) - to));
            if (s.low != s.high) {
                worst = fmax(worst, fabs(coded(f, at, s.high, s.high) - to));
                worst = fmax(worst, fabs(coded(f, at, s.low, s.high) - to));
                worst = fmax(worst, fabs(coded(f, at, s.high, s.low) - to));
            }
        }
        const bool known = isfinite(from) && isfinite(off) && isfinite(s.high) && isfinite(to);
        value[i] = to;
        error[i] = known ? worst : INFINITY;
    }
}

/* Largest |v| and how far it may be off. */
static double amax_of(const double *v, const double *d, int64_t n, double *error)
{
    double amax = 0, most = 0;
    for (int64_t i = 0; i < n; i++) {
        amax = isnan(v[i]) || isnan(amax) ? NAN : fmax(amax, fabs(v[i]));
        most = fmax(most, fabs(v[i]) + d[i]);
    }
    *error = most - amax;
    /* Below: the largest element alone may shrink by its own error. */
    for (int64_t i = 0; i < n; i++)
        if (fabs(v[i]) == amax) *error = fmax(*error, d[i]);
    return amax;
}

static struct scales block_scales(cmoe_format f, double amax, double d, struct scales global)
{
    if (f.scaling == CMOE_SCALE_MX) return mx_scales(f, amax, d);
    if (f.scaling == CMOE_SCALE_NV) return nv_scales(amax, d, global);
    return f32_scales(f, amax, d);
}

void cmoe__quantize_error(cmoe_format f, const double *v, const double *d, int64_t n, double amax,
                          double amax_error, const float *fixed, double *value, double *error)
{
    const struct scales given = {fixed ? *fixed : 1, fixed ? *fixed : 1};
    struct scales global = given, exact_global = given;
    if (f.scaling == CMOE_SCALE_NV && !fixed) {
        double off;
        const double top = amax_of(v, d, n, &off);
        global = (struct scales){cmoe__scale_nv_global((float)fmax(0, top - off)),
                                 cmoe__scale_nv_global((float)(top + off))};
        exact_global.low = exact_global.high = cmoe__scale_nv_global((float)top);
    }
    const int64_t step = cmoe__format_span(f, n);
    for (int64_t at = 0; at < n; at += step) {
        const int64_t m = at + step < n ? step : n - at;
        double off = amax_error, top = amax;
        if (f.scaling != CMOE_SCALE_TENSOR) top = amax_of(v + at, d + at, m, &off);
        struct scales exact = given, s = given;
        if (f.scaling != CMOE_SCALE_TENSOR || !fixed) {
            s = block_scales(f, top, off, global);
            exact = block_scales(f, top, 0, exact_global);
        }
        spread(f, v + at, d + at, m, exact.low, s, value + at, error + at);
    }
}
