/* SPDX-License-Identifier: MIT
 * NVIDIA GPUs through the driver API: finding them, opening one, its memory. */
#include "backends/cuda/cuda.h"

#include "backends/cuda/families.h"
#include "core/fail.h"
#include <stdio.h>
#include <string.h>

static int probe(char *why, size_t len)
{
    const char *reason = NULL;
    const struct cmoe_driver *driver = cmoe__cuda_driver(&reason);
    int n = 0;
    if (driver && driver->cuDeviceGetCount(&n) != CUDA_SUCCESS) n = 0;
    if (driver && n == 0) reason = "the driver sees no GPU";
    if (n == 0 && why && len > 0) snprintf(why, len, "%s", reason);
    return n;
}

static int attribute(const struct cmoe_cuda *cuda, CUdevice_attribute which)
{
    int value = 0;
    return cuda->driver->cuDeviceGetAttribute(&value, which, cuda->device) == CUDA_SUCCESS ? value
                                                                                           : 0;
}

/* Dense bf16 rate of the tensor cores, from clock and multiprocessors: 4096 a clock on Hopper, 2048
 * before. Only for comparing rows. */
static void describe(struct cmoe_cuda *cuda, struct cmoe_props *props)
{
    const int major = attribute(cuda, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
    const int minor = attribute(cuda, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
    const double clock = attribute(cuda, CU_DEVICE_ATTRIBUTE_CLOCK_RATE) * 1e-6;
    const double memory_clock = attribute(cuda, CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE) * 1e-6;
    size_t bytes = 0;
    cuda->driver->cuDeviceTotalMem(&bytes, cuda->device);
    cuda->driver->cuDeviceGetName(props->name, sizeof props->name, cuda->device);
    cuda->multiprocessors = attribute(cuda, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
    cuda->shared_limit = attribute(cuda, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
    cuda->arch = props->arch = major * 10 + minor;
    props->host = false;
    props->threads = cuda->multiprocessors;
    props->l2 = attribute(cuda, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
    props->memory = (int64_t)bytes;
    props->gflops = clock * cuda->multiprocessors * (major >= 9 ? 4096 : 2048);
    props->gbps =
        memory_clock * 2 * attribute(cuda, CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH) / 8;
    if (props->gbps <= 0) props->gbps = 1000;
    snprintf(props->features, sizeof props->features, "sm_%d%d, %d multiprocessors", major, minor,
             cuda->multiprocessors);
}

static void close_device(struct cmoe_device *dev)
{
    struct cmoe_cuda *cuda = dev->state;
    if (!cuda) return;
    if (cuda->context) {
        CUcontext popped;
        cuda->driver->cuCtxPushCurrent(cuda->context);
        cmoe__cuda_unload(cuda);
        cuda->driver->cuCtxPopCurrent(&popped);
        cuda->driver->cuDevicePrimaryCtxRelease(cuda->device);
    }
    cmoe__free(dev->ctx, cuda);
    dev->state = NULL;
}

static cmoe_status enter(cmoe_device *dev)
{
    const struct cmoe_cuda *cuda = dev->state;
    CMOE_CUDA_TRY("entering the device", cuda->driver, cuCtxPushCurrent, cuda->context);
    return CMOE_OK;
}

static void leave(cmoe_device *dev)
{
    const struct cmoe_cuda *cuda = dev->state;
    CUcontext popped;
    cuda->driver->cuCtxPopCurrent(&popped);
}

/* A GPU whose rows are an older one's says so: see cmoe__cuda_load. */
static void describe_portable(const struct cmoe_cuda *cuda, struct cmoe_props *props)
{
    if (cuda->arch == props->arch) return;
    const size_t used = strlen(props->features);
    snprintf(props->features + used, sizeof props->features - used,
             ", treated as sm_%d: the driver takes PTX alone", cuda->arch);
    props->arch = cuda->arch;
}

static cmoe_status start(struct cmoe_device *dev)
{
    struct cmoe_cuda *cuda = dev->state;
    CMOE_CUDA_TRY("opening the device", cuda->driver, cuDeviceGet, &cuda->device, dev->ordinal);
    CMOE_CUDA_TRY("opening the device", cuda->driver, cuDevicePrimaryCtxRetain, &cuda->context,
                  cuda->device);
    describe(cuda, &dev->props);
    if (attribute(cuda, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) < 8)
        return CMOE_FAIL(CMOE_ERR_NO_DEVICE, "%s is older than Ampere (compute capability 8.0)",
                         dev->props.name);
    CMOE_TRY(enter(dev));
    const cmoe_status status = cmoe__cuda_load(cuda);
    leave(dev);
    describe_portable(cuda, &dev->props);
    return status;
}

static cmoe_status open_device(struct cmoe_device *dev)
{
    struct cmoe_cuda *cuda = cmoe__calloc(dev->ctx, sizeof *cuda, _Alignof(max_align_t));
    const char *why = NULL;
    if (!cuda) return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "no memory for the device");
    dev->state = cuda;
    cuda->driver = cmoe__cuda_driver(&why);
    cmoe_status status = cuda->driver ? CMOE_OK : CMOE_FAIL(CMOE_ERR_NO_DEVICE, "no CUDA: %s", why);
    if (status == CMOE_OK) status = start(dev);
    if (status != CMOE_OK) close_device(dev);
    return status;
}

static cmoe_status alloc(cmoe_device *dev, size_t bytes, void **out)
{
    const struct cmoe_cuda *cuda = dev->state;
    CUdeviceptr at = 0;
    CMOE_CUDA_TRY("allocating", cuda->driver, cuMemAlloc, &at, bytes ? bytes : 1);
    *out = (void *)(uintptr_t)at;
    return CMOE_OK;
}

static void free_memory(cmoe_device *dev, void *ptr)
{
    const struct cmoe_cuda *cuda = dev->state;
    if (ptr) cuda->driver->cuMemFree((CUdeviceptr)(uintptr_t)ptr);
}

static cmoe_status copy(cmoe_device *dev, void *dst, const void *src, size_t bytes,
                        cmoe_copy_kind kind, void *stream)
{
    const struct cmoe_cuda *cuda = dev->state;
    const CUdeviceptr to = (CUdeviceptr)(uintptr_t)dst, from = (CUdeviceptr)(uintptr_t)src;
    switch (kind) {
    case CMOE_COPY_TO_DEVICE:
        CMOE_CUDA_TRY("copying", cuda->driver, cuMemcpyHtoDAsync, to, src, bytes, stream);
        break;
    case CMOE_COPY_FROM_DEVICE:
        CMOE_CUDA_TRY("copying", cuda->driver, cuMemcpyDtoHAsync, dst, from, bytes, stream);
        break;
    case CMOE_COPY_ON_DEVICE:
        CMOE_CUDA_TRY("copying", cuda->driver, cuMemcpyDtoDAsync, to, from, bytes, stream);
        break;
    }
    return CMOE_OK;
}

static cmoe_status fill(cmoe_device *dev, void *dst, int byte, size_t bytes, void *stream)
{
    const struct cmoe_cuda *cuda = dev->state;
    CMOE_CUDA_TRY("filling", cuda->driver, cuMemsetD8Async, (CUdeviceptr)(uintptr_t)dst,
                  (unsigned char)byte, bytes, stream);
    return CMOE_OK;
}

static cmoe_status sync(cmoe_device *dev, void *stream)
{
    const struct cmoe_cuda *cuda = dev->state;
    CMOE_CUDA_TRY("a kernel or copy", cuda->driver, cuStreamSynchronize, stream);
    return CMOE_OK;
}

const struct cmoe_backend cmoe__backend_cuda = {
    .name = "cuda",
    .probe = probe,
    .open = open_device,
    .close = close_device,
    .n_kernels = CMOE_CUDA_KERNELS,
    .kernels = cmoe__cuda_kernels,
    .enter = enter,
    .leave = leave,
    .prologue = cmoe__cuda_prologue,
    .epilogue = cmoe__cuda_epilogue,
    .weights_open = cmoe__cuda_weights_open,
    .weights_close = cmoe__cuda_weights_close,
    .alloc = alloc,
    .free = free_memory,
    .copy = copy,
    .fill = fill,
    .sync = sync,
    .streams = &cmoe__cuda_streams,
    .measure = cmoe__cuda_measure,
};
