/* SPDX-License-Identifier: MIT
 * cmoe_route_sort_cluster by octets, for up to so many experts. */
#include "backends/cuda/kernels/common/route_cluster.cuh"

/* Named by experts, of which a lane holds an eighth. */
ROUTE_SORT_KERNEL(cmoe_route_cluster_32, route_in_cluster, 4)
ROUTE_SORT_KERNEL(cmoe_route_cluster_64, route_in_cluster, 8)
ROUTE_SORT_KERNEL(cmoe_route_cluster_128, route_in_cluster, 16)
ROUTE_SORT_KERNEL(cmoe_route_cluster_256, route_in_cluster, 32)
