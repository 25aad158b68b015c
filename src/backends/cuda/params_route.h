/* SPDX-License-Identifier: MIT
 * How the blocks of a kernel route their tokens; what kernels read beside it is in params.h. */
#ifndef CMOE_BACKENDS_CUDA_PARAMS_ROUTE_H
#define CMOE_BACKENDS_CUDA_PARAMS_ROUTE_H

#include "backends/cuda/params.h"

/* Who routes a token: a warp through shared memory, a lane that holds up to so many experts' logits, a warp
 * that does, or eight lanes. */
enum {
    CMOE_ROUTE_MEMORY = 0,
    CMOE_ROUTE_LANE_8,
    CMOE_ROUTE_LANE_16,
    CMOE_ROUTE_LANE_32,
    CMOE_ROUTE_WARP_64,
    CMOE_ROUTE_WARP_128,
    CMOE_ROUTE_WARP_256,
    CMOE_ROUTE_WARP_384,
    CMOE_ROUTE_WARP_512,
    CMOE_ROUTE_OCTET_32,
    CMOE_ROUTE_OCTET_64,
    CMOE_ROUTE_OCTET_128,
    CMOE_ROUTE_OCTET_256,
};

typedef struct cmoe_gpu_routing {
    cmoe_gpu_route r;
    int32_t way, vectors; /* rows of logits start at 16 bytes, experts fill a lane's places */
    /* A warp's 1 << lane_bits lanes hold a group of `size` experts, `per` each; without groups all are one. */
    int32_t lane_bits, size, per;
    int32_t floats; /* of shared memory that a warp may need */
    int32_t each;   /* tokens of a block */
    int32_t
        ahead; /* its last warp has none, and goes through the code before the others (route_block.cuh) */
} cmoe_gpu_routing;

#endif
