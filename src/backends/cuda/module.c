/* SPDX-License-Identifier: MIT
 * The embedded fatbins and their kernels. */
#include "backends/cuda/cuda.h"

#include "backends/cuda/params_slices.h"
#include "core/fail.h"
#include <string.h>

/* Made by cmake/CmoeCubin.cmake. */
#define FILE_ROW(stem) extern const unsigned char cmoe__fatbin_##stem[];
#include "backends/cuda/functions.def"
#undef FILE_ROW

const struct cmoe_cuda_file_entry cmoe__cuda_files[CMOE_CUDA_FILES] = {
#define FILE_ROW(stem) [CMOE_CUDA_FILE_##stem] = {#stem, cmoe__fatbin_##stem},
#include "backends/cuda/functions.def"
#undef FILE_ROW
};

const struct cmoe_cuda_function_entry cmoe__cuda_functions[CMOE_CUDA_FUNCTIONS] = {
#define FUNCTION(stem, kernel) [CMOE_CUDA_##kernel] = {#kernel, CMOE_CUDA_FILE_##stem},
#include "backends/cuda/functions.def"
#undef FUNCTION
};

/* Files named *_sm90a have machine code for Hopper alone. */
static bool loads(const struct cmoe_cuda *cuda, int file)
{
    return cuda->arch == 90 || !strstr(cmoe__cuda_files[file].stem, "_sm90a");
}

/* Clusters of a kernel's blocks that run at once; 0: none, or not known. */
static int active_clusters(const struct cmoe_cuda *cuda, CUfunction f, unsigned blocks,
                           unsigned threads, unsigned shared)
{
    CUlaunchAttribute cluster = {.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                                 .value.clusterDim = {blocks, 1, 1}};
    const CUlaunchConfig config = {
        .gridDimX = blocks,
        .gridDimY = 1,
        .gridDimZ = 1,
        .blockDimX = threads,
        .blockDimY = 1,
        .blockDimZ = 1,
        .sharedMemBytes = shared,
        .attrs = &cluster,
        .numAttrs = 1,
    };
    int n = 0;
    const CUresult result = cuda->driver->cuOccupancyMaxActiveClusters(&n, f, &config);
    return result == CUDA_SUCCESS ? n : 0;
}

enum { USUAL = 8, LARGE = 16 }; /* blocks of a cluster */

/* Every Hopper GPU runs clusters of 8 blocks; larger ones need as many multiprocessors near each other. */
static int largest_cluster(const struct cmoe_cuda *cuda, enum cmoe_cuda_function function,
                           unsigned threads)
{
    const CUfunction f = cuda->function[function];
    if (!f || cuda->driver->cuFuncSetAttribute(
                  f, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1) != CUDA_SUCCESS)
        return USUAL;
    const unsigned shared = (unsigned)cuda->shared_limit / 2;
    return active_clusters(cuda, f, LARGE, threads, shared) > 0 ? LARGE : USUAL;
}

/* Clusters of the kernels of slices.c that run at once, with as much shared memory as they ask for at most. */
static int slice_clusters(const struct cmoe_cuda *cuda)
{
    const CUfunction f = cuda->function[CMOE_CUDA_cmoe_slices_e4m3_block];
    const unsigned shared = (unsigned)cuda->shared_limit;
    return f ? active_clusters(cuda, f, CMOE_SLICE_CLUSTER, CMOE_SLICE_THREADS, shared) : 0;
}

/* Under CUDA_FORCE_PTX_JIT=1 the driver takes PTX alone, which *_sm90a lack: a Hopper GPU then runs the
 * portable rows, as one of the architecture that their PTX is made for. Other failures show when the
 * files are loaded. */
static int usable_arch(const struct cmoe_cuda *cuda)
{
    enum { PTX_ARCH = 80 };
    const struct cmoe_driver *d = cuda->driver;
    const enum cmoe_cuda_function probe = CMOE_CUDA_cmoe_probe_bf16;
    CUlibrary library = NULL;
    CUkernel kernel;
    CUfunction function;
    if (cuda->arch != 90) return cuda->arch;
    CUresult result =
        d->cuLibraryLoadData(&library, cmoe__cuda_files[cmoe__cuda_functions[probe].file].image,
                             NULL, NULL, 0, NULL, NULL, 0);
    if (result == CUDA_SUCCESS)
        result = d->cuLibraryGetKernel(&kernel, library, cmoe__cuda_functions[probe].name);
    if (result == CUDA_SUCCESS) result = d->cuKernelGetFunction(&function, kernel);
    if (library) d->cuLibraryUnload(library);
    return result == CUDA_ERROR_NO_BINARY_FOR_GPU ? PTX_ARCH : cuda->arch;
}

