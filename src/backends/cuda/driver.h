/* SPDX-License-Identifier: MIT
 * The CUDA driver, opened at run time. Nothing of CUDA is linked; a machine without the driver has
 * no CUDA devices and a reason. */
#ifndef CMOE_BACKENDS_CUDA_DRIVER_H
#define CMOE_BACKENDS_CUDA_DRIVER_H

#include <cmoe/status.h>
#include <cuda.h>

struct cmoe_driver {
#define DRIVER(function) __typeof__(function) *function;
#include "backends/cuda/driver.def"
#undef DRIVER
};

/* The driver's functions, or NULL with a clause in *why (a constant string). Opened once a process,
 * never closed. */
const struct cmoe_driver *cmoe__cuda_driver(const char **why);

/* CMOE_ERR_DEVICE with the driver's name for the result: "gemm1: cuLaunchKernelEx gave
 * CUDA_ERROR_...". Out of memory is CMOE_ERR_NO_MEMORY. */
cmoe_status cmoe__cuda_fail(const struct cmoe_driver *driver, CUresult result, const char *what,
                            const char *function);

#define CMOE_CUDA_TRY(what, driver, function, ...)                                                 \
    do {                                                                                           \
        const CUresult result_ = (driver)->function(__VA_ARGS__);                                  \
        if (result_ != CUDA_SUCCESS) return cmoe__cuda_fail((driver), result_, (what), #function); \
    } while (0)

#endif
