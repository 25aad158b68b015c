/* SPDX-License-Identifier: MIT
 * Quantising to e4m3 with one scale a row, 128 columns or tensor, by the conversion instruction. The
 * codes are those of quant.cu: same scales, true division, nearest even. */
#ifndef CMOE_KERNELS_QUANT_E4M3_CUH
#define CMOE_KERNELS_QUANT_E4M3_CUH

#include "backends/cuda/kernels/common/columns.cuh"

enum { SPAN = 128, SPAN_THREADS = SPAN / EACH, ROW_THREADS = 128 };

struct row {
    const char *from;
    uint8_t *codes;
    float *scales;
};

DEV row row_at(const cmoe_gpu_quant &q, int64_t at)
{
    return {(const char *)q.in + at * q.in_stride, (uint8_t *)q.codes + at * q.out_stride,
            (float *)((char *)q.scales + at * q.scale_stride)};
}

static __device__ __noinline__ uint32_t code_slowly(float v, float scale)
{
    return encode(CMOE_E4M3, __fdiv_rn(v, scale), CMOE_ROUND_NEAREST_EVEN);
}

DEV void store_codes(const cmoe_gpu_quant &q, const row &r, int column, const float (&v)[EACH], float scale)
{
    uint32_t words[2] = {};
    if (divides_fast(scale)) {
        const float inverse = __frcp_rn(scale);
#pragma unroll
        for (int i = 0; i < EACH; i += 2)
            words[i / 4] |= e4m3_codes(divided(v[i], scale, inverse), divided(v[i + 1], scale, inverse)) << (i % 4 * 8);
    } else {
#pragma unroll
        for (int i = 0; i < EACH; i++)
            words[i / 4] |= code_slowly(v[i], scale) << (i % 4 * 8);
    }
    uint8_t *to = r.codes + column;
    if (column + EACH <= q.n && (uintptr_t)to % 8 == 0) {
        *(uint2 *)to = make_uint2(words[0], words[1]);
        return;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
        if (column + i < q.n)
            to[i] = (uint8_t)(words[i / 4] >> (i % 4 * 8));
}

/* The SPAN_THREADS threads of a span; all 32 lanes of a warp. counts: the row is there. */
DEV void quantise_span(const cmoe_gpu_quant &q, const row &r, int column, bool counts)
{
    float v[EACH] = {};
    if (counts)
        load_columns(q, r.from, column, v);
    uint32_t top = largest(v);
#pragma unroll
    for (int offset = SPAN_THREADS / 2; offset > 0; offset /= 2)
        top = max(top, __shfl_xor_sync(0xffffffff, top, offset));
    const float scale = scale_f32(CMOE_E4M3, bits_f32(top));
    if (!counts || column >= q.n)
        return;
    if (column % SPAN == 0)
        r.scales[column / SPAN] = scale;
    store_codes(q, r, column, v, scale);
}

/* Largest magnitude of a row, from those of its ROW_THREADS threads; all threads of the block. shared: a
 * word a warp. */
DEV uint32_t largest_of_row(uint32_t top, uint32_t *shared)
{
    const int warp = threadIdx.x / 32, first = warp & ~(ROW_THREADS / 32 - 1);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
        top = max(top, __shfl_xor_sync(0xffffffff, top, offset));
    if (threadIdx.x % 32 == 0)
        shared[warp] = top;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < ROW_THREADS / 32; w++)
        top = max(top, shared[first + w]);
    return top;
}

/* Whole pieces of a row of bf16: HELD of a thread's are loaded at a time, and the first kept until their scale is
 * known, so that most rows are read once. */
enum { STRIDE = ROW_THREADS * EACH };

/* first: of the thread's pieces; 0 where there are none. */
template <int HELD> DEV void load_pieces(const row &r, int first, int columns, uint4 (&piece)[HELD])
{
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const int column = first + i * STRIDE;
        piece[i] = column < columns ? *(const uint4 *)(r.from + (int64_t)column * 2) : make_uint4(0, 0, 0, 0);
    }
}

/* The bits of the largest magnitude, which compare like it. */
template <int HELD> DEV uint32_t largest_of_pieces(const uint4 (&piece)[HELD])
{
    uint32_t two = 0;
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const uint32_t words[4] = {piece[i].x, piece[i].y, piece[i].z, piece[i].w};
#pragma unroll
        for (int w = 0; w < 4; w++)
            two = __vmaxu2(two, words[w] & 0x7fff7fff);
    }
    return max(two & 0xffff0000, two << 16);
}

template <int HELD>
DEV void store_pieces(const cmoe_gpu_quant &q, const row &r, int first, int columns, const uint4 (&piece)[HELD],
                      float scale)
{
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        float v[EACH];
        widen(piece[i], v);
        if (first + i * STRIDE < columns)
            store_codes(q, r, first + i * STRIDE, v, scale);
    }
}

template <int HELD>
DEV void quantise_pieces(const cmoe_gpu_quant &q, const row &r, int first, int columns, uint32_t *shared)
{
    uint4 held[HELD], piece[HELD];
    float scale;
    load_pieces(r, first, columns, held);
    if (q.f.scaling == CMOE_SCALE_TENSOR) {
        scale = *q.fixed;
    } else {
        uint32_t top = largest_of_pieces(held);
        for (int next = first + HELD * STRIDE; next < columns; next += HELD * STRIDE) {
            load_pieces(r, next, columns, piece);
            top = max(top, largest_of_pieces(piece));
        }
        scale = scale_f32(CMOE_E4M3, bits_f32(largest_of_row(top, shared)));
        if (columns > 0 && first == 0)
            *r.scales = scale;
    }
    store_pieces(q, r, first, columns, held, scale);
    for (int next = first + HELD * STRIDE; next < columns; next += HELD * STRIDE) {
        load_pieces(r, next, columns, piece);
        store_pieces(q, r, next, columns, piece, scale);
    }
}

/* The ROW_THREADS threads of a row with one scale, its own or the tensor's; all threads of the block. */
template <int HELD> DEV void quantise_row(const cmoe_gpu_quant &q, const row &r, bool counts, uint32_t *shared)
{
    const int first = threadIdx.x % ROW_THREADS * EACH, columns = counts ? q.n : 0;
    if (q.in_dtype == CMOE_BF16 && q.n == q.n_used && q.n % EACH == 0 && q.in_stride % 16 == 0 &&
        (uintptr_t)q.in % 16 == 0) {
        quantise_pieces<HELD>(q, r, first, columns, shared);
        return;
    }
    float v[EACH], scale;
    if (q.f.scaling == CMOE_SCALE_TENSOR) {
        scale = *q.fixed;
    } else {
        uint32_t top = 0;
        for (int column = first; column < columns; column += ROW_THREADS * EACH) {
            load_columns(q, r.from, column, v);
            top = max(top, largest(v));
        }
        scale = scale_f32(CMOE_E4M3, bits_f32(largest_of_row(top, shared)));
        if (counts && first == 0)
            *r.scales = scale;
    }
    for (int column = first; column < columns; column += ROW_THREADS * EACH) {
        load_columns(q, r.from, column, v);
        store_codes(q, r, column, v, scale);
    }
}

#endif
