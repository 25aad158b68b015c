/* SPDX-License-Identifier: MIT
 * COMBINE. Where rows of z are whole pieces of 16 bytes a thread has 8 columns of a token or a few, adds its slots in
 * f32, in slot order, and what nobody reads again is dropped from L2 instead of being written to memory some time
 * later; any other shape goes column by column. */
#include "backends/cuda/kernels/common/combine.cuh"
#include "backends/cuda/kernels/common/depend.cuh"

enum { THREADS = CMOE_COMBINE_THREADS };
static_assert(THREADS * COLUMNS == CMOE_COMBINE_COLUMNS, "a thread has eight");

/* The threads that have a line of z's columns have read it: where it still lies in L2, it need not go to memory. */
template <int Z> DEV void discard_columns(const cmoe_gpu_combine &c, const char *z, int rows, int h, const int *valid)
{
    constexpr int BYTES = slot_columns<Z>::BYTES, SHARE = LINE_BYTES / (COLUMNS * BYTES);
    const int lane = (int)threadIdx.x % 32, column = h / (SHARE * COLUMNS) * (SHARE * COLUMNS);
    __syncwarp(((1u << SHARE) - 1) << (lane & ~(SHARE - 1)));
    for (int i = lane % SHARE; i < rows; i += SHARE)
        if (valid[i])
            discard_line(z + ((int64_t)i * c.h + column) * BYTES);
}

DEV void discard_spent(const cmoe_gpu_combine &c)
{
    const int64_t blocks = (int64_t)gridDim.x * gridDim.y, block = blockIdx.x + (int64_t)blockIdx.y * gridDim.x;
    for (int64_t i = block * THREADS + threadIdx.x; i < c.spent_lines; i += blocks * THREADS)
        discard_line((const char *)c.spent + i * 128);
}

/* Which of the rows of z of so many tokens are computed, and what they are multiplied by, into shared memory; their
 * number. The kernel before this one is complete then. Apart, it takes no registers from the sums. */
static __device__ __noinline__ int weigh_rows(const cmoe_gpu_combine &c, int first, int tokens, float *factor,
                                              int *valid)
{
    if (!c.ahead)
        depend();
    const int rows = min(tokens, token_count(c.call) - first) * c.call.slots;
    for (int i = threadIdx.x; i < rows; i += (int)blockDim.x) {
        const int64_t row = (int64_t)first * c.call.slots + i;
        valid[i] = local_expert(c.call, c.call.ids[row]) >= 0;
        factor[i] = c.weigh ? row_weight(c.call, row) : 1.0f;
    }
    __syncthreads();
    if (c.ahead)
        depend();
    return rows;
}

/* A block has c.tokens tokens, so that a thread has several rows of z to load whatever top-k is. */
template <int Z, int Y> DEV void combine(const cmoe_gpu_combine &c, float *factor)
{
    enum { AT_ONCE = CMOE_COMBINE_ROWS / (slot_columns<Z>::BYTES / 2), PARTS = slot_columns<Z>::WORDS / 4 };
    const int slots = c.call.slots, first = (int)blockIdx.x * c.tokens;
    const int h = ((int)blockIdx.y * THREADS + (int)threadIdx.x) * COLUMNS;
    int *valid = (int *)(factor + c.tokens * slots);
    const int rows = weigh_rows(c, first, c.tokens, factor, valid);
    discard_spent(c);
    if (h >= c.h)
        return;
    const char *z = (const char *)c.z + (int64_t)first * slots * c.h * slot_columns<Z>::BYTES;
    char *y = (char *)c.y + first * c.y_stride;
    float sum[COLUMNS];
    const int loads = h < c.h_used ? rows : 0; /* z has nothing beyond */
    int slot = 0;
#pragma unroll 1
    for (int row = 0; row < rows; row += AT_ONCE) {
        slot_columns<Z> v[AT_ONCE];
        uint32_t there = 0;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (row + i >= loads || !valid[row + i])
                continue;
            there |= 1u << i;
#pragma unroll
            for (int part = 0; part < PARTS; part++)
                v[i].part[part] = ((const uint4 *)(z + ((int64_t)(row + i) * c.h + h) * slot_columns<Z>::BYTES))[part];
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (row + i >= rows)
                break;
            if (slot == 0)
                start_columns<Y>(c, y, h, sum);
            if (there >> i & 1)
                add_slot<Z>(sum, v[i], factor[row + i]);
            if (++slot < slots)
                continue;
            store_columns<Y>(c, y, h, sum);
            y += c.y_stride;
            slot = 0;
        }
    }
    if (c.discard)
        discard_columns<Z>(c, z, rows, h, valid);
}

