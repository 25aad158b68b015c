/* SPDX-License-Identifier: MIT
 * ROUTE and SORT by a cluster in every way that a block has. */
#include "backends/cuda/kernels/common/route_cluster.cuh"

ROUTE_SORT_KERNEL(cmoe_route_sort_cluster, route_in_cluster, BY_LOGITS)
ROUTE_SORT_KERNEL(cmoe_route_sort_cluster_keyed, route_in_cluster, BY_KEYS)
