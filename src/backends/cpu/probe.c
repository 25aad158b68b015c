/* SPDX-License-Identifier: MIT
 * Ceilings of a CPU: the probes of its instruction set on all threads of the context. */
#include "backends/cpu/probe.h"

#include "core/fail.h"
#include "core/threads.h"
#include <string.h>
#include <time.h>

enum { PIECE = 1 << 20, MOST_THREADS = 1024, ROUNDS = 4000 };

struct job {
    const struct cmoe_cpu_probe *probe;
    enum cmoe_cpu_dot dot;
    const unsigned char *memory;
    size_t bytes;
    float sink[MOST_THREADS];
};

static const struct cmoe_cpu_probe *find(enum cmoe_isa isa)
{
    switch (isa) {
#if defined __x86_64__
    case CMOE_ISA_LEVEL_AVX512:
    case CMOE_ISA_LEVEL_AVX512VNNI:
    case CMOE_ISA_LEVEL_AVX512BF16:
    case CMOE_ISA_LEVEL_AMX:
        return &cmoe__cpu_probe_avx512;
    case CMOE_ISA_LEVEL_AVX2:
        return &cmoe__cpu_probe_avx2;
#else
    case CMOE_ISA_LEVEL_AVX512:
    case CMOE_ISA_LEVEL_AVX512VNNI:
    case CMOE_ISA_LEVEL_AVX512BF16:
    case CMOE_ISA_LEVEL_AMX:
    case CMOE_ISA_LEVEL_AVX2:
#endif
    case CMOE_ISA_LEVEL_GENERIC:
    case CMOE_ISA_LEVELS:
        break;
    }
    return &cmoe__cpu_probe_generic;
}

/* Pieces are handed out as threads come, so a slow thread delays nobody. */
static void read_piece(void *arg, int i, int n)
{
    struct job *job = arg;
    (void)n;
    job->sink[i % MOST_THREADS] = job->probe->read(job->memory + (size_t)i * PIECE, PIECE);
}

static void run_dots(void *arg, int i, int n)
{
    struct job *job = arg;
    (void)n;
    job->probe->dot[job->dot](ROUNDS, job->memory, &job->sink[i % MOST_THREADS]);
}

/* Values that bf16 holds exactly, so that rows of them are multiplied as bf16 where there is one. */
static bool fits_bf16(cmoe_dtype dtype)
{
    return dtype == CMOE_BF16 || dtype == CMOE_E4M3 || dtype == CMOE_E2M1;
}

/* The instruction for activations of a type, and its table; what this CPU lacks is f32's work. */
static enum cmoe_cpu_dot choose(const struct cmoe_props *props, cmoe_dtype dtype,
                                const struct cmoe_cpu_probe **table)
{
    const struct cmoe_cpu_probe *const probe = *table;
#if defined __x86_64__
    if (props->isa == CMOE_ISA_LEVEL_AMX && (dtype == CMOE_I8 || fits_bf16(dtype))) {
        *table = &cmoe__cpu_probe_amx;
        return dtype == CMOE_I8 ? CMOE_CPU_DOT_I8 : CMOE_CPU_DOT_BF16;
    }
#endif
    const bool vnni = strstr(props->features, "avx512vnni") != NULL;
    const bool bf16 = strstr(props->features, "avx512bf16") != NULL;
    const bool avx2 = props->isa == CMOE_ISA_LEVEL_AVX2;
    if (dtype == CMOE_I8 && (vnni || avx2) && probe->dot[CMOE_CPU_DOT_I8]) return CMOE_CPU_DOT_I8;
    if (fits_bf16(dtype) && bf16 && probe->dot[CMOE_CPU_DOT_BF16]) return CMOE_CPU_DOT_BF16;
    return CMOE_CPU_DOT_F32;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Operations a second of one kind of dot products on every thread. */
static double dot_rate(cmoe_device *dev, struct job *job, enum cmoe_cpu_dot dot)
{
    const int threads = dev->props.threads;
    job->dot = dot;
    const double start = now();
    cmoe__parallel(dev->ctx->threads, 0, threads, run_dots, job);
    return threads * ROUNDS * job->probe->operations[dot] / (now() - start);
}

cmoe_status cmoe__cpu_measure(cmoe_device *dev, cmoe_probe what, cmoe_dtype dtype,
                              const void *memory, size_t bytes, double *rate)
{
    struct job job = {.probe = find(dev->props.isa), .memory = memory, .bytes = bytes};
    if (bytes < PIECE)
        return CMOE_FAIL(CMOE_ERR_INVALID, "cmoe_device_probe: %zu bytes are less than %d", bytes,
                         PIECE);
    if (what == CMOE_PROBE_READ) {
        const int pieces = (int)(bytes / PIECE);
        const double start = now();
        cmoe__parallel(dev->ctx->threads, 0, pieces, read_piece, &job);
        *rate = (double)pieces * PIECE / (now() - start);
        return CMOE_OK;
    }
    const enum cmoe_cpu_dot dot = choose(&dev->props, dtype, &job.probe);
    *rate = dot_rate(dev, &job, dot);
    /* The first CPUs with BF16 multiply it no faster than f32. */
    if (dot == CMOE_CPU_DOT_BF16 && job.probe->dot[CMOE_CPU_DOT_F32]) {
        const double f32 = dot_rate(dev, &job, CMOE_CPU_DOT_F32);
        if (f32 > *rate) *rate = f32;
    }
    return CMOE_OK;
}
