/* SPDX-License-Identifier: MIT
 * A libcuda.so.1 with one H100 that computes nothing. Its memory is the host's; every call is held to what the
 * driver's documentation asks for, and a kernel's launch to the limits of the GPU. What is wrong is told and ends
 * the program: CMOE_ERR_DEVICE would hide which argument it was. test_cuda_launch runs the backend with it. */
#include "driver.h"

#include <cuda.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MULTIPROCESSORS = 132,
    SHARED_MOST = 232448, /* bytes a block may ask for */
    SHARED_USUAL = 49152, /* without cuFuncSetAttribute */
    CLUSTER_USUAL = 8,    /* blocks, without cuFuncSetAttribute */
    CLUSTER_MOST = 16,
    ALLOCATIONS = 4096,
    FUNCTIONS = 1024,
};

static struct allocation {
    char *at;
    size_t bytes;
} allocations[ALLOCATIONS];

static struct function {
    char name[64];
    int shared, cluster;
} functions[FUNCTIONS];

#define WRONG(...)                                                                                 \
    do {                                                                                           \
        fprintf(stderr, "driver: " __VA_ARGS__);                                                   \
        fputc('\n', stderr);                                                                       \
        abort();                                                                                   \
    } while (0)

static long calls, refused_call;

void driver_refuse(long call)
{
    calls = 0;
    refused_call = call;
}

long driver_calls(void)
{
    return calls;
}

int driver_allocations(void)
{
    int n = 0;
    for (int i = 0; i < ALLOCATIONS; i++)
        n += allocations[i].at != NULL;
    return n;
}

/* What can fail on a working GPU calls this first. */
#define MAY_BE_REFUSED(error)                                                                      \
    if (++calls == refused_call) return error

bool driver_holds(const void *at, size_t bytes)
{
    const uintptr_t first = (uintptr_t)at;
    for (int i = 0; i < ALLOCATIONS; i++) {
        const uintptr_t from = (uintptr_t)allocations[i].at;
        if (from && first >= from && first + bytes <= from + allocations[i].bytes) return true;
    }
    return bytes == 0;
}

bool driver_shares_host;

static void within(const char *what, CUdeviceptr at, size_t bytes)
{
    if (!driver_shares_host && !driver_holds((const void *)(uintptr_t)at, bytes))
        WRONG("%s: %zu bytes at %llx are not allocated", what, bytes, at);
}

static void (*watching)(const CUlaunchConfig *launch, const char *kernel, void **params);

void driver_watch(void (*watch)(const CUlaunchConfig *launch, const char *kernel, void **params))
{
    watching = watch;
}

