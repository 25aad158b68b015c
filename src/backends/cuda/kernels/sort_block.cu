/* SPDX-License-Identifier: MIT
 * SORT of few ids by one block. */
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/sort_block.cuh"

extern "C" __global__ void __launch_bounds__(1024, 1)
    cmoe_sort_block(const __grid_constant__ cmoe_gpu_sort s)
{
    extern __shared__ int4 memory[];
    const sort_memory m((int *)memory, s.call.local, s.call.tokens * s.call.slots);
    m.clear();
    depend();
    sort_in_block(s, m);
}
