/* SPDX-License-Identifier: MIT
 * Names of the instruction sets that host kernels are written for. */
#include "core/device.h"

const char *cmoe__isa_name(enum cmoe_isa isa)
{
    static const char *const names[] = {
        [CMOE_ISA_LEVEL_GENERIC] = "generic",       [CMOE_ISA_LEVEL_AVX2] = "avx2",
        [CMOE_ISA_LEVEL_AVX512] = "avx512",         [CMOE_ISA_LEVEL_AVX512VNNI] = "avx512vnni",
        [CMOE_ISA_LEVEL_AVX512BF16] = "avx512bf16", [CMOE_ISA_LEVEL_AMX] = "amx",
    };
    return (unsigned)isa < CMOE_ISA_LEVELS ? names[isa] : "?";
}
