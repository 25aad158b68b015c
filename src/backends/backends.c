/* SPDX-License-Identifier: MIT
 * The backends that are compiled in. */
#include "backends/backend.h"

#include <string.h>

const struct cmoe_backend *const cmoe__backends[] = {
    &cmoe__backend_cpu,
#if CMOE_HAVE_CUDA
    &cmoe__backend_cuda,
#endif
    &cmoe__backend_ref,
    NULL,
};

bool cmoe__backend_visible(const struct cmoe_backend *backend, const struct cmoe_device *dev)
{
    if (backend == dev->backend) return true;
    return dev->props.host && strcmp(backend->name, "ref") == 0;
}

const struct cmoe_packing_format *cmoe__packing_find(const struct cmoe_device *dev,
                                                     const char *name)
{
    for (int i = 0; cmoe__backends[i]; i++) {
        const struct cmoe_backend *const backend = cmoe__backends[i];
        if (!backend->formats || !cmoe__backend_visible(backend, dev)) continue;
        for (int j = 0; backend->formats[j]; j++) {
            if (strcmp(backend->formats[j]->name, name) == 0) return backend->formats[j];
        }
    }
    return NULL;
}
