/* SPDX-License-Identifier: MIT
 * The cpu backend: one device, this machine's CPU under the context's instruction-set cap. */
#include "backends/backend.h"

#include "backends/cpu/cpuid.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/probe.h"
#include "backends/cpu/run.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int probe(char *why, size_t len)
{
    (void)why;
    (void)len;
    return 1;
}

/* Features end with the reason where tiles are refused. */
static void refuse_tiles(struct cmoe_props *props, const char *why)
{
    const size_t used = strlen(props->features);
    props->isa = CMOE_ISA_LEVEL_AVX512BF16;
    snprintf(props->features + used, sizeof props->features - used, " (tiles refused: %s)", why);
}

static enum cmoe_isa capped_isa(const char *cap)
{
    enum cmoe_isa isa = cmoe__cpuid_isa();
    for (int level = 0; cap && level < CMOE_ISA_LEVELS; level++)
        if (strcmp(cap, cmoe__isa_name((enum cmoe_isa)level)) == 0 && level < (int)isa)
            isa = (enum cmoe_isa)level;
    while (!cmoe__cpu_ops(isa))
        isa = (enum cmoe_isa)(isa - 1);
    return isa;
}

/* f32 flops a cycle and core: two vectors of multiply-adds, or of either without fused ones. */
static double flops_per_cycle(enum cmoe_isa isa)
{
    switch (isa) {
    case CMOE_ISA_LEVEL_AVX512:
    case CMOE_ISA_LEVEL_AVX512VNNI:
    case CMOE_ISA_LEVEL_AVX512BF16:
    case CMOE_ISA_LEVEL_AMX:
        return 64;
    case CMOE_ISA_LEVEL_AVX2:
        return 32;
    case CMOE_ISA_LEVEL_GENERIC:
    case CMOE_ISA_LEVELS:
        break;
    }
    return 8;
}

static cmoe_status open_device(struct cmoe_device *dev)
{
    struct cmoe_props *const props = &dev->props;
    double ghz;
    char why[64];
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    cmoe__cpuid_describe(props, &ghz);
    props->host = true;
    props->isa = capped_isa(dev->ctx->cpu);
    if (props->isa == CMOE_ISA_LEVEL_AMX && !cmoe__cpuid_allow_tiles(why, sizeof why))
        refuse_tiles(props, why);
    props->threads = cmoe__threads_count(dev->ctx->threads);
    props->memory = pages > 0 && page > 0 ? (int64_t)pages * page : 0;
    props->gflops = CMOE_COST_THREADS * ghz * flops_per_cycle(props->isa);
    /* A core draws about 10 GB/s; a socket's channels carry some ten of them. */
    props->gbps = 10.0 * CMOE_COST_THREADS;
    return CMOE_OK;
}

static void close_device(struct cmoe_device *dev)
{
    (void)dev;
}

static const struct cmoe_packing_format *const formats[] = {
    &cmoe__cpu_p32,    &cmoe__cpu_p32_i8,  &cmoe__cpu_p32_f8,
    &cmoe__cpu_p32_u4, &cmoe__cpu_p32_mx4, NULL,
};

const struct cmoe_backend cmoe__backend_cpu = {
    .name = "cpu",
    .probe = probe,
    .open = open_device,
    .close = close_device,
    .kernels = cmoe__cpu_kernels,
    .n_kernels = CMOE_CPU_KERNELS,
    .formats = formats,
    .measure = cmoe__cpu_measure,
};
