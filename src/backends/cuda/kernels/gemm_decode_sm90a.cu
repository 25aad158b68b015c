/* SPDX-License-Identifier: MIT
 * GEMM1 (with ACT) and GEMM2 of coded weights on Hopper: 128 rows of weights are the M operand of wgmma and
 * come from registers, 64 rows of x the N operand from shared memory. Each lane decodes its part of two rows,
 * times their scales, while the products of the half stage before it run.
 *
 * Values of 8- and 4-bit floats times scales that are powers of two or e4m3 are exact in bf16. Other scales
 * go into weights only where rows are bf16, so that a decoded weight may be rounded to it. 8-bit integer
 * rows stay integers. */
#include "backends/cuda/kernels/common/decode_ring.cuh"
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/operand.cuh"
#include "backends/cuda/kernels/common/wgmma.cuh"
#include "backends/cuda/params_decoded.h"

enum { SUMS = BN / 2, STEPS = 4 }; /* sums of a thread; instructions of half a stage */

/* d += weights of registers * 16 columns of x */
DEV void wgmma_bf16(float (&d)[SUMS], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" D64 "}, {%32,%33,%34,%35}, %36, p, 1, 1, 0;\n}"
                 : R64
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

/* The same of 32 columns of bytes. */
DEV void wgmma_i8(int (&d)[SUMS], const uint32_t (&a)[4], uint64_t b)
{
#define I4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {" D64 "}, {%32,%33,%34,%35}, %36, p;\n}"
                 : I4(0), I4(4), I4(8), I4(12), I4(16), I4(20), I4(24), I4(28)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
#undef I4
}

template <int COUNT> DEV void wgmma_done(int (&d)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        asm volatile("" : "+r"(d[i])::"memory");
}

DEV uint4 load_piece(const uint8_t *row, int at)
{
    return *(const uint4 *)(row + at * 16);
}

/* What bits of codes are turned over so that integers become unsigned, or for bytes signed. */
template <int TYPE, int W> DEV uint32_t flip_of(const cmoe_gpu_tiles &s)
{
    const bool is_signed = s.g.w.dtype == CMOE_I8 || s.g.w.dtype == CMOE_I4;
    const bool bytes = TYPE == CMOE_I8 && type_of<W>::BITS == 8;
    return is_signed == bytes ? 0 : (type_of<W>::BITS == 4 ? 0x88888888 : 0x80808080);
}

DEV uint32_t both(uint32_t bf16)
{
    return bf16 << 16 | bf16;
}

/* A scale as pairs of bf16: with `low` its first 16 bits, else exact. */
struct scale_pair {
    uint32_t high, low;
};

DEV scale_pair split_scale(float scale)
{
    const uint32_t high = __float_as_uint(scale) & 0xffff0000;
    const float rest = scale - bits_f32(high);
    return {high >> 16 | high, both(__bfloat16_as_ushort(__float2bfloat16_rn(rest)))};
}

/* Of e8m0, less two powers of two so that six times the largest is finite, or e4m3. */
DEV uint32_t exact_scale(bool nv, uint32_t code)
{
    if (nv) {
        uint32_t pair[2];
        operands8<CMOE_E4M3>(code * 0x0101, 0, 0, pair);
        return bf16x2_of_f16x2(pair[0]);
    }
    return both(code == 255 ? 0x7fc0 : code > 2 ? (code - 2) << 7 : 0x10 << code);
}

DEV uint32_t times(uint32_t v, uint32_t scale)
{
    return fma_bf16x2(v, scale, 0x80008000);
}

/* ---- sums of rows of bf16 ---- */

