/* SPDX-License-Identifier: MIT
 * Recording real calls, so that a report from the field can be run again elsewhere. */
#ifndef CMOE_RECORD_H
#define CMOE_RECORD_H

#include <cmoe/plan.h>

CMOE_BEGIN_DECLS

/** Handed to the callback before a call runs; everything is valid only during the callback. */
typedef struct cmoe_record {
    size_t struct_size;
    const cmoe_problem *problem;
    const cmoe_tensors *tensors;
    const cmoe_weights *weights;
    const char *path;   /* kernels that will run, joined by " > " */
    const char *device; /* backend: "cpu", "cuda" */
    int far;            /* 1: the arrays lie in the device's memory, out of the host's reach */
} cmoe_record;

typedef struct cmoe_recorder {
    void (*record)(void *user, const cmoe_record *call);
    void *user;
} cmoe_recorder;

/** The expert's matrices inside a weights object in canonical format: for writing a record.
 *  @return CMOE_OK, CMOE_ERR_UNSUPPORTED (packed), CMOE_ERR_INVALID (no such expert). */
CMOE_API cmoe_status cmoe_weights_matrix(const cmoe_weights *w, int expert, int matrix,
                                         cmoe_matrix *gate_or_down, cmoe_matrix *up)
    CMOE_MUST_CHECK;

CMOE_END_DECLS

#endif
