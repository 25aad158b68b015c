/* SPDX-License-Identifier: MIT
 * ROUTE and SORT of tokens that one block routes, and of any number in two kernels: blocks route and count,
 * then every block adds up the counts of all and puts its ids where they belong. */
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/route_sort.cuh"

enum { THREADS = 512 };

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    cmoe_route_sort(const __grid_constant__ cmoe_gpu_routing g, const __grid_constant__ cmoe_gpu_sort s)
{
    extern __shared__ int4 memory[];
    const routed_memory m(memory, g, s.call.local, 1);
    clear_masks(m);
    depend();
    const tokens_of tokens(g);
    route_tokens(g, s, m, tokens);
    start_experts(s, m.sums, m.start, (int)threadIdx.x < s.call.local ? count_of(m, (int)threadIdx.x) : 0, 0);
    put_rows(s, m, tokens);
}

/* counts: [blocks][experts]; places: of every slot the local expert, and above 16 bits its rank in the block. */
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    cmoe_route_count(const __grid_constant__ cmoe_gpu_routing g, const __grid_constant__ cmoe_gpu_sort s,
                     uint16_t *counts, uint32_t *places)
{
    extern __shared__ int4 memory[];
    const routed_memory m(memory, g, s.call.local, 1);
    const int slots = s.call.slots;
    clear_masks(m);
    depend();
    const tokens_of tokens(g);
    route_tokens(g, s, m, tokens);
    for (int e = threadIdx.x; e < m.experts; e += THREADS)
        counts[blockIdx.x * m.experts + e] = (uint16_t)count_of(m, e);
#pragma unroll 1
    for (int i = threadIdx.x; i < tokens.n * slots; i += THREADS) {
        const int e = m.ids[i];
        const int rank = e < s.call.local ? rank_of_token(m, e, i / slots) : 0;
        places[(int64_t)tokens.from * slots + i] = (uint32_t)rank << 16 | (uint32_t)e;
    }
}

/* Of a thread's eight experts, two counts in a word: ids in all blocks, and in those before. */
struct tally {
    uint32_t all[4], before[4];
};

/* Every `step`th row of counts from `row` on. */
DEV tally add_rows(const uint16_t *counts, int experts, int rows, int row, int step, int column)
{
    tally t = {};
#pragma unroll 8
    for (; row < rows; row += step) {
        const uint4 n = *(const uint4 *)(counts + row * experts + 8 * column);
        const uint32_t v[4] = {n.x, n.y, n.z, n.w};
        const uint32_t earlier = row < (int)blockIdx.x ? 0xffffffff : 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            t.all[i] += v[i];
            t.before[i] += v[i] & earlier;
        }
    }
    return t;
}

/* each: tokens of a block of cmoe_route_count, of which there were as many as there are of this. */
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    cmoe_route_place(const __grid_constant__ cmoe_gpu_sort s, const uint16_t *counts, const uint32_t *places, int each)
{
    extern __shared__ int4 memory[];
    const int experts = (s.call.local + 7) / 8 * 8, columns = experts / 8, parts = min(16, THREADS / columns);
    const int part = (int)threadIdx.x / columns, column = (int)threadIdx.x % columns, e = (int)threadIdx.x;
    int *sums = (int *)memory, *start = sums + 32;
    uint16_t *all = (uint16_t *)(start + experts), *before = all + parts * experts; /* [parts][experts] */
    depend();
    const int n = token_count(s.call) * s.call.slots, from = min(n, (int)blockIdx.x * each * s.call.slots);
    const int end = min(n, from + each * s.call.slots);
    const uint32_t mine = from + e < end ? places[from + e] : 0; /* on its way */
    if (part < parts) {
        const tally t = add_rows(counts, experts, (int)gridDim.x, part, parts, column);
        *(uint4 *)(all + part * experts + 8 * column) = make_uint4(t.all[0], t.all[1], t.all[2], t.all[3]);
        *(uint4 *)(before + part * experts + 8 * column) =
            make_uint4(t.before[0], t.before[1], t.before[2], t.before[3]);
    }
    __syncthreads();
    int sum = 0, earlier = 0;
#pragma unroll 4
    for (int p = 0; p < parts && e < s.call.local; p++) {
        sum += all[p * experts + e];
        earlier += before[p * experts + e];
    }
    start_experts(s, sums, start, sum, earlier);
#pragma unroll 1
    for (int i = from + e; i < end; i += THREADS) {
        const uint32_t place = i == from + e ? mine : places[i];
        if ((place & 0xffff) < (uint32_t)s.call.local)
            s.rows[start[place & 0xffff] + (int)(place >> 16)] = i;
    }
}
