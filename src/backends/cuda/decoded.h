/* SPDX-License-Identifier: MIT
 * The family of the wgmma rows whose weights are decoded into registers. */
#ifndef CMOE_BACKENDS_CUDA_DECODED_H
#define CMOE_BACKENDS_CUDA_DECODED_H

#include "backends/cuda/cuda.h"
#include "plan/kernel.h"

bool cmoe__cuda_decoded_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                                 struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why);
double cmoe__cuda_decoded_cost(const struct cmoe_kernel *k, const struct cmoe_query *q);
size_t cmoe__cuda_decoded_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q);
cmoe_status cmoe__cuda_decoded(const struct cmoe_step *step, const struct cmoe_exec *x);

#endif
