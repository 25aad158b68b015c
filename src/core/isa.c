/* SPDX-License-Identifier: MIT
 * Names of what kernels are written for: a host's instruction set, a GPU's architecture. */
#include "core/device.h"

#include <stdio.h>

const char *cmoe__isa_name(enum cmoe_isa isa)
{
    static const char *const names[] = {
        [CMOE_ISA_LEVEL_GENERIC] = "generic",       [CMOE_ISA_LEVEL_AVX2] = "avx2",
        [CMOE_ISA_LEVEL_AVX512] = "avx512",         [CMOE_ISA_LEVEL_AVX512VNNI] = "avx512vnni",
        [CMOE_ISA_LEVEL_AVX512BF16] = "avx512bf16", [CMOE_ISA_LEVEL_AMX] = "amx",
    };
    return (unsigned)isa < CMOE_ISA_LEVELS ? names[isa] : "?";
}

void cmoe__props_isa(const struct cmoe_props *props, char *buf, size_t len)
{
    if (props->arch > 0)
        snprintf(buf, len, "sm_%d", props->arch);
    else
        snprintf(buf, len, "%s", cmoe__isa_name(props->isa));
}
