/* SPDX-License-Identifier: MIT
 * ROUTE and SORT by a cluster in every way that a block has. */
#include "backends/cuda/kernels/common/route_cluster.cuh"

#define CLUSTER(name, held)                                                                                            \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                               \
        name(const __grid_constant__ cmoe_gpu_routing g, const __grid_constant__ cmoe_gpu_sort s)                      \
    {                                                                                                                  \
        extern __shared__ int4 memory[];                                                                               \
        route_in_cluster<held>(g, s, memory);                                                                          \
    }

CLUSTER(cmoe_route_sort_cluster, BY_LOGITS)
CLUSTER(cmoe_route_sort_cluster_keyed, BY_KEYS)
