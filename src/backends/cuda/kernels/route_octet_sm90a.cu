/* SPDX-License-Identifier: MIT
 * cmoe_route_sort_cluster by octets, for up to so many experts. */
#include "backends/cuda/kernels/common/route_cluster.cuh"

/* Named by experts, of which a lane holds an eighth. */
#define CLUSTER(experts)                                                                                               \
    extern "C" __global__ void __launch_bounds__(512, 1) cmoe_route_cluster_##experts(                                 \
        const __grid_constant__ cmoe_gpu_routing g, const __grid_constant__ cmoe_gpu_sort s)                           \
    {                                                                                                                  \
        extern __shared__ int4 memory[];                                                                               \
        route_in_cluster<experts / 8>(g, s, memory);                                                                   \
    }

CLUSTER(32)
CLUSTER(64)
CLUSTER(128)
CLUSTER(256)
