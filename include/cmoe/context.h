/* SPDX-License-Identifier: MIT
 * Where things run: a context (allocator, threads, log) and the devices opened on it. */
#ifndef CMOE_CONTEXT_H
#define CMOE_CONTEXT_H

#include <cmoe/status.h>
#include <cmoe/types.h>

CMOE_BEGIN_DECLS

typedef struct cmoe_context cmoe_context;
typedef struct cmoe_device cmoe_device;

/** Runs body(arg, i, n) for every i in [0, n), possibly at the same time, and returns when all are
 *  done. What a caller with its own threads passes as cmoe_context_options.run. */
typedef void (*cmoe_body)(void *arg, int i, int n);

typedef struct cmoe_context_options {
    size_t struct_size; /* sizeof, or 0 for "this version" */

    /* Allocator; NULL: the C library's. align is a power of two; may return NULL. */
    void *(*alloc)(void *user, size_t size, size_t align);
    void (*free)(void *user, void *ptr);

    /* Log callback; NULL: stderr up to the level in CMOE_LOG, silent without it. level 0 error,
     * 1 warning, 2 information. One line, no newline. */
    void (*log)(void *user, int level, const char *message);

    /* Executor; NULL: the process's OpenMP runtime if it already runs one, else an own pool.
     * run_is_concurrent says that all n bodies really run at the same time, so that they may wait
     * for each other. The number of bodies is n_threads. */
    void (*run)(void *user, int n, cmoe_body body, void *arg);
    int run_is_concurrent;

    void *user;        /* handed to every callback */
    int n_threads;     /* 0: CMOE_THREADS, else the CPUs this process may use (affinity, cgroup) */
    const char *cpu;   /* ISA cap as in CMOE_CPU ("avx2", ...); NULL: CMOE_CPU, else none */
    const char *tuned; /* file of tuned choices to load; NULL: CMOE_TUNED, else none */

    /* Record callback, called on the caller's thread at the start of every cmoe_execute; see
     * record.h. NULL: none. */
    const struct cmoe_recorder *recorder;

    /* Memory nodes that packed weights are divided among, 1 to 8: each node's threads pack, and read, the
     * same columns of every expert. 1: not divided. 0: CMOE_NODES, else the machine's, and threads of the
     * own pool stay on their node. Results are the same bits. */
    int nodes;
} cmoe_context_options;

/** Make a context. `opt` may be NULL (all defaults) and is copied.
 *  Creation, device opening and plan creation are thread-safe on one context.
 *  @return CMOE_OK, CMOE_ERR_INVALID (unknown ISA cap, thread or node count out of range, alloc
 *          without free), CMOE_ERR_IO (the file `tuned` cannot be read; one that only CMOE_TUNED names may
 *          be missing, with a warning), CMOE_ERR_NO_MEMORY. */
CMOE_API cmoe_status cmoe_context_create(const cmoe_context_options *opt, cmoe_context **out)
    CMOE_MUST_CHECK;
/** Destroy; NULL is fine. Devices, weights and plans of it must be gone. */
CMOE_API void cmoe_context_destroy(cmoe_context *ctx);
/** Threads a plan on a host device uses. */
CMOE_API int cmoe_context_threads(const cmoe_context *ctx);
/** How: "own pool", "openmp (libgomp.so.1)", "caller". */
CMOE_API const char *cmoe_context_executor(const cmoe_context *ctx);

/** Open "ref" (the specification), "cpu", or "cuda:N". NULL: CMOE_DEVICE, else "cpu".
 *  @return CMOE_OK, CMOE_ERR_INVALID (unknown name), CMOE_ERR_NO_DEVICE with the reason. */
CMOE_API cmoe_status cmoe_device_open(cmoe_context *ctx, const char *spec, cmoe_device **out)
    CMOE_MUST_CHECK;
/** Close; NULL is fine. Weights, plans, memory and streams of it must be gone. */
CMOE_API void cmoe_device_close(cmoe_device *dev);

/** Memory of a device: for callers without a GPU runtime of their own (host devices: plain memory).
 *  Alignment 256, contents undefined; 0 bytes give a pointer, too. Ends with cmoe_device_free.
 *  @return CMOE_OK, CMOE_ERR_INVALID, CMOE_ERR_NO_MEMORY, CMOE_ERR_DEVICE. */
CMOE_API cmoe_status cmoe_device_alloc(cmoe_device *dev, size_t bytes, void **out) CMOE_MUST_CHECK;
/** Free memory of cmoe_device_alloc; NULL is fine. Calls that use it must be done (cmoe_device_sync). */
CMOE_API void cmoe_device_free(cmoe_device *dev, void *ptr);

typedef enum cmoe_copy_kind {
    CMOE_COPY_TO_DEVICE,
    CMOE_COPY_FROM_DEVICE,
    CMOE_COPY_ON_DEVICE,
} cmoe_copy_kind;

/** Copy on a stream (CUstream; NULL: the default one): dst and src are on the sides that `kind` says, and
 *  must stay until the stream has passed. Host devices copy at once; there the two may overlap.
 *  @return CMOE_OK, also for 0 bytes; CMOE_ERR_INVALID; CMOE_ERR_DEVICE. */
CMOE_API cmoe_status cmoe_device_copy(cmoe_device *dev, void *dst, const void *src, size_t bytes,
                                      cmoe_copy_kind kind, void *stream) CMOE_MUST_CHECK;
/** Set `bytes` bytes of device memory to the low 8 bits of `byte`, on a stream.
 *  @return as cmoe_device_copy. */
CMOE_API cmoe_status cmoe_device_fill(cmoe_device *dev, void *dst, int byte, size_t bytes,
                                      void *stream) CMOE_MUST_CHECK;
/** Wait until everything on the stream is done. Host devices have nothing to wait for.
 *  @return CMOE_OK; CMOE_ERR_INVALID; CMOE_ERR_DEVICE, which may be the fault of a kernel run before. */
CMOE_API cmoe_status cmoe_device_sync(cmoe_device *dev, void *stream) CMOE_MUST_CHECK;

typedef struct cmoe_device_info {
    size_t struct_size;
    char name[96]; /* CPU or GPU model */
    char isa[64];  /* "avx512", "avx2", "generic", "sm_90" */
    char features[256];
    int threads;
    int64_t l1d, l2, l3; /* bytes; 0 unknown */
    int64_t memory;      /* bytes */
    int host;            /* 1: takes host pointers */
} cmoe_device_info;

/** What the device is. Of `info` only struct_size is read; fields past it are left alone. */
CMOE_API void cmoe_device_describe(const cmoe_device *dev, cmoe_device_info *info);

/** The i-th backend compiled in or left out: its name, and whether it can run here or why not,
 *  cut to len bytes in `state`. @return 1, or 0 past the end. */
CMOE_API int cmoe_backend_describe(int i, const char **name, char *state, size_t len);

CMOE_END_DECLS

#endif
