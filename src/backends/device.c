/* SPDX-License-Identifier: MIT
 * Opening a device by name, and saying what it is.
 *
 * A name is a backend's, with ":N" for its N-th device: "ref", "cpu", "cuda:1". */
#include "backends/backend.h"
#include "core/fail.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Why there is no CUDA backend in this build. */
static const char *cuda_absence(void)
{
    return "left out of this build: built without CUDA (nvcc not found or CMOE_CUDA=OFF)";
}

/* Split "name:N" at the colon. False when what follows it is not a number. */
static bool split(const char *spec, size_t *name_length, int *ordinal)
{
    *name_length = strcspn(spec, ":");
    *ordinal = 0;
    if (!spec[*name_length]) return true;
    const char *const digits = spec + *name_length + 1;
    const size_t n = strspn(digits, "0123456789");
    if (n == 0 || n > 4 || digits[n]) return false;
    *ordinal = (int)strtol(digits, NULL, 10);
    return true;
}

static const struct cmoe_backend *find(const char *name, size_t length)
{
    for (int i = 0; cmoe__backends[i]; i++) {
        const char *const candidate = cmoe__backends[i]->name;
        if (strlen(candidate) == length && memcmp(candidate, name, length) == 0) {
            return cmoe__backends[i];
        }
    }
    return NULL;
}

static cmoe_status open_on(cmoe_context *ctx, const struct cmoe_backend *backend, int ordinal,
                           cmoe_device **out)
{
    cmoe_device *const dev = cmoe__calloc(ctx, sizeof *dev, _Alignof(cmoe_device));
    if (!dev) return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "No memory for the device.");
    dev->ctx = ctx;
    dev->backend = backend;
    dev->ordinal = ordinal;
    pthread_mutex_lock(&ctx->lock);
    const cmoe_status status = backend->open(dev);
    pthread_mutex_unlock(&ctx->lock);
    if (status != CMOE_OK) {
        cmoe__free(ctx, dev);
        CMOE_FAIL_TRACE();
        return status;
    }
    *out = dev;
    return CMOE_OK;
}

cmoe_status cmoe_device_open(cmoe_context *ctx, const char *spec, cmoe_device **out)
{
    if (!ctx || !out) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "The argument %s is NULL.", ctx ? "out" : "ctx");
    }
    *out = NULL;
    if (!spec) spec = ctx->device ? ctx->device : "cpu";
    size_t length;
    int ordinal;
    if (!split(spec, &length, &ordinal)) {
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "The device \"%.60s\" is not a backend's name or \"name:number\".", spec);
    }
    const struct cmoe_backend *const backend = find(spec, length);
    if (!backend && length == 4 && memcmp(spec, "cuda", 4) == 0) {
        return CMOE_FAIL(CMOE_ERR_NO_DEVICE, "The device \"%.60s\" is not there: cuda is %s.", spec,
                         cuda_absence());
    }
    if (!backend) {
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "The device \"%.60s\" is not known; there are \"cpu\", \"ref\" and "
                         "\"cuda:N\".",
                         spec);
    }
    char why[256] = "";
    const int devices = backend->probe(why, sizeof why);
    if (ordinal >= devices) {
        return CMOE_FAIL(CMOE_ERR_NO_DEVICE, "The device \"%.60s\" is not there: %s has %d%s%s.",
                         spec, backend->name, devices, why[0] ? ", " : "", why);
    }
    CMOE_TRY(open_on(ctx, backend, ordinal, out));
    return CMOE_OK;
}

void cmoe_device_close(cmoe_device *dev)
{
    if (!dev) return;
    if (dev->backend->close) dev->backend->close(dev);
    cmoe__free(dev->ctx, dev);
}

void cmoe_device_describe(const cmoe_device *dev, cmoe_device_info *info)
{
    if (!dev || !info) return;
    cmoe_device_info all = {
        .threads = dev->props.threads,
        .l1d = dev->props.l1d,
        .l2 = dev->props.l2,
        .l3 = dev->props.l3,
        .memory = dev->props.memory,
        .host = dev->props.host,
    };
    const size_t size =
        info->struct_size && info->struct_size < sizeof all ? info->struct_size : sizeof all;
    snprintf(all.name, sizeof all.name, "%s", dev->props.name);
    cmoe__props_isa(&dev->props, all.isa, sizeof all.isa);
    snprintf(all.features, sizeof all.features, "%s", dev->props.features);
    all.struct_size = size;
    memcpy(info, &all, size);
}

int cmoe_backend_describe(int i, const char **name, char *state, size_t len)
{
    int n = 0;
    while (cmoe__backends[n])
        n++;
    const bool absent = find("cuda", 4) == NULL;
    if (i < 0 || i >= n + absent || !name) return 0;
    if (!state) len = 0;
    if (i == n) {
        *name = "cuda";
        if (len > 0) snprintf(state, len, "%s", cuda_absence());
        return 1;
    }
    char why[256] = "";
    const int devices = cmoe__backends[i]->probe(why, sizeof why);
    *name = cmoe__backends[i]->name;
    if (len == 0) return 1;
    if (devices > 0) {
        snprintf(state, len, "available, %d device%s", devices, devices == 1 ? "" : "s");
    } else {
        snprintf(state, len, "not available: %s", why);
    }
    return 1;
}
