/* SPDX-License-Identifier: MIT
 * The table of CUDA rows. */
#ifndef CMOE_BACKENDS_CUDA_FAMILIES_H
#define CMOE_BACKENDS_CUDA_FAMILIES_H

#include "plan/kernel.h"

enum {
#define KERNEL(row, a, b, f1, f2, fam, tile) CMOE_CUDA_ROW_##row,
#define CONVERT(row, a, b, fam)              CMOE_CUDA_ROW_##row,
#include "backends/cuda/kernels.def"
#undef KERNEL
#undef CONVERT
    CMOE_CUDA_KERNELS,
};

enum { CMOE_CUDA_LAUNCH_US = 3 };

/* Starts from the usual edge before the row's first stage, and ends at the usual one. */
bool cmoe__cuda_starts_here(const struct cmoe_kernel *k, const struct cmoe_query *q,
                            struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why);

bool cmoe__cuda_quant_e4m3_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                                    struct cmoe_edge in, struct cmoe_edge *out,
                                    struct cmoe_why *why);
/* Of portable rows: bytes over bandwidth, or for GEMMs arithmetic; and a launch. */
double cmoe__cuda_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q);

extern const struct cmoe_kernel cmoe__cuda_kernels[CMOE_CUDA_KERNELS];

#endif
