/* SPDX-License-Identifier: MIT
 * cmoe_route_count by octets, for up to so many experts: a kernel each, because registers decide how many warps there
 * are, and instructions how long one takes. */
#include "backends/cuda/kernels/common/route_sort.cuh"

/* Named by experts, of which a lane holds an eighth. */
#define COUNT(experts, threads)                                                                                        \
    extern "C" __global__ void __launch_bounds__(threads, 1) cmoe_route_count_##experts(                               \
        const __grid_constant__ cmoe_gpu_routing g, const __grid_constant__ cmoe_gpu_sort s, uint16_t *starts,         \
        int32_t *list)                                                                                                 \
    {                                                                                                                  \
        extern __shared__ int4 memory[];                                                                               \
        count_tokens<experts / 8>(g, s, memory, starts, list);                                                         \
    }

COUNT(32, 1024)
COUNT(64, 1024)
COUNT(128, 512)
COUNT(256, 512)
