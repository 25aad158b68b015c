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

extern const struct cmoe_kernel cmoe__cuda_kernels[CMOE_CUDA_KERNELS];

#endif
