/* SPDX-License-Identifier: MIT
 * The wgmma rows of Hopper. */
#ifndef CMOE_BACKENDS_CUDA_WGMMA_H
#define CMOE_BACKENDS_CUDA_WGMMA_H

#include "backends/cuda/cuda.h"
#include "backends/cuda/params_sm90a.h"

bool cmoe__cuda_wgmma_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                               struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why);
double cmoe__cuda_wgmma_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q);
/* COMBINE of z in 16 bits, which only the wgmma rows write. */
bool cmoe__cuda_combine_pairs_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                                       struct cmoe_edge in, struct cmoe_edge *out,
                                       struct cmoe_why *why);
double cmoe__cuda_combine_pairs_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q);
cmoe_status cmoe__cuda_wgmma_gemm1(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__cuda_wgmma_gemm2(const struct cmoe_step *step, const struct cmoe_exec *x);

#endif
