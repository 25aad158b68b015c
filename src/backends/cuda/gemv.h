/* SPDX-License-Identifier: MIT
 * The family of the rows that take a handful of tokens from ids to y. */
#ifndef CMOE_BACKENDS_CUDA_GEMV_H
#define CMOE_BACKENDS_CUDA_GEMV_H

#include "backends/cuda/cuda.h"
#include "plan/kernel.h"

bool cmoe__cuda_gemv_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                              struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why);
double cmoe__cuda_gemv_cost(const struct cmoe_kernel *k, const struct cmoe_query *q);
size_t cmoe__cuda_gemv_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q);
cmoe_status cmoe__cuda_gemv(const struct cmoe_step *step, const struct cmoe_exec *x);

#endif
