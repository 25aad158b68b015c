/* SPDX-License-Identifier: MIT
 * SORT: a stable counting sort without atomics. One warp an expert walks all ids in order and gives
 * its own the next ranks by ballot, so the order is that of the slots and the same in every run. */
#include "backends/cuda/kernels/common/numeric.cuh"

DEV int64_t n_slots(const cmoe_gpu_sort &s)
{
    return (int64_t)token_count(s.call) * s.call.slots;
}

/* Slots of expert e in order: calls found(slot row, rank). Returns how many. */
template <class Found> DEV int walk(const cmoe_gpu_sort &s, int e, Found found)
{
    const int lane = threadIdx.x % 32;
    const int64_t n = n_slots(s);
    int rank = 0;
    for (int64_t base = 0; base < n; base += 32) {
        const int64_t i = base + lane;
        const bool mine = i < n && local_expert(s.call, s.call.ids[i]) == e;
        const uint32_t ballot = __ballot_sync(0xffffffff, mine);
        if (mine)
            found((int32_t)i, rank + __popc(ballot & ((1u << lane) - 1)));
        rank += __popc(ballot);
    }
    return rank;
}

extern "C" __global__ void __launch_bounds__(128)
    cmoe_sort_count(const __grid_constant__ cmoe_gpu_sort s)
{
    const int e = blockIdx.x * 4 + threadIdx.x / 32;
    if (e >= s.call.local)
        return;
    int n;
    if (s.call.batched) {
        n = s.call.counts[e];
        n = n < 0 ? 0 : (n < s.call.capacity ? n : s.call.capacity);
    } else {
        n = walk(s, e, [](int32_t, int) {});
    }
    if (threadIdx.x % 32 == 0)
        s.offsets[e + 1] = n;
}

/* Counts in offsets[1..] to starts; one warp. */
extern "C" __global__ void __launch_bounds__(32) cmoe_sort_scan(const __grid_constant__ cmoe_gpu_sort s)
{
    const int lane = threadIdx.x;
    int carry = 0;
    clear_progress(s, 32);
    if (lane == 0)
        s.offsets[0] = 0;
    for (int base = 0; base < s.call.local; base += 32) {
        const int e = base + lane;
        int v = e < s.call.local ? s.offsets[e + 1] : 0;
        for (int offset = 1; offset < 32; offset <<= 1) {
            const int below = __shfl_up_sync(0xffffffff, v, offset);
            v += lane >= offset ? below : 0;
        }
        if (e < s.call.local)
            s.offsets[e + 1] = carry + v;
        carry += __shfl_sync(0xffffffff, v, 31);
    }
}

extern "C" __global__ void __launch_bounds__(128)
    cmoe_sort_place(const __grid_constant__ cmoe_gpu_sort s)
{
    const int e = blockIdx.x * 4 + threadIdx.x / 32;
    if (e >= s.call.local)
        return;
    int32_t *rows = s.rows + s.offsets[e];
    if (s.call.batched) {
        const int n = s.offsets[e + 1] - s.offsets[e];
        for (int r = threadIdx.x % 32; r < n; r += 32)
            rows[r] = e * s.call.capacity + r;
        return;
    }
    walk(s, e, [rows](int32_t row, int rank) { rows[rank] = row; });
}

/* 64-bit ids to 32-bit; what does not fit is no expert. */
extern "C" __global__ void __launch_bounds__(256)
    cmoe_narrow_ids(const __grid_constant__ cmoe_gpu_sort s)
{
    const int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (i < (int64_t)s.call.tokens * s.call.slots)
        s.ids[i] = s.ids64[i] >= 0 && s.ids64[i] <= 0x7fffffff ? (int32_t)s.ids64[i] : -1;
}

/* Index to a published format: one block an expert; its segment starts where the padded counts of
 * the experts before it end. */
