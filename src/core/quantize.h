/* SPDX-License-Identifier: MIT
 * The parts that quantising an activation row and a weight matrix have in common. */
#ifndef CMOE_CORE_QUANTIZE_H
#define CMOE_CORE_QUANTIZE_H

#include "core/numeric.h"

/* v[first, end) / scale to codes[first, end); `first` is even. */
void cmoe__quantize_span(cmoe_format f, const float *v, int64_t first, int64_t end, float scale,
                         void *codes);
/* A whole row in blocks of 32 with e8m0 scales, of 16 with e4m3 scales under `global`. */
void cmoe__quantize_mx(cmoe_format f, const float *v, int64_t n, void *codes, uint8_t *scale);
void cmoe__quantize_nv(cmoe_format f, const float *v, int64_t n, float global, void *codes,
                       uint8_t *scale);

#endif
