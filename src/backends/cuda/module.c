/* SPDX-License-Identifier: MIT
 * The embedded fatbins and their kernels. */
#include "backends/cuda/cuda.h"

#include "core/fail.h"

/* Made by cmake/CmoeCubin.cmake. */
#define FILE_ROW(stem) extern const unsigned char cmoe__fatbin_##stem[];
#include "backends/cuda/functions.def"
#undef FILE_ROW

static const unsigned char *const images[CMOE_CUDA_FILES] = {
#define FILE_ROW(stem) [CMOE_CUDA_FILE_##stem] = cmoe__fatbin_##stem,
#include "backends/cuda/functions.def"
#undef FILE_ROW
};

static const struct {
    const char *name;
    enum cmoe_cuda_file file;
} functions[CMOE_CUDA_FUNCTIONS] = {
#define FUNCTION(stem, kernel) [CMOE_CUDA_##kernel] = {#kernel, CMOE_CUDA_FILE_##stem},
#include "backends/cuda/functions.def"
#undef FUNCTION
};

cmoe_status cmoe__cuda_load(struct cmoe_cuda *cuda)
{
    const struct cmoe_driver *d = cuda->driver;
    for (int f = 0; f < CMOE_CUDA_FILES; f++)
        CMOE_CUDA_TRY("loading kernels", d, cuLibraryLoadData, &cuda->library[f], images[f], NULL,
                      NULL, 0, NULL, NULL, 0);
    for (int i = 0; i < CMOE_CUDA_FUNCTIONS; i++) {
        CUkernel kernel;
        const char *name = functions[i].name;
        CMOE_CUDA_TRY(name, d, cuLibraryGetKernel, &kernel, cuda->library[functions[i].file], name);
        CMOE_CUDA_TRY(name, d, cuKernelGetFunction, &cuda->function[i], kernel);
        CMOE_CUDA_TRY(name, d, cuFuncSetAttribute, cuda->function[i],
                      CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                      cuda->shared_limit - 1024 * 8);
    }
    return CMOE_OK;
}

void cmoe__cuda_unload(struct cmoe_cuda *cuda)
{
    for (int f = 0; f < CMOE_CUDA_FILES; f++)
        if (cuda->library[f]) cuda->driver->cuLibraryUnload(cuda->library[f]);
}

cmoe_status cmoe__cuda_launch(const struct cmoe_exec *x, enum cmoe_cuda_function function,
                              struct cmoe_cuda_grid grid, void **args)
{
    const struct cmoe_cuda *cuda = cmoe__cuda_of(x);
    if (grid.x == 0 || grid.y == 0) return CMOE_OK;
    const CUlaunchConfig config = {
        .gridDimX = grid.x,
        .gridDimY = grid.y,
        .gridDimZ = 1,
        .blockDimX = grid.threads,
        .blockDimY = 1,
        .blockDimZ = 1,
        .sharedMemBytes = (unsigned)grid.shared,
        .hStream = x->stream,
    };
    CMOE_CUDA_TRY(functions[function].name, cuda->driver, cuLaunchKernelEx, &config,
                  cuda->function[function], args, NULL);
    return CMOE_OK;
}