template <int W> struct float_sum {
    static constexpr int BITS = type_of<W>::BITS;
    using ring_of = decode_ring<16, BITS>;
    float acc[SUMS];
    lane_scales scales;
    uint32_t flip;
    bool nv;

    MEMBER void start(const cmoe_gpu_tiles &s, const tile &t)
    {
#pragma unroll
        for (int i = 0; i < SUMS; i++)
            acc[i] = 0;
        nv = s.w_scale == CMOE_E4M3;
        flip = flip_of<CMOE_BF16, W>(s);
        scales.start(s, t);
        scales.template load<W == CMOE_E2M1>(s, 0);
    }

    /* A lane's words of half a stage of row i: 16 columns as operands of its 4 steps. */
    MEMBER void decode_words(const uint32_t (&word)[BITS / 2], int i, const uint32_t (&scale)[2], uint32_t zero,
                             uint32_t (&a)[STEPS][4])
    {
#pragma unroll
        for (int j = 0; j < BITS / 2; j++) {
            uint32_t v[4];
            if constexpr (W == CMOE_E2M1) {
                pairs4<CMOE_BF16, W>(word[j], 0, 0, v);
#pragma unroll
                for (int n = 0; n < 4; n++)
                    v[n] = times(v[n], scale[0]);
            } else if constexpr (W == CMOE_I4) {
                pairs4<CMOE_BF16, W>(word[j], flip, zero, v);
#pragma unroll
                for (int n = 0; n < 4; n++)
                    v[n] = fma_bf16x2(v[n], scale[0], times(v[n], scale[1]));
            } else {
                operands8<W>(word[j], flip, zero, v);
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    const float2 pair = __half22float2(*(const __half2 *)&v[n]);
                    const float by = bits_f32(scale[0]);
                    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v[n]) : "f"(pair.y * by), "f"(pair.x * by));
                }
            }
#pragma unroll
            for (int n = 0; n < 32 / BITS / 2; n++) {
                const int at = j * (32 / BITS / 2) + n;
                a[at / 2][i + at % 2 * 2] = v[n];
            }
        }
    }

    /* The scale of half a stage of row i: a pair of bf16, or two, or an f32. */
    MEMBER void scale_of(const cmoe_gpu_tiles &s, const uint32_t (&code)[2][2], int i, int half, uint32_t (&scale)[2])
    {
        if constexpr (W == CMOE_E2M1) {
            scale[0] = exact_scale(nv, nv && half ? code[i][1] : code[i][0]);
            return;
        }
        const float v = s.w_groups ? scale_value(s.w_scale, code[i][0]) : 1.0f;
        if constexpr (W == CMOE_I4) {
            const scale_pair pair = split_scale(v);
            scale[0] = pair.high;
            scale[1] = pair.low;
            return;
        }
        scale[0] = __float_as_uint(v);
    }

    MEMBER void add(const cmoe_gpu_tiles &s, const ring_of &ring, int slot, int k0)
    {
        const int row = (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const uint8_t *codes = ring.w(slot) + row * ring_of::W_ROW;
        uint32_t code[2][2], zero[2] = {8, 8};
#pragma unroll
        for (int i = 0; i < 2; i++) {
            code[i][0] = scales.code[i][0];
            code[i][1] = W == CMOE_E2M1 ? scales.code[i][1] : 0;
            if (type_of<W>::HAS_ZERO)
                zero[i] = zero_operand<BITS == 4 ? (int)CMOE_BF16 : (int)CMOE_F16, BITS>(
                    scales.row[0].zero ? scales.zero[i] : (BITS == 4 ? 8 : 128));
        }
        scales.template load<W == CMOE_E2M1>(s, k0 + BK);
        uint4 whole[2];
        if (BITS == 4)
#pragma unroll
            for (int i = 0; i < 2; i++)
                whole[i] = load_piece(codes + 8 * i * ring_of::W_ROW, t ^ piece_flip<4>(row + 8 * i));
        const uint64_t x = wgmma_operand(uniform(wgmma_place(shared_address(ring.x(slot)))));
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t a[STEPS][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t scale[2];
                scale_of(s, code, i, half, scale);
                if constexpr (BITS == 4) {
                    const uint32_t word[2] = {half ? whole[i].z : whole[i].x, half ? whole[i].w : whole[i].y};
                    decode_words(word, i, scale, zero[i], a);
                } else {
                    const uint4 v = load_piece(codes + 8 * i * ring_of::W_ROW, (2 * t + half) ^ piece_flip<8>(row + 8 * i));
                    const uint32_t word[4] = {v.x, v.y, v.z, v.w};
                    decode_words(word, i, scale, zero[i], a);
                }
            }
            wgmma_begin();
#pragma unroll
            for (int step = 0; step < STEPS; step++)
                wgmma_bf16(acc, a[step], x + (half * BN * 128 + step * 32) / 16);
            wgmma_commit();
            wgmma_wait<1>(); /* the half before this one */
        }
    }

    MEMBER void finish()
    {
        wgmma_wait<0>();
        wgmma_done(acc);
    }

    MEMBER float sum(int i) const
    {
        return W == CMOE_E2M1 && !nv ? 4 * acc[i] : acc[i];
    }
};

