/* SPDX-License-Identifier: MIT
 * How the wgmma GEMMs of coded weights are fed: codes of weights as they are and arranged rows of x, by
 * cp.async into a ring of stages of 128 columns. x lies as wgmma wants it, in rows of 128 bytes whose 16-byte
 * pieces are swizzled; pieces of weights are swizzled so that lanes meet in no bank. */
#ifndef CMOE_KERNELS_DECODE_RING_CUH
#define CMOE_KERNELS_DECODE_RING_CUH

#include "backends/cuda/kernels/common/copy.cuh"
#include "backends/cuda/kernels/common/outputs.cuh"

enum { THREADS = 256, BK = 128 };

/* Piece p of row r of weights lies at p ^ piece_flip(r). */
template <int BITS> DEV int piece_flip(int r)
{
    return BITS == 4 ? r >> 1 & 3 : (r & 3) << 1 | (r & 1);
}

/* XBITS: of the operands, 16 or 8. */
template <int XBITS, int WBITS> struct decode_ring {
    static constexpr int W_ROW = BK * WBITS / 8, X_ROW = BK * XBITS / 8;
    static constexpr int W_BYTES = BM * W_ROW, X_BYTES = BN * X_ROW, BYTES = W_BYTES + X_BYTES;
    static constexpr int STAGES = BYTES > 24576 ? 3 : 4;
    uint8_t *base; /* at a multiple of 1024 */

    MEMBER uint8_t *x(int slot) const
    {
        return base + slot * X_BYTES;
    }
    MEMBER uint8_t *w(int slot) const
    {
        return base + STAGES * X_BYTES + slot * W_BYTES;
    }

    /* Thread i copies pieces i, i + 256, ... of the stage's weights; zeros from the last column on. */
    MEMBER void copy_weights(const cmoe_gpu_tiles &s, const places &at, int64_t col_stride, int slot, int k0) const
    {
        constexpr int PIECES = W_ROW / 16, CODES = 128 / WBITS, STEP = THREADS / PIECES, N = BM / STEP;
        const int r = threadIdx.x / PIECES, p = threadIdx.x % PIECES, k = k0 + p * CODES;
        uint8_t *const to = w(slot) + r * W_ROW + (p ^ piece_flip<WBITS>(r)) * 16;
        if (s.w_vectors && k0 + BK <= s.g.k) {
            const uint8_t *from[N];
#pragma unroll
            for (int j = 0; j < N; j++)
                from[j] = at.w[r + j * STEP];
#pragma unroll
            for (int j = 0; j < N; j++)
                copy_async(to + j * STEP * W_ROW, from[j] + (int64_t)k * WBITS / 8);
            return;
        }
        const bool whole = s.w_vectors && k + CODES <= s.g.k;
#pragma unroll 1
        for (int j = 0; j < N; j++) {
            const uint8_t *from = at.w[r + j * STEP];
            if (whole || k >= s.g.k)
                copy_or_clear(to + j * STEP * W_ROW, whole ? from + (int64_t)k * WBITS / 8 : from, whole);
            else
                copy_slowly<WBITS>(to + j * STEP * W_ROW, from, col_stride, k, s.g.k);
        }
    }

    MEMBER void copy_x(const places &at, int count, int slot, int k0) const
    {
        constexpr int PIECES = X_ROW / 16, STEP = THREADS / PIECES, N = BN / STEP;
        const int r = threadIdx.x / PIECES, p = threadIdx.x % PIECES;
        uint8_t *const to = x(slot) + p / 8 * (BN * 128) + r * 128 + ((p ^ r) & 7) * 16;
        const uint8_t *from[N];
#pragma unroll
        for (int j = 0; j < N; j++)
            from[j] = at.x[r + j * STEP];
#pragma unroll
        for (int j = 0; j < N; j++)
            copy_or_clear(to + j * STEP * 128, from[j] + k0 * XBITS / 8 + p * 16, r + j * STEP < count);
    }
};

/* Scales and zero points of a lane's two rows of weights: of columns 32 t .. + 31 of a stage. */
struct lane_scales {
    scale_row row[2];
    uint32_t code[2][2], zero[2]; /* of the next stage; two of 16 columns each for NV */

    MEMBER void start(const cmoe_gpu_tiles &s, const tile &t)
    {
        const cmoe_gpu_half *half = s.g.experts[t.expert].half + s.g.half;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const output o = output_of(s, (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4 + 8 * i);
            const bool in = inside(s, o);
            row[i] = scales_of(s.g, half[in ? o.half : 0], in ? o.n : 0, s.w_shift);
        }
    }

    /* NV: whether a lane has two scales. */
    template <bool NV> MEMBER void load(const cmoe_gpu_tiles &s, int k0)
    {
        const int first = (k0 + (int)threadIdx.x % 4 * 32) >> s.w_shift, past = ((s.g.k - 1) >> s.w_shift) + 1;
        if (s.w_groups > 0)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                code[i][0] = first < past ? raw_scale(s.w_scale, row[i].at, first) : 0;
                if (NV)
                    code[i][1] = first + 1 < past ? raw_scale(s.w_scale, row[i].at, first + 1) : 0;
            }
        if (row[0].zero)
#pragma unroll
            for (int i = 0; i < 2; i++)
                zero[i] = first < past ? row[i].zero[first] : 0;
    }
};

#endif
