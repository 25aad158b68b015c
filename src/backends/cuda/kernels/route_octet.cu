/* SPDX-License-Identifier: MIT
 * cmoe_route_count by octets, for up to so many experts: a kernel each, because registers decide how many warps there
 * are, and instructions how long one takes. */
#include "backends/cuda/kernels/common/route_sort.cuh"

extern "C" __global__ void __launch_bounds__(1024, 1)
    cmoe_route_count_32(const __grid_constant__ cmoe_gpu_routing g, const __grid_constant__ cmoe_gpu_sort s,
                        uint16_t *starts, int32_t *list)
{
    extern __shared__ int4 memory[];
    count_tokens<4>(g, s, memory, starts, list);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    cmoe_route_count_64(const __grid_constant__ cmoe_gpu_routing g, const __grid_constant__ cmoe_gpu_sort s,
                        uint16_t *starts, int32_t *list)
{
    extern __shared__ int4 memory[];
    count_tokens<8>(g, s, memory, starts, list);
}

extern "C" __global__ void __launch_bounds__(512, 1)
    cmoe_route_count_128(const __grid_constant__ cmoe_gpu_routing g, const __grid_constant__ cmoe_gpu_sort s,
                         uint16_t *starts, int32_t *list)
{
    extern __shared__ int4 memory[];
    count_tokens<16>(g, s, memory, starts, list);
}

extern "C" __global__ void __launch_bounds__(512, 1)
    cmoe_route_count_256(const __grid_constant__ cmoe_gpu_routing g, const __grid_constant__ cmoe_gpu_sort s,
                         uint16_t *starts, int32_t *list)
{
    extern __shared__ int4 memory[];
    count_tokens<32>(g, s, memory, starts, list);
}
