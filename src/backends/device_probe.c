/* SPDX-License-Identifier: MIT
 * Measuring a device's ceilings, through its backend. */
#include "backends/backend.h"
#include "core/fail.h"

cmoe_status cmoe_device_probe(cmoe_device *dev, cmoe_probe what, cmoe_dtype dtype,
                              const void *memory, size_t bytes, double *rate)
{
    if (!dev || !memory || !rate)
        return CMOE_FAIL(CMOE_ERR_INVALID, "The argument %s is NULL.",
                         !dev ? "dev" : (memory ? "rate" : "memory"));
    const struct cmoe_backend *backend = dev->backend;
    if (!backend->measure)
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "The device %s has no ceilings to measure.",
                         backend->name);
    if (backend->enter) CMOE_TRY(backend->enter(dev));
    const cmoe_status status = backend->measure(dev, what, dtype, memory, bytes, rate);
    if (backend->leave) backend->leave(dev);
    return status;
}
