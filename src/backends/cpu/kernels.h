/* SPDX-License-Identifier: MIT
 * The table of this backend's rows. */
#ifndef CMOE_BACKENDS_CPU_KERNELS_H
#define CMOE_BACKENDS_CPU_KERNELS_H

#include "plan/kernel.h"

/* clang-format off */
enum {
#define KERNEL(name, first, last, target, priority, format1, format2, config) CMOE_CPU_ROW_##name,
#include "backends/cpu/kernels.def"
#undef KERNEL
    CMOE_CPU_KERNELS,
};
/* clang-format on */

extern const struct cmoe_kernel cmoe__cpu_kernels[CMOE_CPU_KERNELS];

#endif
