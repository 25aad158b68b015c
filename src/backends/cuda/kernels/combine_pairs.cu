/* SPDX-License-Identifier: MIT
 * COMBINE of 16-bit z: a thread adds 8 columns of a token's slots in f32, in slot order. What nobody reads again
 * is dropped from L2 instead of being written to memory some time later. */
#include "backends/cuda/kernels/common/combine.cuh"
#include "backends/cuda/kernels/common/depend.cuh"

enum { THREADS = 128 };

/* The 8 threads that have a line of z's columns have read it: where it still lies in L2, it need not go to memory. */
DEV void discard_columns(const cmoe_gpu_combine &c, int t, int h, const int *valid)
{
    const int lane = (int)threadIdx.x % 32, slots = c.call.slots;
    const uint16_t *z = (const uint16_t *)c.z + (int64_t)t * slots * c.h + h / 64 * 64;
    __syncwarp(0xffu << (lane & 24));
    for (int s = lane % 8; s < slots; s += 8)
        if (valid[s])
            discard_line(z + (int64_t)s * c.h);
}

DEV void discard_spent(const cmoe_gpu_combine &c)
{
    const int64_t blocks = (int64_t)gridDim.x * gridDim.y, block = blockIdx.x + (int64_t)blockIdx.y * gridDim.x;
    for (int64_t i = block * THREADS + threadIdx.x; i < c.spent_lines; i += blocks * THREADS)
        discard_line((const char *)c.spent + i * 128);
}

template <int TYPE> DEV void combine(const cmoe_gpu_combine &c, float *factor)
{
    const int t = (int)blockIdx.x, slots = c.call.slots, h = ((int)blockIdx.y * THREADS + (int)threadIdx.x) * COLUMNS;
    int *valid = (int *)(factor + slots);
    if (!c.ahead)
        depend();
    const bool there = t < token_count(c.call);
    for (int s = threadIdx.x; there && s < slots; s += THREADS) {
        const int64_t row = (int64_t)t * slots + s;
        valid[s] = local_expert(c.call, c.call.ids[row]) >= 0;
        factor[s] = c.weigh ? row_weight(c.call, row) : 1.0f;
    }
    __syncthreads();
    if (c.ahead)
        depend();
    discard_spent(c);
    if (!there || h >= c.h)
        return;
    const uint16_t *z = (const uint16_t *)c.z + (int64_t)t * slots * c.h + h;
    char *y = (char *)c.y + t * c.y_stride;
    float sum[COLUMNS];
    start_columns<TYPE>(c, y, h, sum);
    for (int first = 0; first < slots; first += SLOTS_AT_ONCE) {
        uint4 v[SLOTS_AT_ONCE];
        uint32_t there = 0;
#pragma unroll
        for (int i = 0; i < SLOTS_AT_ONCE; i++) {
            if (first + i >= slots || !valid[first + i])
                continue;
            there |= 1u << i;
            v[i] = *(const uint4 *)(z + (int64_t)(first + i) * c.h);
        }
#pragma unroll
        for (int i = 0; i < SLOTS_AT_ONCE; i++)
            if (there >> i & 1)
                add_slot<TYPE>(sum, v[i], factor[first + i]);
    }
    store_columns<TYPE>(c, y, h, sum);
    if (c.discard)
        discard_columns(c, t, h, valid);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    cmoe_combine_bf16(const __grid_constant__ cmoe_gpu_combine c)
{
    extern __shared__ float factor[];
    combine<CMOE_BF16>(c, factor);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    cmoe_combine_f16(const __grid_constant__ cmoe_gpu_combine c)
{
    extern __shared__ float factor[];
    combine<CMOE_F16>(c, factor);
}