/* ---- sums of rows of 8-bit integers ---- */

/* By bytes: one scale a row of weights, so the sums are integers to the end. */
struct byte_sum {
    using ring_of = decode_ring<8, 8>;
    int acc[SUMS];
    uint32_t flip;

    MEMBER void start(const cmoe_gpu_tiles &s, const tile &)
    {
#pragma unroll
        for (int i = 0; i < SUMS; i++)
            acc[i] = 0;
        flip = flip_of<CMOE_I8, CMOE_I8>(s);
    }

    MEMBER void add(const cmoe_gpu_tiles &, const ring_of &ring, int slot, int)
    {
        const int row = (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const uint8_t *codes = ring.w(slot) + row * ring_of::W_ROW + t % 2 * 8;
        const uint64_t x = wgmma_operand(uniform(wgmma_place(shared_address(ring.x(slot)))));
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t a[2][4];
#pragma unroll
            for (int step = 0; step < 2; step++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int piece = ((2 * half + step) * 2 + t / 2) ^ piece_flip<8>(row + 8 * i);
                    const uint2 v = *(const uint2 *)(codes + 8 * i * ring_of::W_ROW + piece * 16);
                    a[step][i] = v.x ^ flip;
                    a[step][i + 2] = v.y ^ flip;
                }
            wgmma_begin();
#pragma unroll
            for (int step = 0; step < 2; step++)
                wgmma_i8(acc, a[step], x + (half * 64 + step * 32) / 16);
            wgmma_commit();
            wgmma_wait<1>();
        }
    }

    MEMBER void finish()
    {
        wgmma_wait<0>();
        wgmma_done(acc);
    }

    MEMBER float sum(int i) const
    {
        return (float)acc[i];
    }
};

/* By 4-bit integers in groups of at least 32 columns: sums of 32 start at 3 * 2^22 as a float has it, so that
 * they are one without a conversion. */
struct group_sum {
    using ring_of = decode_ring<8, 4>;
    enum { MAGIC = 0x4b400000 };
    float acc[SUMS];
    lane_scales scales;
    uint32_t flip;

    MEMBER void start(const cmoe_gpu_tiles &s, const tile &t)
    {
#pragma unroll
        for (int i = 0; i < SUMS; i++)
            acc[i] = 0;
        flip = flip_of<CMOE_I8, CMOE_I4>(s);
        scales.start(s, t);
        scales.load<false>(s, 0);
    }

    MEMBER void add_part(const int (&part)[SUMS], const float (&scale)[2])
    {
#pragma unroll
        for (int i = 0; i < SUMS; i++)
            acc[i] = fmaf(__int_as_float(part[i]) - 0x1.8p23f, scale[i / 2 % 2], acc[i]);
    }

