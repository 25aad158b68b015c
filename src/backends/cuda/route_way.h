/* SPDX-License-Identifier: MIT
 * Who routes a token of a problem: CMOE_ROUTE_* of params_route.h. */
#ifndef CMOE_BACKENDS_CUDA_ROUTE_WAY_H
#define CMOE_BACKENDS_CUDA_ROUTE_WAY_H

#include "backends/cuda/params_route.h"
#include "plan/kernel.h"

/* Given ids and more experts than a warp holds go through memory. few: a warp has a token or two, so that what counts
 * is how long one takes. */
int cmoe__cuda_route_way(const cmoe_problem *p, bool few);

/* The way of eight lanes a token, or CMOE_ROUTE_MEMORY: for what is chosen by logits, not for so few experts that a
 * lane has them all. Under binv nothing may depend on where logits lie, as this does. */
int cmoe__cuda_route_octets(const cmoe_problem *p);

/* Whether a way chooses by keys other than logits (scores with a bias, groups), which kernels of their own do. */
bool cmoe__cuda_route_keyed(const cmoe_problem *p, int way);

/* Whether a lane's logits can be read as vectors: places in order, all or none of a lane's are experts. */
bool cmoe__cuda_route_vectors(const cmoe_gpu_route *r, int way);

/* All but how many tokens a block has. scratch: room for logits that come from x. */
cmoe_gpu_routing cmoe__cuda_routing(const struct cmoe_exec *x, int way, void *scratch);

/* us that a multiprocessor takes for a token, as measured on an H100; not by octets. */
double cmoe__cuda_route_token_us(const cmoe_problem *p, bool few);

static inline bool by_octets(int way)
{
    return way >= CMOE_ROUTE_OCTET_32;
}

static inline bool by_lanes(int way)
{
    return way == CMOE_ROUTE_LANE_8 || way == CMOE_ROUTE_LANE_16 || way == CMOE_ROUTE_LANE_32;
}

static inline bool by_warps(int way)
{
    return way >= CMOE_ROUTE_WARP_64 && way <= CMOE_ROUTE_WARP_512;
}

#endif