/* Named by z's type and y's. */
#define COMBINE(name, z, y)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ cmoe_gpu_combine c)             \
    {                                                                                                                  \
        extern __shared__ float factor[];                                                                              \
        combine<z, y>(c, factor);                                                                                      \
    }

COMBINE(cmoe_combine_bf16_bf16, CMOE_BF16, CMOE_BF16)
COMBINE(cmoe_combine_f16_f16, CMOE_F16, CMOE_F16)
COMBINE(cmoe_combine_f32_bf16, CMOE_F32, CMOE_BF16)
COMBINE(cmoe_combine_f32_f16, CMOE_F32, CMOE_F16)
COMBINE(cmoe_combine_f32_f32, CMOE_F32, CMOE_F32)

/* y[row] = z[row] of every valid batched row. */
extern "C" __global__ void __launch_bounds__(256) cmoe_combine_batched(const __grid_constant__ cmoe_gpu_combine c)
{
    depend();
    const int row = (int)blockIdx.x, e = row / c.call.capacity;
    if (row % c.call.capacity >= c.call.counts[e])
        return;
    const float *z = (const float *)c.z + (int64_t)row * c.h;
    char *y = (char *)c.y + row * c.y_stride;
    for (int h = threadIdx.x; h < c.h; h += blockDim.x)
        store(c.dtype, y, h, h < c.h_used ? z[h] : 0.0f);
}

/* A block takes a token and 256 of its columns; the token's factors are worked out once, into shared
 * memory. */
extern "C" __global__ void __launch_bounds__(256) cmoe_combine(const __grid_constant__ cmoe_gpu_combine c)
{
    extern __shared__ float factor[]; /* [slots], then [slots] whether the slot is computed */
    const int t = (int)blockIdx.x, slots = c.call.slots, h = (int)(blockIdx.y * blockDim.x + threadIdx.x);
    int *valid = (int *)(factor + slots);
    weigh_rows(c, t, 1, factor, valid);
    if (t >= token_count(c.call) || h >= c.h) /* of no slots y is 0, too */
        return;
    const float *z = (const float *)c.z + (int64_t)t * slots * c.h;
    char *y = (char *)c.y + t * c.y_stride;
    float sum = c.accumulate != 0.0f ? c.accumulate * load(c.dtype, y, h) : 0.0f;
    for (int first = 0; first < slots; first += 4) { /* four loads in flight, added in order */
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int s = first + i;
            const bool counts = s < slots && h < c.h_used && valid[s];
            v[i] = counts ? factor[s] * z[(int64_t)s * c.h + h] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (first + i < slots && h < c.h_used && valid[first + i])
                sum += v[i];
    }
    store(c.dtype, y, h, sum);
}

/* y[t] = 0 where the token's only slot is not computed, a warp a token. GEMM2, which may still run, writes the others;
 * it is the kernel before this one, so the ids are complete. */
extern "C" __global__ void __launch_bounds__(256) cmoe_combine_absent(const __grid_constant__ cmoe_gpu_combine c)
{
    const int t = (int)(blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (t < token_count(c.call) && local_expert(c.call, c.call.ids[t]) < 0) {
        uint16_t *y = (uint16_t *)((char *)c.y + t * c.y_stride);
        for (int h = (int)threadIdx.x % 32; h < c.h; h += 32)
            y[h] = 0;
    }
    depend();
}

/* y[t, s] = factor * z, 0 where the slot is not computed: one block a slot row. */
extern "C" __global__ void __launch_bounds__(256) cmoe_combine_slots(const __grid_constant__ cmoe_gpu_combine c)
{
    depend();
    const int row = (int)blockIdx.x, t = row / c.call.slots, s = row % c.call.slots;
    if (t >= token_count(c.call))
        return;
    const bool valid = local_expert(c.call, c.call.ids[row]) >= 0;
    const float factor = c.weigh ? row_weight(c.call, row) : 1.0f;
    const float *z = (const float *)c.z + (int64_t)row * c.h;
    char *y = (char *)c.y + t * c.y_stride;
    for (int h = threadIdx.x; h < c.h; h += blockDim.x)
        store(c.dtype, y, (int64_t)s * c.h + h, valid && h < c.h_used ? factor * z[h] : 0.0f);
}
