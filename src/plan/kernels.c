/* SPDX-License-Identifier: MIT
 * Enumerating kernel rows, so that tests, benches and the support matrix walk one table. */
#include "plan/plan.h"

#include <string.h>

/* All compiled-in rows, one list over the backends. */
const struct cmoe_kernel *cmoe__kernel_at(int i, const struct cmoe_backend **backend)
{
    for (int b = 0; i >= 0 && cmoe__backends[b]; b++) {
        if (i < cmoe__backends[b]->n_kernels) {
            if (backend) *backend = cmoe__backends[b];
            return &cmoe__backends[b]->kernels[i];
        }
        i -= cmoe__backends[b]->n_kernels;
    }
    return NULL;
}

int cmoe_kernel_describe(int i, cmoe_kernel_info *info)
{
    const struct cmoe_backend *backend;
    const struct cmoe_kernel *k = cmoe__kernel_at(i, &backend);
    if (!k || !info) return 0;
    const bool converts = k->last + 1 == k->first;
    *info = (cmoe_kernel_info){
        .name = k->name,
        .backend = backend->name,
        .target = strstr(k->name, "__") + 2,
        .format1 = k->format1,
        .format2 = k->format2,
        .first = (cmoe_stage)k->first,
        .last = (cmoe_stage)(converts ? k->first : k->last),
        .conversion = converts,
    };
    return 1;
}

int cmoe_kernel_supports(int i, cmoe_device *dev, const cmoe_problem *p, char *why, size_t len)
{
    const struct cmoe_backend *backend;
    const struct cmoe_kernel *k = cmoe__kernel_at(i, &backend);
    struct cmoe_why reason = {{0}};
    struct cmoe_shape shape;
    bool ok = false;
    if (!k) {
        cmoe__refuse(&reason, "there is no kernel row %d", i);
    } else if (!dev || !p) {
        cmoe__refuse(&reason, "the argument %s is NULL", dev ? "p" : "dev");
    } else if (!cmoe__backend_visible(backend, dev)) {
        cmoe__refuse(&reason, "a row of %s, the device is %s", backend->name, dev->backend->name);
    } else {
        cmoe__shape(p, &shape);
        const struct cmoe_query q = {
            .p = p, .shape = &shape, .props = &dev->props, .tokens = p->max_tokens};
        struct cmoe_edge out, in = cmoe__usual_edge(p, k->first);
        ok = cmoe__kernel_usable(k, &q, in, &out, &reason);
        for (uint8_t layout = 0; !ok && layout < CMOE_EDGE_COUNT; layout++) {
            in = (struct cmoe_edge){.layout = layout, .block_m = (uint16_t)p->block_m};
            ok = cmoe__kernel_usable(k, &q, in, &out, NULL);
        }
    }
    if (!ok && why && len > 0) {
        strncpy(why, reason.text, len - 1);
        why[len - 1] = 0;
    }
    return ok;
}

bool cmoe__conversion_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                               struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const struct cmoe_conversion *const c = k->config;
    if (in.layout != c->from) return cmoe__refuse(why, "converts another sort format");
    const bool padded = c->to == CMOE_EDGE_PACKED || c->to == CMOE_EDGE_FLAT;
    *out = (struct cmoe_edge){.layout = c->to, .block_m = padded ? (uint16_t)q->p->block_m : 0};
    return true;
}
