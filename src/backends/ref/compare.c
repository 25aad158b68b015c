/* SPDX-License-Identifier: MIT
 * Comparing a kernel's output with the reference. */
#include "core/numeric.h"
#include <cmoe/reference.h>
#include <math.h>

void cmoe_compare(cmoe_dtype dtype, const void *got, const double *want, const double *bound,
                  int64_t n, cmoe_error *out)
{
    if (!out) return;
    double squares = 0, wanted = 0;
    int64_t zeros = 0;
    *out = (cmoe_error){.n = n, .first = -1};
    for (int64_t i = 0; i < n; i++) {
        const double g = (double)cmoe__load(dtype, got, i), limit = bound ? bound[i] : 0;
        zeros += want[i] == 0;
        /* Equal infinities and NaN against NaN agree; an infinite bound promises nothing. */
        if (g == want[i] || (isnan(g) && isnan(want[i])) || isinf(limit)) continue;
        const double error = fabs(g - want[i]);
        if (!(error <= limit)) {
            out->outside++;
            if (out->first < 0) out->first = i;
        }
        out->max_abs = isnan(error) ? NAN : fmax(out->max_abs, error);
        const double ratio = limit > 0 ? error / limit : INFINITY;
        out->max_ratio = isnan(ratio) ? INFINITY : fmax(out->max_ratio, ratio);
        squares += error * error;
        wanted += want[i] * want[i];
    }
    for (int64_t i = 0; i < n; i++)
        if (isfinite(want[i]) && (double)cmoe__load(dtype, got, i) == want[i])
            wanted += want[i] * want[i];
    out->rel_l2 = wanted > 0 ? sqrt(squares / wanted) : (squares > 0 ? INFINITY : 0);
    out->zeros = n > 0 ? (double)zeros / (double)n : 0;
}