cmoe_status cmoe__cuda_load(struct cmoe_cuda *cuda)
{
    const struct cmoe_driver *d = cuda->driver;
    cuda->arch = usable_arch(cuda);
    for (int f = 0; f < CMOE_CUDA_FILES; f++)
        if (loads(cuda, f))
            CMOE_CUDA_TRY("loading kernels", d, cuLibraryLoadData, &cuda->library[f],
                          cmoe__cuda_files[f].image, NULL, NULL, 0, NULL, NULL, 0);
    for (int i = 0; i < CMOE_CUDA_FUNCTIONS; i++) {
        CUkernel kernel;
        const char *name = cmoe__cuda_functions[i].name;
        if (!loads(cuda, (int)cmoe__cuda_functions[i].file)) continue;
        CMOE_CUDA_TRY(name, d, cuLibraryGetKernel, &kernel,
                      cuda->library[cmoe__cuda_functions[i].file], name);
        CMOE_CUDA_TRY(name, d, cuKernelGetFunction, &cuda->function[i], kernel);
        int fixed;
        CMOE_CUDA_TRY(name, d, cuFuncGetAttribute, &fixed, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
                      cuda->function[i]);
        CMOE_CUDA_TRY(name, d, cuFuncSetAttribute, cuda->function[i],
                      CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, cuda->shared_limit - fixed);
        /* GEMM2's blocks start beside GEMM1's, which takes one split of L1 and shared memory. */
        if (cmoe__cuda_functions[i].file == CMOE_CUDA_FILE_gemv_sm90a ||
            cmoe__cuda_functions[i].file == CMOE_CUDA_FILE_gemv_route_sm90a)
            CMOE_CUDA_TRY(name, d, cuFuncSetAttribute, cuda->function[i],
                          CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100);
    }
    cuda->sort_cluster = largest_cluster(cuda, CMOE_CUDA_cmoe_sort_cluster, 1024);
    cuda->route_cluster = LARGE;
    for (int f = 0; f < CMOE_CUDA_FUNCTIONS; f++) {
        const enum cmoe_cuda_file file = cmoe__cuda_functions[f].file;
        if (file != CMOE_CUDA_FILE_route_sort_sm90a && file != CMOE_CUDA_FILE_route_octet_sm90a)
            continue;
        const int most = largest_cluster(cuda, (enum cmoe_cuda_function)f, 512);
        cuda->route_cluster = most < cuda->route_cluster ? most : cuda->route_cluster;
    }
    cuda->slice_clusters = slice_clusters(cuda);
    return CMOE_OK;
}

void cmoe__cuda_unload(struct cmoe_cuda *cuda)
{
    for (int f = 0; f < CMOE_CUDA_FILES; f++)
        if (cuda->library[f]) cuda->driver->cuLibraryUnload(cuda->library[f]);
}

static cmoe_status launch(const struct cmoe_exec *x, enum cmoe_cuda_function function,
                          struct cmoe_cuda_grid grid, void **args, bool after, unsigned cluster)
{
    const struct cmoe_cuda *cuda = cmoe__cuda_of(x);
    if (grid.x == 0 || grid.y == 0) return CMOE_OK;
    CUlaunchAttribute attributes[2];
    unsigned count = 0;
    if (after && cuda->arch >= 90)
        attributes[count++] =
            (CUlaunchAttribute){.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                                .value.programmaticStreamSerializationAllowed = 1};
    if (cluster > 1)
        attributes[count++] = (CUlaunchAttribute){.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                                                  .value.clusterDim = {cluster, 1, 1}};
    const CUlaunchConfig config = {
        .gridDimX = grid.x,
        .gridDimY = grid.y,
        .gridDimZ = 1,
        .blockDimX = grid.threads,
        .blockDimY = 1,
        .blockDimZ = 1,
        .sharedMemBytes = (unsigned)grid.shared,
        .hStream = x->stream,
        .attrs = attributes,
        .numAttrs = count,
    };
    CMOE_CUDA_TRY(cmoe__cuda_functions[function].name, cuda->driver, cuLaunchKernelEx, &config,
                  cuda->function[function], args, NULL);
    return CMOE_OK;
}

cmoe_status cmoe__cuda_launch(const struct cmoe_exec *x, enum cmoe_cuda_function function,
                              struct cmoe_cuda_grid grid, void **args)
{
    return launch(x, function, grid, args, false, 1);
}

cmoe_status cmoe__cuda_launch_after(const struct cmoe_exec *x, enum cmoe_cuda_function function,
                                    struct cmoe_cuda_grid grid, void **args)
{
    return launch(x, function, grid, args, true, 1);
}

cmoe_status cmoe__cuda_launch_clusters(const struct cmoe_exec *x, enum cmoe_cuda_function function,
                                       struct cmoe_cuda_grid grid, unsigned cluster, void **args)
{
    return launch(x, function, grid, args, true, cluster);
}
