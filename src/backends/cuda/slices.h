/* SPDX-License-Identifier: MIT
 * The rows that take a handful of tokens from ids to y by slices of experts, in one kernel and a sum. */
#ifndef CMOE_BACKENDS_CUDA_SLICES_H
#define CMOE_BACKENDS_CUDA_SLICES_H

#include "backends/cuda/cuda.h"

bool cmoe__cuda_slices_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                                struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why);
double cmoe__cuda_slices_cost(const struct cmoe_kernel *k, const struct cmoe_query *q);
size_t cmoe__cuda_slices_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q);
cmoe_status cmoe__cuda_slices(const struct cmoe_step *step, const struct cmoe_exec *x);

#endif
