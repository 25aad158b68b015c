/* SPDX-License-Identifier: MIT
 * cmoe_route_count by octets, for up to so many experts: a kernel each, because registers decide how many warps there
 * are, and instructions how long one takes. */
#include "backends/cuda/kernels/common/route_sort.cuh"

/* Named by experts, of which a lane holds an eighth. */
ROUTE_COUNT_KERNEL(cmoe_route_count_32, 1024, 4)
ROUTE_COUNT_KERNEL(cmoe_route_count_64, 1024, 8)
ROUTE_COUNT_KERNEL(cmoe_route_count_128, 512, 16)
ROUTE_COUNT_KERNEL(cmoe_route_count_256, 512, 32)