    MEMBER void add(const cmoe_gpu_tiles &s, const ring_of &ring, int slot, int k0)
    {
        const int row = (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const uint8_t *codes = ring.w(slot) + row * ring_of::W_ROW + t * 4;
        const uint64_t x = wgmma_operand(uniform(wgmma_place(shared_address(ring.x(slot)))));
        float mine[2];
        uint32_t zeros[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            mine[i] = scale_value(s.w_scale, scales.code[i][0]);
            zeros[i] = zero_operand<CMOE_I8, 4>(scales.row[0].zero ? scales.zero[i] : 8);
        }
        scales.load<false>(s, k0 + BK);
#pragma unroll 1
        for (int step = 0; step < 4; step++) {
            const int from = (threadIdx.x % 32 & ~3) | step;
            float scale[2];
            uint32_t a[4];
            int part[SUMS];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int piece = step ^ piece_flip<4>(row + 8 * i);
                uint32_t v[2];
                scale[i] = __shfl_sync(0xffffffff, mine[i], from);
                bytes4(*(const uint32_t *)(codes + 8 * i * ring_of::W_ROW + piece * 16), flip,
                       __shfl_sync(0xffffffff, zeros[i], from), v);
                a[i] = v[0];
                a[i + 2] = v[1];
            }
#pragma unroll
            for (int i = 0; i < SUMS; i++)
                part[i] = MAGIC;
            wgmma_begin();
            wgmma_i8(part, a, x + step * 32 / 16);
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_done(part);
            add_part(part, scale);
        }
    }

    MEMBER void finish()
    {
    }

    MEMBER float sum(int i) const
    {
        return acc[i];
    }
};

/* ---- a block ---- */

template <class SUM> DEV void decode_tile(const cmoe_gpu_decoded &d)
{
    const cmoe_gpu_tiles &s = d.t;
    using ring_of = typename SUM::ring_of;
    constexpr int STAGES = ring_of::STAGES, AHEAD = STAGES - 2;
    extern __shared__ uint4 memory[];
    __shared__ places at;
    const ring_of ring = {(uint8_t *)(((uintptr_t)memory + 1023) & ~(uintptr_t)1023)};
    depend();
    const tile t = find_tile(s.g.call, (int)blockIdx.y, BN, at.where);
    if (t.count == 0)
        return;
    find_places(s, t, at);
    __syncthreads();
    if (threadIdx.x < BN)
        at.x[threadIdx.x] = d.arranged + a_row(s.g, at.rows[threadIdx.x]) * d.arranged_stride;
    __syncthreads();
    const int64_t col_stride = s.g.experts[t.expert].half[s.g.half].col_stride;
    SUM sum;
    sum.start(s, t);
    const auto fetch = [&](int k, int slot) {
        if (k < s.g.k) {
            ring.copy_weights(s, at, col_stride, slot, k);
            ring.copy_x(at, t.count, slot, k);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        fetch(i * BK, i);
    int slot = 0, k = 0;
#pragma unroll 1
    do {
        asm volatile("cp.async.wait_group %0;" ::"n"(AHEAD - 1) : "memory");
        fence_proxy();
        __syncthreads(); /* the stage has come, and the one before the last is multiplied */
        fetch(k + AHEAD * BK, slot + AHEAD < STAGES ? slot + AHEAD : slot + AHEAD - STAGES);
        sum.add(s, ring, slot, k);
        slot = slot == STAGES - 1 ? 0 : slot + 1;
        k += BK;
    } while (k < s.g.k);
    sum.finish();
    __syncthreads();
    float *sums = (float *)ring.base;
    const int row = (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < SUMS; i++)
        sums[(i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2) * OUT_STRIDE + row + i / 2 % 2 * 8] = sum.sum(i);
    __syncthreads();
    if (d.short_z)
        write_outputs<THREADS, CMOE_BF16>(s, t, at, sums);
    else
        write_outputs<THREADS>(s, t, at, sums);
}

#define ENTRY(name, SUM)                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                       \
        name(const __grid_constant__ cmoe_gpu_decoded d)                                           \
    {                                                                                              \
        decode_tile<SUM>(d);                                                                       \
    }

ENTRY(cmoe_decode_bf16_e4m3, float_sum<CMOE_E4M3>)
ENTRY(cmoe_decode_bf16_i8, float_sum<CMOE_I8>)
ENTRY(cmoe_decode_bf16_i4, float_sum<CMOE_I4>)
ENTRY(cmoe_decode_bf16_e2m1, float_sum<CMOE_E2M1>)
ENTRY(cmoe_decode_i8_i8, byte_sum)
ENTRY(cmoe_decode_i8_i4, group_sum)
