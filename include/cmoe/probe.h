/* SPDX-License-Identifier: MIT
 * What a device can do at best, measured: the ceilings that a benchmark's times are held against. */
#ifndef CMOE_PROBE_H
#define CMOE_PROBE_H

#include <cmoe/context.h>

CMOE_BEGIN_DECLS

typedef enum cmoe_probe {
    CMOE_PROBE_READ, /* bytes a second: every byte of `memory` once, from all threads */
    CMOE_PROBE_DOT,  /* operations a second (two a multiply-add) of the dot-product instruction that
                        kernels for activations of type `dtype` would use at best: on CPUs int8, bf16
                        (e4m3 and e2m1 too; f32 if that is faster) or else f32; on Hopper wgmma of
                        8-bit or 16-bit types */
} cmoe_probe;

/** Measure once, for some 10 ms. `memory` holds `bytes` (1 MiB or more) that are initialised; for READ
 *  more than the caches hold. Not written.
 *  @return CMOE_OK; CMOE_ERR_INVALID; CMOE_ERR_UNSUPPORTED (no such instruction is known here);
 *          CMOE_ERR_DEVICE. */
CMOE_API cmoe_status cmoe_device_probe(cmoe_device *dev, cmoe_probe what, cmoe_dtype dtype,
                                       const void *memory, size_t bytes, double *rate)
    CMOE_MUST_CHECK;

CMOE_END_DECLS

#endif