extern "C" __global__ void __launch_bounds__(256)
    cmoe_sort_export(const __grid_constant__ cmoe_gpu_sort s)
{
    const int e = blockIdx.x, bm = s.block_m, slots = s.call.slots, tokens = token_count(s.call);
    __shared__ int partial[8], start;
    int before = 0;
    for (int i = threadIdx.x; i < e; i += blockDim.x)
        before += (s.offsets[i + 1] - s.offsets[i] + bm - 1) / bm * bm;
    for (int offset = 16; offset > 0; offset >>= 1)
        before += __shfl_xor_sync(0xffffffff, before, offset);
    if (threadIdx.x % 32 == 0)
        partial[threadIdx.x / 32] = before;
    __syncthreads();
    if (threadIdx.x == 0) {
        start = 0;
        for (int w = 0; w < 8; w++)
            start += partial[w];
    }
    __syncthreads();
    const int n = s.offsets[e + 1] - s.offsets[e], padded = (n + bm - 1) / bm * bm;
    const uint32_t pad = s.packed ? ((uint32_t)slots << 24) | (uint32_t)tokens : (uint32_t)(tokens * slots);
    for (int i = threadIdx.x; i < padded; i += blockDim.x) {
        const int row = i < n ? s.rows[s.offsets[e] + i] : 0;
        const uint32_t id = s.packed ? ((uint32_t)(row % slots) << 24) | (uint32_t)(row / slots) : (uint32_t)row;
        s.sorted_ids[start + i] = (int32_t)(i < n ? id : pad);
        if (s.sorted_weights)
            s.sorted_weights[start + i] = i < n ? row_weight(s.call, row) : 0.0f;
        if (i % bm == 0)
            s.block_experts[(start + i) / bm] = e;
    }
    if (e == s.call.local - 1 && threadIdx.x == 0) {
        s.num_valid[0] = start + padded;
        if (s.packed)
            s.num_valid[1] = tokens;
    }
}

/* A published list to the index: one warp an expert walks the list; count != 0 only counts. */
DEV int64_t entry_row(const cmoe_gpu_sort &s, int64_t i)
{
    const uint32_t id = (uint32_t)s.sorted_ids[i];
    const uint32_t tokens = (uint32_t)token_count(s.call), slots = (uint32_t)s.call.slots;
    if (!s.packed)
        return id < (uint64_t)tokens * slots ? (int64_t)id : -1;
    const uint32_t token = id & 0xffffff, slot = id >> 24;
    return token < tokens && slot < slots ? (int64_t)token * slots + slot : -1;
}

extern "C" __global__ void __launch_bounds__(128)
    cmoe_sort_import(const __grid_constant__ cmoe_gpu_sort s)
{
    const int e = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (e >= s.call.local)
        return;
    int32_t *rows = s.rows ? s.rows + s.offsets[e] : NULL;
    const int64_t n = min((int64_t)max(s.num_valid[0], 0), (int64_t)s.n);
    int rank = 0;
    for (int64_t base = 0; base < n; base += 32) {
        const int64_t i = base + lane, row = i < n ? entry_row(s, i) : -1;
        const bool mine = row >= 0 && s.block_experts[i / s.block_m] == e;
        const uint32_t ballot = __ballot_sync(0xffffffff, mine);
        const int at = rank + __popc(ballot & ((1u << lane) - 1));
        if (mine && rows && at < s.offsets[e + 1] - s.offsets[e])
            rows[at] = (int32_t)row;
        rank += __popc(ballot);
    }
    if (!rows && lane == 0)
        s.offsets[e + 1] = rank;
}

/* Slots that each local expert computes, added up. */
extern "C" __global__ void __launch_bounds__(128)
    cmoe_sort_load(const __grid_constant__ cmoe_gpu_sort s, int64_t *load)
{
    const int e = blockIdx.x * 4 + threadIdx.x / 32;
    if (e >= s.call.local)
        return;
    const int n = s.call.batched ? min(max(s.call.counts[e], 0), s.call.capacity) : walk(s, e, [](int32_t, int) {});
    if (threadIdx.x % 32 == 0)
        load[e] += n;
}
