/* SPDX-License-Identifier: MIT
 * Loops that do nothing but what is to be measured, one table per instruction set: what isa/probe.c is
 * compiled into. */
#ifndef CMOE_BACKENDS_CPU_PROBE_H
#define CMOE_BACKENDS_CPU_PROBE_H

#include "core/device.h"
#include <cmoe/probe.h>

enum cmoe_cpu_dot { CMOE_CPU_DOT_F32, CMOE_CPU_DOT_BF16, CMOE_CPU_DOT_I8, CMOE_CPU_DOTS };

struct cmoe_cpu_probe {
    /* A sum that depends on every byte; size is a multiple of 1024. */
    float (*read)(const void *memory, size_t size);
    /* Independent chains of the instruction; NULL: this set has none. *sink depends on all. */
    void (*dot[CMOE_CPU_DOTS])(int64_t rounds, const void *memory, float *sink);
    double operations[CMOE_CPU_DOTS]; /* of a round */
};

extern const struct cmoe_cpu_probe cmoe__cpu_probe_generic;
extern const struct cmoe_cpu_probe cmoe__cpu_probe_avx2;
extern const struct cmoe_cpu_probe cmoe__cpu_probe_avx512;
extern const struct cmoe_cpu_probe cmoe__cpu_probe_amx; /* bf16 and int8 only */

cmoe_status cmoe__cpu_measure(cmoe_device *dev, cmoe_probe what, cmoe_dtype dtype,
                              const void *memory, size_t bytes, double *rate);

#endif
