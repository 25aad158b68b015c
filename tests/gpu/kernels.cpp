/* SPDX-License-Identifier: MIT
 * The kernels of one file of src/backends/cuda/kernels for the host, by their names. The build says which file
 * (CUDA_FILE) and what functions.def has of it (KERNELS). */
#include "simt_cuda.h"

#include <utility>

#include CUDA_FILE

/* What its kernels declare as shared: a name of this file's own. */
thread_local SHARED_TYPE SHARED_MEMORY[SIMT_SHARED / sizeof(SHARED_TYPE)];

/* A kernel with its parameters as the driver gets them. */
template <class... A, size_t... I> static void unpack(void (*kernel)(A...), void **params, std::index_sequence<I...>)
{
    kernel(*(A *)params[I]...);
}

template <class... A> static void call(void (*kernel)(A...), void **params)
{
    unpack(kernel, params, std::index_sequence_for<A...>());
}

template <auto KERNEL> static void run(void **params)
{
    call(KERNEL, params);
}

#define ENTRY(name) {#name, run<name>, SHARED_MEMORY, nullptr}

static struct simt_kernel kernels[] = {KERNELS};

/* Made behind the entries, and before main() runs. */
static const bool added = [] {
    for (struct simt_kernel &k : kernels)
        simt_add(&k);
    return true;
}();
