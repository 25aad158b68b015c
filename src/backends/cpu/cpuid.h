/* SPDX-License-Identifier: MIT
 * What the CPU can do and how it is built, asked of the CPU itself. */
#ifndef CMOE_BACKENDS_CPU_CPUID_H
#define CMOE_BACKENDS_CPU_CPUID_H

#include "core/device.h"

/* Highest level that the CPU and the operating system support. */
enum cmoe_isa cmoe__cpuid_isa(void);
/* Ask the system for AMX tiles, for all threads of the process; false: refused, and why. */
bool cmoe__cpuid_allow_tiles(char *why, size_t len);
/* Fill name, features and caches; nominal clock in GHz, an estimate where the CPU does not say. */
void cmoe__cpuid_describe(struct cmoe_props *props, double *ghz);

#endif
