/* SPDX-License-Identifier: MIT
 * QUANT and REQUANT to e4m3 in kernels of their own, and QUANT beside SORT: one block sorts the ids
 * while the others quantise. */
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/quant_e4m3.cuh"
#include "backends/cuda/kernels/common/sort_block.cuh"

/* Which row the block quantises; false: none. */
DEV bool find_row(const cmoe_gpu_quant &q, int64_t *at)
{
    *at = blockIdx.x;
    if (!q.sorted)
        return *at < token_count(q.call);
    if (*at >= q.call.offsets[q.call.local])
        return false;
    *at = q.call.rows[*at];
    return true;
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    cmoe_quant_e4m3_spans(const __grid_constant__ cmoe_gpu_quant q)
{
    int64_t at;
    depend();
    if (find_row(q, &at)) /* the same for the block */
        quantise_span(q, row_at(q, at), ((int)blockIdx.y * ROW_THREADS + (int)threadIdx.x) * EACH, true);
}

template <int HELD> DEV void quant_row(const cmoe_gpu_quant &q, uint32_t *shared)
{
    int64_t at;
    depend();
    if (find_row(q, &at))
        quantise_row<HELD>(q, row_at(q, at), true, shared);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    cmoe_quant_e4m3_rows(const __grid_constant__ cmoe_gpu_quant q)
{
    __shared__ uint32_t shared[ROW_THREADS / 32];
    quant_row<8>(q, shared);
}

/* Rows of CMOE_QUANT_SHORT columns at most: more of them run at a time. */
extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    cmoe_quant_e4m3_short_rows(const __grid_constant__ cmoe_gpu_quant q)
{
    __shared__ uint32_t shared[ROW_THREADS / 32];
    quant_row<CMOE_QUANT_SHORT / STRIDE>(q, shared);
}

/* The first block sorts, the others quantise their shares of the tokens: as many spans, or rows, as they
 * have threads for. */
template <bool SPANS> DEV void quant_sort(const cmoe_gpu_quant &q, const cmoe_gpu_sort &s, int *memory)
{
    if (blockIdx.x == 0) {
        const sort_memory m(memory, s.call.local, s.call.tokens * s.call.slots);
        m.clear();
        depend();
        sort_in_block(s, m);
        return;
    }
    const int thread = ((int)blockIdx.x - 1) * (int)blockDim.x + (int)threadIdx.x;
    depend();
    const int tokens = token_count(q.call);
    if (SPANS) {
        const int spans = (q.n + SPAN - 1) / SPAN, span = thread / SPAN_THREADS, t = span / spans;
        const int column = (span - t * spans) * SPAN + thread % SPAN_THREADS * EACH;
        quantise_span(q, row_at(q, t), column, t < tokens);
    } else {
        const int t = thread / ROW_THREADS;
        quantise_row<8>(q, row_at(q, t), t < tokens, (uint32_t *)memory);
    }
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    cmoe_quant_sort_spans(const __grid_constant__ cmoe_gpu_quant q, const __grid_constant__ cmoe_gpu_sort s)
{
    extern __shared__ int4 memory[];
    quant_sort<true>(q, s, (int *)memory);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    cmoe_quant_sort_rows(const __grid_constant__ cmoe_gpu_quant q, const __grid_constant__ cmoe_gpu_sort s)
{
    extern __shared__ int4 memory[];
    quant_sort<false>(q, s, (int *)memory);
}
