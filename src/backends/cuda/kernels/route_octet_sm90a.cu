/* SPDX-License-Identifier: MIT
 * cmoe_route_sort_cluster by octets, for up to so many experts. */
#include "backends/cuda/kernels/common/route_cluster.cuh"

extern "C" __global__ void __launch_bounds__(512, 1)
    cmoe_route_cluster_32(const __grid_constant__ cmoe_gpu_routing g, const __grid_constant__ cmoe_gpu_sort s)
{
    extern __shared__ int4 memory[];
    route_in_cluster<4>(g, s, memory);
}

extern "C" __global__ void __launch_bounds__(512, 1)
    cmoe_route_cluster_64(const __grid_constant__ cmoe_gpu_routing g, const __grid_constant__ cmoe_gpu_sort s)
{
    extern __shared__ int4 memory[];
    route_in_cluster<8>(g, s, memory);
}

extern "C" __global__ void __launch_bounds__(512, 1)
    cmoe_route_cluster_128(const __grid_constant__ cmoe_gpu_routing g, const __grid_constant__ cmoe_gpu_sort s)
{
    extern __shared__ int4 memory[];
    route_in_cluster<16>(g, s, memory);
}

extern "C" __global__ void __launch_bounds__(512, 1)
    cmoe_route_cluster_256(const __grid_constant__ cmoe_gpu_routing g, const __grid_constant__ cmoe_gpu_sort s)
{
    extern __shared__ int4 memory[];
    route_in_cluster<32>(g, s, memory);
}
