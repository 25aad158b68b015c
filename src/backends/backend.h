/* SPDX-License-Identifier: MIT
 * A backend: rows, packed weight formats, and how to open its device. */
#ifndef CMOE_BACKENDS_BACKEND_H
#define CMOE_BACKENDS_BACKEND_H

#include "plan/kernel.h"
#include <cmoe/probe.h>
#include <cmoe/stream.h>

/* cmoe/stream.h; every handle is the driver's own. */
struct cmoe_stream_table {
    cmoe_status (*create)(cmoe_device *dev, void **stream);
    void (*destroy)(cmoe_device *dev, void *stream);
    cmoe_status (*event_create)(cmoe_device *dev, void **event);
    void (*event_destroy)(cmoe_device *dev, void *event);
    cmoe_status (*event_record)(cmoe_device *dev, void *event, void *stream);
    cmoe_status (*event_elapsed)(cmoe_device *dev, void *first, void *last, double *us);
    cmoe_status (*graph_begin)(cmoe_device *dev, void *stream);
    cmoe_status (*graph_end)(cmoe_device *dev, void *stream, void **graph);
    cmoe_status (*graph_launch)(cmoe_device *dev, void *graph, void *stream);
    void (*graph_destroy)(cmoe_device *dev, void *graph);
};

struct cmoe_backend {
    const char *name;
    /* Number of devices that can be opened; 0 with a clause in why[len] when none. */
    int (*probe)(char *why, size_t len);
    /* Fill dev->props for device `dev->ordinal`; dev->ctx is set. */
    cmoe_status (*open)(struct cmoe_device *dev);
    void (*close)(struct cmoe_device *dev);
    const struct cmoe_kernel *kernels;
    int n_kernels;
    const struct cmoe_packing_format *const *formats; /* NULL-terminated, or NULL */

    /* cmoe_device_probe; NULL: nothing to measure. */
    cmoe_status (*measure)(cmoe_device *dev, cmoe_probe what, cmoe_dtype dtype, const void *memory,
                           size_t bytes, double *rate);

    /* Backends whose memory the host cannot read; all NULL for host backends. */
    cmoe_status (*enter)(cmoe_device *dev); /* before any of the others, on the calling thread */
    void (*leave)(cmoe_device *dev);
    /* Around the steps of a call: 64-bit ids and cleared ends before, expert loads after. */
    cmoe_status (*prologue)(const struct cmoe_exec *x);
    cmoe_status (*epilogue)(const struct cmoe_exec *x);
    cmoe_status (*weights_open)(cmoe_device *dev, cmoe_weights *w);
    void (*weights_close)(cmoe_weights *w);
    cmoe_status (*alloc)(cmoe_device *dev, size_t bytes, void **out);
    void (*free)(cmoe_device *dev, void *ptr);
    cmoe_status (*copy)(cmoe_device *dev, void *dst, const void *src, size_t bytes,
                        cmoe_copy_kind kind, void *stream);
    cmoe_status (*fill)(cmoe_device *dev, void *dst, int byte, size_t bytes, void *stream);
    cmoe_status (*sync)(cmoe_device *dev, void *stream);
    const struct cmoe_stream_table *streams; /* NULL: calls run at once */
};

/* Compiled-in backends in order of preference, NULL-terminated. */
extern const struct cmoe_backend *const cmoe__backends[];
extern const struct cmoe_backend cmoe__backend_ref;
extern const struct cmoe_backend cmoe__backend_cpu;
extern const struct cmoe_backend cmoe__backend_cuda; /* only in builds with CUDA */

/* Whether rows of `backend` can run on dev: its own, and ref's on every host device. */
bool cmoe__backend_visible(const struct cmoe_backend *backend, const struct cmoe_device *dev);
/* A packed format of a visible backend by name, or NULL. */
const struct cmoe_packing_format *cmoe__packing_find(const struct cmoe_device *dev,
                                                     const char *name);

#endif
