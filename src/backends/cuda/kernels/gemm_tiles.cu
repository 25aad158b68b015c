/* SPDX-License-Identifier: MIT
 * GEMM1 (with ACT) and GEMM2 for many rows an expert on tensor cores of any architecture from Ampere on:
 * 128 rows of weights are the M operand of mma.sync, 64 rows of x the N operand; each warp decodes its
 * own 32 rows of weights, so no code is decoded twice.
 *
 * Codes are exact as operands and scales are applied to f32 sums, at the end or for each group of
 * columns. Scales of e4m3 (NV) are multiplied into the operands, which holds them exactly: 2 bits of
 * mantissa times 4. 8-bit integers on both sides are added up as 32-bit integers. */
#include "backends/cuda/kernels/common/tiles.cuh"

enum { MI = 2, NI = BN / 8, HALF = NI / 2 }; /* mma tiles of a warp */

template <int TYPE> struct sum_of {
    using type = float;
};
template <> struct sum_of<CMOE_I8> {
    using type = int;
};

/* Sums of a group of at most 128 columns, as f32: exact, and without the slow conversion. */
DEV float group_sum(float v)
{
    return v;
}
DEV float group_sum(int v)
{
    return __int_as_float(0x4b400000 + v) - 0x1.8p23f;
}

template <int TYPE> DEV uint32_t scaled_pair(uint32_t v, uint32_t scale)
{
    return TYPE == CMOE_BF16 ? fma_bf16x2(v, scale, 0x80008000) : mul_f16x2(v, scale);
}

/* A lane's 8 columns of 32 of a row: pairs (0, 1) .. (6, 7), or bytes for 8-bit integers. flip makes
 * signed codes unsigned or, for bytes, unsigned ones signed. */
template <int TYPE, int D> DEV void operands_of(const uint8_t *at, uint32_t flip, uint32_t zero, uint32_t *out)
{
    if (type_of<D>::BITS == 16) {
        const uint4 v = *(const uint4 *)at;
        out[0] = v.x;
        out[1] = v.y;
        out[2] = v.z;
        out[3] = v.w;
    }
    if (type_of<D>::BITS == 8) {
        const uint2 v = *(const uint2 *)at;
        if (TYPE == CMOE_I8) {
            out[0] = v.x ^ flip;
            out[1] = v.y ^ flip;
            return;
        }
        operands8<D>(v.x, flip, zero, out);
        operands8<D>(v.y, flip, zero, out + 2);
        if (TYPE == CMOE_BF16)
#pragma unroll
            for (int i = 0; i < 4; i++)
                out[i] = bf16x2_of_f16x2(out[i]);
    }
    if (type_of<D>::BITS == 4 && TYPE == CMOE_I8)
        bytes4(*(const uint32_t *)at, flip, zero, out);
    if (type_of<D>::BITS == 4 && TYPE != CMOE_I8)
        pairs4<TYPE, D>(*(const uint32_t *)at, flip, zero, out);
}

