/* SPDX-License-Identifier: MIT
 * The families of the rows that route, and what another row needs that routes by itself. */
#ifndef CMOE_BACKENDS_CUDA_ROUTE_H
#define CMOE_BACKENDS_CUDA_ROUTE_H

#include "backends/cuda/params.h"
#include "plan/kernel.h"

extern const struct cmoe_family cmoe__cuda_route, cmoe__cuda_route_sort,
    cmoe__cuda_route_sort_cluster, cmoe__cuda_route_sort_wide;

/* scratch: room for logits that come from x. */
cmoe_gpu_route cmoe__cuda_route_params(const struct cmoe_exec *x, void *scratch);

/* Bytes of that room. */
size_t cmoe__cuda_route_scratch(const cmoe_problem *p, int64_t tokens);

/* Logits from x into r->scratch, if they are not given. */
cmoe_status cmoe__cuda_route_logits(const struct cmoe_exec *x, cmoe_gpu_route *r);

/* Floats of shared memory that a warp may need to route a token. */
size_t cmoe__cuda_route_floats(const cmoe_problem *p);

#endif
