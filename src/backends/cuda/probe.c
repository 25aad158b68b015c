/* SPDX-License-Identifier: MIT
 * Ceilings of a GPU: reading memory, and wgmma on Hopper. */
#include "backends/cuda/cuda.h"

#include "core/fail.h"

enum { ROUNDS = 8192, BLOCK = 256, READ_BLOCK = 512, TILES = 33 * 1024 + 1024, DOT_BYTES = 32768 };

struct launch {
    enum cmoe_cuda_function function;
    unsigned blocks, threads, shared;
    void **args;
};

/* Launch twice, the second time between two events. */
static cmoe_status time_launch(const struct cmoe_cuda *cuda, const struct launch *l,
                               CUevent event[2], double *seconds)
{
    const struct cmoe_driver *d = cuda->driver;
    const CUlaunchConfig config = {
        .gridDimX = l->blocks,
        .gridDimY = 1,
        .gridDimZ = 1,
        .blockDimX = l->threads,
        .blockDimY = 1,
        .blockDimZ = 1,
        .sharedMemBytes = l->shared,
    };
    const CUfunction function = cuda->function[l->function];
    float ms = 0;
    CMOE_CUDA_TRY("probing", d, cuLaunchKernelEx, &config, function, l->args, NULL);
    CMOE_CUDA_TRY("probing", d, cuEventRecordWithFlags, event[0], NULL, CU_EVENT_RECORD_DEFAULT);
    CMOE_CUDA_TRY("probing", d, cuLaunchKernelEx, &config, function, l->args, NULL);
    CMOE_CUDA_TRY("probing", d, cuEventRecordWithFlags, event[1], NULL, CU_EVENT_RECORD_DEFAULT);
    CMOE_CUDA_TRY("probing", d, cuEventSynchronize, event[1]);
    CMOE_CUDA_TRY("probing", d, cuEventElapsedTime, &ms, event[0], event[1]);
    *seconds = 1e-3 * (double)ms;
    return CMOE_OK;
}

static cmoe_status with_events(const struct cmoe_cuda *cuda, const struct launch *l,
                               double *seconds)
{
    const struct cmoe_driver *d = cuda->driver;
    CUevent event[2] = {NULL, NULL};
    CMOE_CUDA_TRY("probing", d, cuEventCreate, &event[0], CU_EVENT_DEFAULT);
    const CUresult made = d->cuEventCreate(&event[1], CU_EVENT_DEFAULT);
    cmoe_status status = made == CUDA_SUCCESS
                             ? time_launch(cuda, l, event, seconds)
                             : cmoe__cuda_fail(d, made, "probing", "cuEventCreate");
    d->cuEventDestroy(event[0]);
    if (event[1]) d->cuEventDestroy(event[1]);
    return status;
}

static cmoe_status read_rate(const struct cmoe_cuda *cuda, const void *memory, size_t bytes,
                             double *rate)
{
    CUdeviceptr at = (CUdeviceptr)(uintptr_t)memory, sink = at;
    int64_t n = (int64_t)(bytes / 16);
    void *args[] = {&at, &n, &sink};
    const struct launch l = {.function = CMOE_CUDA_cmoe_probe_read,
                             .blocks = (unsigned)(4 * cuda->multiprocessors),
                             .threads = READ_BLOCK,
                             .args = args};
    double seconds = 0;
    CMOE_TRY(with_events(cuda, &l, &seconds));
    *rate = (double)bytes / seconds;
    return CMOE_OK;
}

static cmoe_status dot_rate(const struct cmoe_cuda *cuda, cmoe_dtype dtype, const void *memory,
                            double *rate)
{
    const int bits = cmoe_dtype_bits(dtype);
    if (cuda->arch != 90 || (bits != 16 && bits != 8))
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "There is no probe for products of %s on compute capability %d.%d.",
                         cmoe_dtype_name(dtype), cuda->arch / 10, cuda->arch % 10);
    CUdeviceptr at = (CUdeviceptr)(uintptr_t)memory, sink = at;
    int rounds = ROUNDS;
    void *args[] = {&at, &rounds, &sink};
    const struct launch l = {.function =
                                 bits == 16 ? CMOE_CUDA_cmoe_probe_bf16 : CMOE_CUDA_cmoe_probe_e4m3,
                             .blocks = (unsigned)(2 * cuda->multiprocessors),
                             .threads = BLOCK,
                             .shared = TILES,
                             .args = args};
    double seconds = 0;
    CMOE_TRY(with_events(cuda, &l, &seconds));
    /* Two warpgroups, 64 x 128 results, 128 bytes of k a round. */
    *rate = 2.0 * 2 * 64 * 128 * (128 * 8 / bits) * (double)ROUNDS * l.blocks / seconds;
    return CMOE_OK;
}

cmoe_status cmoe__cuda_measure(cmoe_device *dev, cmoe_probe what, cmoe_dtype dtype,
                               const void *memory, size_t bytes, double *rate)
{
    if (bytes < DOT_BYTES)
        return CMOE_FAIL(CMOE_ERR_INVALID, "cmoe_device_probe: %zu bytes are less than %d", bytes,
                         DOT_BYTES);
    return what == CMOE_PROBE_READ ? read_rate(dev->state, memory, bytes, rate)
                                   : dot_rate(dev->state, dtype, memory, rate);
}
