/* SPDX-License-Identifier: MIT
 * Opening libcuda.so.1 and naming its errors. */
#include "backends/cuda/driver.h"

#include "core/fail.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

static struct cmoe_driver driver;
static const char *missing = "the driver was not opened";
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* The macro expands versioned names first: cuMemAlloc becomes cuMemAlloc_v2 in cuda.h. */
#define NAME_OF(function) #function
#define NAME(function)    NAME_OF(function)

static bool find_all(void *library)
{
    static const struct {
        const char *name;
        size_t offset;
    } wanted[] = {
#define DRIVER(function) {NAME(function), offsetof(struct cmoe_driver, function)},
#include "backends/cuda/driver.def"
#undef DRIVER
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *const found = dlsym(library, wanted[i].name);
        if (!found) {
            missing = "libcuda.so.1 is older than CUDA 12";
            return false;
        }
        memcpy((char *)&driver + wanted[i].offset, &found, sizeof found);
    }
    return true;
}

static void open_driver(void)
{
    void *const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        missing = "libcuda.so.1 was not found: no NVIDIA driver is installed";
        return;
    }
    if (!find_all(library)) return;
    if (driver.cuInit(0) != CUDA_SUCCESS) {
        missing = "the NVIDIA driver refused to start (cuInit failed)";
        return;
    }
    missing = NULL;
}

const struct cmoe_driver *cmoe__cuda_driver(const char **why)
{
    pthread_once(&once, open_driver);
    if (why) *why = missing;
    return missing ? NULL : &driver;
}

cmoe_status cmoe__cuda_fail(const struct cmoe_driver *d, CUresult result, const char *what,
                            const char *function)
{
    const char *name = NULL;
    if (d->cuGetErrorName(result, &name) != CUDA_SUCCESS || !name) name = "an unknown error";
    const cmoe_status status =
        result == CUDA_ERROR_OUT_OF_MEMORY ? CMOE_ERR_NO_MEMORY : CMOE_ERR_DEVICE;
    return CMOE_FAIL(status, "%s: %s gave %s", what, function, name);
}