/* A warp's sums: acc is scaled, part is what the running group of columns has added up to. */
template <int TYPE, int X, int W> struct tile_sum {
    static constexpr int WBITS = type_of<W>::BITS, XBITS = type_of<X>::BITS;
    using ring_of = tile_ring<X, W>;
    using sum = typename sum_of<TYPE>::type;
    float acc[MI][NI][4];
    sum part[MI][NI][4];

    MEMBER void clear()
    {
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
            for (int j = 0; j < NI; j++)
#pragma unroll
                for (int r = 0; r < 4; r++)
                    acc[i][j][r] = part[i][j][r] = 0;
    }

    /* The first of a lane's rows of weights; the others lie 8, 16 and 24 below. */
    MEMBER int first_row() const
    {
        return threadIdx.x / 32 * 32 + threadIdx.x % 32 / 4;
    }

    MEMBER void weights(const cmoe_gpu_tiles &s, const ring_of &ring, int slot, int step, uint32_t a[MI][2][4])
    {
        const int row = first_row(), t = threadIdx.x % 4;
        const bool is_signed = s.g.w.dtype == CMOE_I8 || s.g.w.dtype == CMOE_I4;
        const bool bytes = TYPE == CMOE_I8 && WBITS == 8;
        const uint32_t flip = is_signed == bytes ? 0 : (WBITS == 4 ? 0x88888888 : 0x80808080);
        const uint32_t usual = zero_operand<TYPE, WBITS>(WBITS == 4 ? 8 : 128);
        const stage_scales *scales = ring.scales(slot);
        const int group = s.w_groups == 2 ? step : 0;
        const uint8_t *codes = ring.w(slot) + row * 8 * WBITS + ((step * 4 * WBITS) ^ flip_of<WBITS>(row)) + t * WBITS;
        uint32_t zero[2 * MI];
#pragma unroll
        for (int i = 0; i < 2 * MI; i++)
            zero[i] = type_of<W>::HAS_ZERO && s.g.w.zero ? scales->zero[group][row + 8 * i] : usual;
#pragma unroll
        for (int i = 0; i < 2 * MI; i++) {
            uint32_t v[4];
            operands_of<TYPE, W>(codes + i * 64 * WBITS, flip, zero[i], v);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                a[i / 2][j][i % 2] = v[2 * j];
                a[i / 2][j][i % 2 + 2] = v[2 * j + 1];
            }
        }
        if (W == CMOE_E2M1 && s.w_scale == CMOE_E4M3)
#pragma unroll
            for (int i = 0; i < 2 * MI; i++) {
                const uint32_t scale = scales->w[2 * step + t / 2][row + 8 * i];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    uint32_t &v = a[i / 2][j / 2][i % 2 + j % 2 * 2];
                    v = scaled_pair<TYPE>(v, scale);
                }
            }
    }

    /* 8 rows of x, the j-th of the tile, times the warp's weights. */
    MEMBER void multiply(const cmoe_gpu_tiles &s, const ring_of &ring, int slot, int step, int j,
                         const uint32_t a[MI][2][4])
    {
        const int row = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const uint8_t *codes = ring.x(slot) + row * 8 * XBITS + ((step * 4 * XBITS) ^ flip_of<XBITS>(row)) + t * XBITS;
        uint32_t b[4];
        operands_of<TYPE, X>(codes + j * 64 * XBITS, 0, 0, b);
        if (XBITS == 4 && s.x_scale == CMOE_E4M3) {
            const uint32_t scale = ring.scales(slot)->x[2 * step + t / 2][8 * j + row];
#pragma unroll
            for (int i = 0; i < 4; i++)
                b[i] = scaled_pair<TYPE>(b[i], scale);
        }
#pragma unroll
        for (int i = 0; i < MI; i++) {
            if constexpr (TYPE == CMOE_I8) {
                /* columns 0..3 and 4..7 of a lane, of both rows */
                const uint32_t both[4] = {a[i][0][0], a[i][0][1], a[i][0][2], a[i][0][3]};
                mma_i8(part[i][j], both, b);
            } else {
                mma<TYPE>(part[i][j], a[i][0], b);
                mma<TYPE>(part[i][j], a[i][1], b + 2);
            }
        }
    }

    /* acc += part * scales around column 32 * step of the stage. */
    template <bool X_VARIES> MEMBER void promote(const cmoe_gpu_tiles &s, const ring_of &ring, int slot, int step)
    {
        const stage_scales *scales = ring.scales(slot);
        const bool w_varies = s.w_groups > 0 && s.w_scale != CMOE_E4M3;
        float w[2 * MI];
#pragma unroll
        for (int i = 0; i < 2 * MI; i++)
            w[i] = w_varies ? bits_f32(scales->w[s.w_groups == 2 ? step : 0][first_row() + 8 * i]) : 1.0f;
#pragma unroll
        for (int j = 0; j < NI; j++) {
            const uint2 code = *(const uint2 *)&scales->x[s.x_groups == 2 ? step : 0][8 * j + threadIdx.x % 4 * 2];
            const float x[2] = {bits_f32(code.x), bits_f32(code.y)};
#pragma unroll
            for (int i = 0; i < MI; i++)
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    const float v = group_sum(part[i][j][r]);
                    acc[i][j][r] += (X_VARIES ? v * x[r % 2] : v) * w[2 * i + r / 2];
                    part[i][j][r] = 0;
                }
        }
    }

    /* One stage: columns from k on. */
    MEMBER void add(const cmoe_gpu_tiles &s, const ring_of &ring, int slot, int k, int count)
    {
#pragma unroll 1
        for (int step = 0; step < BK / 32; step++) {
            uint32_t a[MI][2][4];
            weights(s, ring, slot, step, a);
#pragma unroll
            for (int j = 0; j < NI; j++) {
                if (j == HALF && 8 * j >= count)
                    break;
                multiply(s, ring, slot, step, j, a);
            }
            const int past = k + 32 * (step + 1);
            if (WBITS < 16 && s.span > 0 && ((past & (s.span - 1)) == 0 || (step == 1 && past >= s.g.k))) {
                if (s.x_groups > 0 && s.x_scale != CMOE_E4M3)
                    promote<true>(s, ring, slot, step);
                else
                    promote<false>(s, ring, slot, step);
            }
        }
    }

    /* Sums to shared memory, [row of x][output]. */
    MEMBER void put(float *to) const
    {
        const int row = first_row();
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
            for (int j = 0; j < NI; j++)
#pragma unroll
                for (int r = 0; r < 4; r++)
                    to[(8 * j + threadIdx.x % 4 * 2 + r % 2) * OUT_STRIDE + row + 16 * i + r / 2 * 8] =
                        acc[i][j][r] + (float)part[i][j][r];
    }
};

