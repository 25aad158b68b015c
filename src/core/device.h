/* SPDX-License-Identifier: MIT
 * A device: a backend opened, with the properties that kernels and costs are chosen by. */
#ifndef CMOE_CORE_DEVICE_H
#define CMOE_CORE_DEVICE_H

#include "core/context.h"
#include <stdbool.h>

/* Instruction sets of host rows, in order of preference. */
enum cmoe_isa {
    CMOE_ISA_LEVEL_GENERIC,
    CMOE_ISA_LEVEL_AVX2,
    CMOE_ISA_LEVEL_AVX512,
    CMOE_ISA_LEVELS
};

struct cmoe_props {
    char name[96];
    char features[256];
    bool host;         /* takes host pointers: rows of ref may be used */
    enum cmoe_isa isa; /* highest level usable under the cap */
    int threads;
    int64_t l1d, l2, l3, memory;
    double gbps;   /* main memory bandwidth, estimate for costs */
    double gflops; /* f32 multiply-adds x 2 a second over all threads, estimate for costs */
};

struct cmoe_backend;

struct cmoe_device {
    cmoe_context *ctx;
    const struct cmoe_backend *backend;
    struct cmoe_props props;
    int ordinal;
};

const char *cmoe__isa_name(enum cmoe_isa isa);

#endif