CUresult cuInit(unsigned flags)
{
    return flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDriverGetVersion(int *version)
{
    *version = 13000;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **name)
{
    *name = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR";
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count)
{
    *count = 1;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    *device = 0;
    return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetName(char *name, int len, CUdevice device)
{
    (void)device;
    snprintf(name, (size_t)len, "none that computes");
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device)
{
    (void)device;
    switch (which) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        *value = 9;
        break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        *value = 0;
        break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
        *value = 1980000;
        break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
        *value = 2619000;
        break;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH:
        *value = 5120;
        break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
        *value = MULTIPROCESSORS;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
        *value = SHARED_MOST;
        break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
        *value = 50 << 20;
        break;
    default:
        WRONG("attribute %d is not known here", (int)which);
    }
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device)
{
    (void)device;
    *bytes = (size_t)80 << 30;
    return CUDA_SUCCESS;
}

static CUcontext the_context(void)
{
    static int one;
    return (CUcontext)(void *)&one;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    MAY_BE_REFUSED(CUDA_ERROR_DEVICE_UNAVAILABLE);
    (void)device;
    *context = the_context();
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device)
{
    (void)device;
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext context)
{
    MAY_BE_REFUSED(CUDA_ERROR_CONTEXT_IS_DESTROYED);
    return context ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuCtxPopCurrent(CUcontext *context)
{
    *context = the_context();
    return CUDA_SUCCESS;
}

CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jit, void **values,
                           unsigned n_jit, CUlibraryOption *options, void **option_values,
                           unsigned n_options)
{
    MAY_BE_REFUSED(CUDA_ERROR_OUT_OF_MEMORY);
    (void)jit, (void)values, (void)n_jit, (void)options, (void)option_values, (void)n_options;
    memcpy(library, &code, sizeof code);
    return code ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuLibraryUnload(CUlibrary library)
{
    return library ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name)
{
    MAY_BE_REFUSED(CUDA_ERROR_NOT_FOUND);
    int i = 0;
    while (i < FUNCTIONS && functions[i].name[0] && strcmp(functions[i].name, name) != 0)
        i++;
    if (!library || i == FUNCTIONS) return CUDA_ERROR_NOT_FOUND;
    if (!functions[i].name[0]) {
        functions[i] = (struct function){.shared = SHARED_USUAL, .cluster = CLUSTER_USUAL};
        snprintf(functions[i].name, sizeof functions[i].name, "%s", name);
    }
    *kernel = (CUkernel)(void *)&functions[i];
    return CUDA_SUCCESS;
}

CUresult cuKernelGetFunction(CUfunction *function, CUkernel kernel)
{
    MAY_BE_REFUSED(CUDA_ERROR_NOT_FOUND);
    memcpy(function, &kernel, sizeof kernel);
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction function)
{
    (void)function;
    if (which != CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
        WRONG("attribute %d of a function is not known here", (int)which);
    *value = 0; /* of its own, beside what a launch asks for */
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value)
{
    MAY_BE_REFUSED(CUDA_ERROR_INVALID_VALUE);
    struct function *f = (struct function *)(void *)function;
    if (which == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        if (value > SHARED_MOST)
            WRONG("%s: %d bytes of shared memory, the most is %d", f->name, value, SHARED_MOST);
        f->shared = value;
    }
    if (which == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED)
        f->cluster = value ? CLUSTER_MOST : CLUSTER_USUAL;
    return CUDA_SUCCESS;
}

/* Blocks of the launch's clusters. */
static unsigned cluster_of(const CUlaunchConfig *c)
{
    unsigned blocks = 1;
    for (unsigned i = 0; i < c->numAttrs; i++)
        if (c->attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
            blocks = c->attrs[i].value.clusterDim.x * c->attrs[i].value.clusterDim.y *
                     c->attrs[i].value.clusterDim.z;
    return blocks;
}

static void limits(const CUlaunchConfig *c, const struct function *f)
{
    const unsigned threads = c->blockDimX * c->blockDimY * c->blockDimZ, cluster = cluster_of(c);
    if (c->gridDimX == 0 || c->gridDimY == 0 || c->gridDimZ == 0 || c->gridDimX > INT32_MAX ||
        c->gridDimY > 65535 || c->gridDimZ > 65535)
        WRONG("%s: a grid of %u x %u x %u", f->name, c->gridDimX, c->gridDimY, c->gridDimZ);
    if (threads == 0 || threads > 1024) WRONG("%s: %u threads", f->name, threads);
    if (c->sharedMemBytes > (unsigned)f->shared)
        WRONG("%s: %u bytes of shared memory, %d allowed", f->name, c->sharedMemBytes, f->shared);
    if (cluster == 0 || cluster > (unsigned)f->cluster || c->gridDimX % cluster != 0)
        WRONG("%s: clusters of %u of %u blocks, %d allowed", f->name, cluster, c->gridDimX,
              f->cluster);
}

CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *c)
{
    MAY_BE_REFUSED(CUDA_ERROR_INVALID_VALUE);
    limits(c, (const struct function *)(void *)function);
    *clusters = (MULTIPROCESSORS - (int)cluster_of(c)) / (int)cluster_of(c);
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction function, void **params, void **extra)
{
    MAY_BE_REFUSED(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    if (!function) WRONG("a kernel that was not loaded");
    const struct function *f = (const struct function *)(void *)function;
    limits(c, f);
    if (!params || !params[0] || extra) return CUDA_ERROR_INVALID_VALUE;
    if (watching) watching(c, f->name, params);
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr *at, size_t bytes)
{
    MAY_BE_REFUSED(CUDA_ERROR_OUT_OF_MEMORY);
    enum { ALIGNED = 256 };
    int i = 0;
    while (i < ALLOCATIONS && allocations[i].at)
        i++;
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    void *const made =
        i < ALLOCATIONS ? aligned_alloc(ALIGNED, (bytes + ALIGNED - 1) / ALIGNED * ALIGNED) : NULL;
    if (!made) return CUDA_ERROR_OUT_OF_MEMORY;
    allocations[i] = (struct allocation){made, bytes};
    *at = (CUdeviceptr)(uintptr_t)made;
    return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr at)
{
    for (int i = 0; i < ALLOCATIONS; i++)
        if (at && (uintptr_t)allocations[i].at == at) {
            free(allocations[i].at);
            allocations[i] = (struct allocation){NULL, 0};
            return CUDA_SUCCESS;
        }
    return at ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t bytes)
{
    MAY_BE_REFUSED(CUDA_ERROR_ILLEGAL_ADDRESS);
    within("a copy to the device", to, bytes);
    memcpy((void *)(uintptr_t)to, from, bytes);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t bytes)
{
    MAY_BE_REFUSED(CUDA_ERROR_ILLEGAL_ADDRESS);
    within("a copy from the device", from, bytes);
    memcpy(to, (const void *)(uintptr_t)from, bytes);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
    (void)stream;
    return cuMemcpyHtoD(to, from, bytes);
}

CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    (void)stream;
    return cuMemcpyDtoH(to, from, bytes);
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    MAY_BE_REFUSED(CUDA_ERROR_ILLEGAL_ADDRESS);
    (void)stream;
    within("a copy on the device", to, bytes);
    within("a copy on the device", from, bytes);
    memmove((void *)(uintptr_t)to, (const void *)(uintptr_t)from, bytes);
    return CUDA_SUCCESS;
}

CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t bytes, CUstream stream)
{
    MAY_BE_REFUSED(CUDA_ERROR_ILLEGAL_ADDRESS);
    (void)stream;
    within("filling", at, bytes);
    memset((void *)(uintptr_t)at, value, bytes);
    return CUDA_SUCCESS;
}

static CUresult handle(void *out)
{
    static int one;
    void *const any = &one;
    memcpy(out, &any, sizeof any);
    return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags)
{
    (void)flags;
    return handle(stream);
}

CUresult cuStreamDestroy(CUstream stream)
{
    return stream ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status)
{
    (void)stream;
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode)
{
    (void)mode;
    return cuStreamDestroy(stream);
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph)
{
    (void)stream;
    return handle(graph);
}

CUresult cuStreamSynchronize(CUstream stream)
{
    MAY_BE_REFUSED(CUDA_ERROR_ILLEGAL_ADDRESS);
    (void)stream;
    return CUDA_SUCCESS;
}

#undef cuGraphInstantiate
CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags)
{
    (void)graph, (void)flags;
    return handle(exec);
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream)
{
    (void)stream;
    return exec ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuGraphDestroy(CUgraph graph)
{
    return graph ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuGraphExecDestroy(CUgraphExec exec)
{
    return exec ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuEventCreate(CUevent *event, unsigned flags)
{
    (void)flags;
    return handle(event);
}

CUresult cuEventDestroy(CUevent event)
{
    return event ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags)
{
    (void)stream, (void)flags;
    return cuEventDestroy(event);
}

CUresult cuEventSynchronize(CUevent event)
{
    return cuEventDestroy(event);
}

CUresult cuEventElapsedTime(float *ms, CUevent from, CUevent to)
{
    *ms = 1;
    return from && to ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* What the driver refuses, the backend does without; so these are answers, not ends. */
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                void *at, const cuuint64_t *sizes, const cuuint64_t *strides,
                                const cuuint32_t *box, const cuuint32_t *steps,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion also, CUtensorMapFloatOOBfill fill)
{
    MAY_BE_REFUSED(CUDA_ERROR_INVALID_VALUE);
    const cuuint64_t bytes = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 2;
    (void)interleave, (void)also, (void)fill;
    if ((uintptr_t)map % 64 != 0 || rank < 1 || rank > 5 || (uintptr_t)at % 16 != 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (box[0] * bytes % 16 != 0 || (swizzle == CU_TENSOR_MAP_SWIZZLE_128B && box[0] * bytes > 128))
        return CUDA_ERROR_INVALID_VALUE;
    for (cuuint32_t i = 0; i < rank; i++) {
        if (sizes[i] < 1 || sizes[i] > (cuuint64_t)1 << 32 || box[i] < 1 || box[i] > 256 ||
            steps[i] < 1 || steps[i] > 8)
            return CUDA_ERROR_INVALID_VALUE;
        if (i + 1 < rank && (strides[i] % 16 != 0 || strides[i] >= (cuuint64_t)1 << 40))
            return CUDA_ERROR_INVALID_VALUE;
    }
    memset(map, 1, sizeof *map);
    return CUDA_SUCCESS;
}
