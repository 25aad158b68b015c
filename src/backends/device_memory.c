/* SPDX-License-Identifier: MIT
 * Memory of a device, through its backend; host devices use the context's allocator. */
#include "backends/backend.h"
#include "core/fail.h"

#include <string.h>

enum { ALIGN = 256 };

static cmoe_status check(const cmoe_device *dev, const void *pointer, const char *name)
{
    if (dev && pointer) return CMOE_OK;
    return CMOE_FAIL(CMOE_ERR_INVALID, "The argument %s is NULL.", dev ? name : "dev");
}

static cmoe_status enter(cmoe_device *dev)
{
    return dev->backend->enter ? dev->backend->enter(dev) : CMOE_OK;
}

static cmoe_status leave(cmoe_device *dev, cmoe_status status)
{
    if (dev->backend->leave) dev->backend->leave(dev);
    return status;
}

cmoe_status cmoe_device_alloc(cmoe_device *dev, size_t bytes, void **out)
{
    CMOE_TRY(check(dev, out, "out"));
    *out = NULL;
    if (!dev->backend->alloc) {
        *out = cmoe__alloc(dev->ctx, bytes, ALIGN);
        if (!*out) return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "No memory for %zu bytes.", bytes);
        return CMOE_OK;
    }
    CMOE_TRY(enter(dev));
    return leave(dev, dev->backend->alloc(dev, bytes, out));
}

void cmoe_device_free(cmoe_device *dev, void *ptr)
{
    if (!dev || !ptr) return;
    if (!dev->backend->free) {
        cmoe__free(dev->ctx, ptr);
    } else if (enter(dev) == CMOE_OK) {
        dev->backend->free(dev, ptr);
        (void)leave(dev, CMOE_OK);
    }
}

cmoe_status cmoe_device_copy(cmoe_device *dev, void *dst, const void *src, size_t bytes,
                             cmoe_copy_kind kind, void *stream)
{
    if (bytes == 0) return CMOE_OK;
    CMOE_TRY(check(dev, dst, "dst"));
    CMOE_TRY(check(dev, src, "src"));
    if (!dev->backend->copy) {
        memmove(dst, src, bytes);
        return CMOE_OK;
    }
    CMOE_TRY(enter(dev));
    return leave(dev, dev->backend->copy(dev, dst, src, bytes, kind, stream));
}

cmoe_status cmoe_device_fill(cmoe_device *dev, void *dst, int byte, size_t bytes, void *stream)
{
    if (bytes == 0) return CMOE_OK;
    CMOE_TRY(check(dev, dst, "dst"));
    if (!dev->backend->fill) {
        memset(dst, byte, bytes);
        return CMOE_OK;
    }
    CMOE_TRY(enter(dev));
    return leave(dev, dev->backend->fill(dev, dst, byte, bytes, stream));
}

cmoe_status cmoe_device_sync(cmoe_device *dev, void *stream)
{
    CMOE_TRY(check(dev, dev, "dev"));
    if (!dev->backend->sync) return CMOE_OK;
    CMOE_TRY(enter(dev));
    return leave(dev, dev->backend->sync(dev, stream));
}
