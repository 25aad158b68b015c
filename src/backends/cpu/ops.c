/* SPDX-License-Identifier: MIT
 * Tables of loops by instruction set. */
#include "backends/cpu/ops.h"

#include "backends/cpu/ops_quant.h"
#include "backends/cpu/ops_tile.h"

/* What a level has of each; rows of zeros: nothing in this build. */
static const struct {
    const struct cmoe_cpu_ops *ops;
    const struct cmoe_cpu_quant_ops *quant;
    const struct cmoe_cpu_tile_ops *tile;
} levels[CMOE_ISA_LEVELS] = {
    [CMOE_ISA_LEVEL_GENERIC] = {&cmoe__cpu_ops_generic, &cmoe__cpu_quant_ops_generic, NULL},
#if defined __x86_64__
    [CMOE_ISA_LEVEL_AVX2] = {&cmoe__cpu_ops_avx2, &cmoe__cpu_quant_ops_avx2, NULL},
    [CMOE_ISA_LEVEL_AVX512] = {&cmoe__cpu_ops_avx512, &cmoe__cpu_quant_ops_avx512, NULL},
    [CMOE_ISA_LEVEL_AVX512VNNI] = {&cmoe__cpu_ops_avx512, &cmoe__cpu_quant_ops_avx512vnni, NULL},
    [CMOE_ISA_LEVEL_AVX512BF16] = {&cmoe__cpu_ops_avx512, &cmoe__cpu_quant_ops_avx512vnni,
                                   &cmoe__cpu_tile_ops_avx512bf16},
    [CMOE_ISA_LEVEL_AMX] = {&cmoe__cpu_ops_avx512, &cmoe__cpu_quant_ops_avx512vnni,
                            &cmoe__cpu_tile_ops_amx},
#endif
};

const struct cmoe_cpu_ops *cmoe__cpu_ops(enum cmoe_isa isa)
{
    return levels[isa].ops;
}

const struct cmoe_cpu_quant_ops *cmoe__cpu_quant_ops(enum cmoe_isa isa)
{
    return levels[isa].quant;
}

const struct cmoe_cpu_tile_ops *cmoe__cpu_tile_ops(enum cmoe_isa isa)
{
    return levels[isa].tile;
}

bool cmoe__cpu_is_float(int dtype)
{
    return dtype == CMOE_F32 || dtype == CMOE_F16 || dtype == CMOE_BF16;
}
