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
    CMOE_ISA_LEVEL_AVX512VNNI,
    CMOE_ISA_LEVEL_AVX512BF16, /* and VBMI and VNNI */
    CMOE_ISA_LEVEL_AMX,        /* bf16 and int8 tiles, and all of the above */
    CMOE_ISA_LEVELS
};

/* Costs are estimated for this many threads, however many there are: what a plan chooses, and with it
 * every bit of its results, must not depend on the machine's load or a caller's n_threads. */
enum {
    CMOE_COST_THREADS = 8,
    CMOE_COST_FORK_US = 6, /* waking that many, on a host */
};

struct cmoe_props {
    char name[96];
    char features[256];
    bool host;         /* takes host pointers: rows of ref may be used */
    enum cmoe_isa isa; /* highest level usable under the cap */
    int threads;
    int arch; /* GPUs: 90 is compute capability 9.0 */
    int64_t l1d, l2, l3, memory;
    double gbps;   /* main memory bandwidth of CMOE_COST_THREADS threads, estimate for costs */
    double pairs;  /* bf16 dot instructions: their rate over f32 multiply-adds' */
    double gflops; /* f32 multiply-adds x 2 a second of as many, estimate for costs */
};

struct cmoe_backend;

struct cmoe_device {
    cmoe_context *ctx;
    const struct cmoe_backend *backend;
    struct cmoe_props props;
    int ordinal;
    void *state; /* the backend's own */
};

const char *cmoe__isa_name(enum cmoe_isa isa);
/* "avx512bf16", or "sm_90" of a GPU. */
void cmoe__props_isa(const struct cmoe_props *props, char *buf, size_t len);

#endif