template <int TYPE, int X, int W> DEV void tiles(const cmoe_gpu_tiles &s)
{
    using ring_of = tile_ring<X, W>;
    constexpr int STAGES = ring_of::STAGES;
    extern __shared__ uint4 memory[];
    __shared__ places at;
    const ring_of ring = {(uint8_t *)memory};
    const tile t = find_tile(s.g.call, (int)blockIdx.y, BN, at.where);
    if (t.count == 0)
        return;
    find_places(s, t, at);
    __syncthreads();

    tile_loader<TYPE, X, W> load;
    load.start(s, t, at);
    tile_sum<TYPE, X, W> sum;
    sum.clear();
    int slot = 0;
#pragma unroll 1
    for (int k = (1 - STAGES) * BK; k < s.g.k; k += BK) {
        if (k >= 0) {
            asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
            __syncthreads();
        }
        load.advance(s, at, ring);
        if (k < 0)
            continue;
        sum.add(s, ring, slot, k, t.count);
        slot = slot == STAGES - 1 ? 0 : slot + 1;
    }
    __syncthreads();
    sum.put((float *)memory);
    __syncthreads();
    write_outputs<THREADS>(s, t, at, (const float *)memory);
}

/* Named by types of x and of w; i8 and i4 stand for unsigned codes too. */
#define ENTRY(name, type, x, w)                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                       \
        name(const __grid_constant__ cmoe_gpu_tiles s)                                             \
    {                                                                                              \
        tiles<type, x, w>(s);                                                                      \
    }

ENTRY(cmoe_tiles_bf16_bf16, CMOE_BF16, CMOE_BF16, CMOE_BF16)
ENTRY(cmoe_tiles_bf16_e4m3, CMOE_BF16, CMOE_BF16, CMOE_E4M3)
ENTRY(cmoe_tiles_bf16_i8, CMOE_BF16, CMOE_BF16, CMOE_I8)
ENTRY(cmoe_tiles_bf16_i4, CMOE_BF16, CMOE_BF16, CMOE_I4)
ENTRY(cmoe_tiles_bf16_e2m1, CMOE_BF16, CMOE_BF16, CMOE_E2M1)
ENTRY(cmoe_tiles_f16_f16, CMOE_F16, CMOE_F16, CMOE_F16)
ENTRY(cmoe_tiles_f16_i4, CMOE_F16, CMOE_F16, CMOE_I4)
ENTRY(cmoe_tiles_e4m3_e4m3, CMOE_F16, CMOE_E4M3, CMOE_E4M3)
ENTRY(cmoe_tiles_i8_i8, CMOE_I8, CMOE_I8, CMOE_I8)
ENTRY(cmoe_tiles_i8_i4, CMOE_I8, CMOE_I8, CMOE_I4)
ENTRY(cmoe_tiles_e4m3_i4, CMOE_F16, CMOE_E4M3, CMOE_I4)
ENTRY(cmoe_tiles_e4m3_e2m1, CMOE_F16, CMOE_E4M3, CMOE_E2M1)
ENTRY(cmoe_tiles_e2m1_e2m1, CMOE_F16, CMOE_E2M1, CMOE_E2M1)
