/* SPDX-License-Identifier: MIT
 * How the GEMM of 128 x 64 tiles is fed: codes of weights and of x as they are, by cp.async into a
 * ring of stages of 64 columns, and beside them the scales that change along k. Codes become operands
 * only in registers, so a tile of 4-bit weights takes a quarter of what one of bf16 does. */
#ifndef CMOE_KERNELS_TILES_CUH
#define CMOE_KERNELS_TILES_CUH

#include "backends/cuda/kernels/common/copy.cuh"
#include "backends/cuda/kernels/common/operand.cuh"
#include "backends/cuda/kernels/common/outputs.cuh"

enum {
    THREADS = 128,
    BK = 64,    /* columns of a stage */
    GROUPS = 4, /* scales of a row in a stage, at most */
};

/* Scales of a stage: f32 for sums, or operands of products where a scale is an e4m3 (NV). */
struct stage_scales {
    uint32_t w[GROUPS][BM], x[GROUPS][BN], zero[2][BM];
};

/* Offset of row r's 16-byte piece c in a stage: 8 lanes that read 8 codes each, of 2, 4 or 8 rows, meet
 * in no bank. */
template <int BITS> DEV int flip_of(int r)
{
    return (r >> (BITS == 16 ? 0 : (BITS == 8 ? 1 : 2)) & 1) * 4 * BITS;
}

template <int X, int W> struct tile_ring {
    static constexpr int XBITS = type_of<X>::BITS, WBITS = type_of<W>::BITS;
    static constexpr int STAGES = WBITS == 16 ? 3 : 4;
    static constexpr int X_BYTES = BN * BK * XBITS / 8, W_BYTES = BM * BK * WBITS / 8;
    static constexpr int CODES = STAGES * (X_BYTES + W_BYTES);
    uint8_t *base;

    MEMBER uint8_t *w(int slot) const
    {
        return base + slot * W_BYTES;
    }
    MEMBER uint8_t *x(int slot) const
    {
        return base + STAGES * W_BYTES + slot * X_BYTES;
    }
    MEMBER stage_scales *scales(int slot) const
    {
        return (stage_scales *)(base + CODES) + slot;
    }
};

/* The codes of the stage's scales of a row, from the first-th on, of those before `past`. */
template <typename T> DEV void load_codes(const void *at, int first, int past, int groups, uint32_t *code)
{
#pragma unroll
    for (int i = 0; i < GROUPS; i++)
        code[i] = i < groups && first + i < past ? ((const T *)at)[first + i] : 0;
}

DEV void load_codes(int type, const void *at, int first, int past, int groups, uint32_t *code)
{
    if (type == CMOE_F32)
        load_codes<uint32_t>(at, first, past, groups, code);
    else if (type == CMOE_BF16 || type == CMOE_F16)
        load_codes<uint16_t>(at, first, past, groups, code);
    else
        load_codes<uint8_t>(at, first, past, groups, code);
}

/* A scale of dtype T as it is used: an e4m3 (of NV) as a pair of operands, anything else as f32. */
template <int TYPE, int T> DEV uint32_t usable_scale(uint32_t code)
{
    if (T == CMOE_E8M0)
        return code == 255 ? 0x7fc00000 : (code ? code << 23 : 0x00400000);
    if (T == CMOE_F16)
        return __float_as_uint(__half2float(__ushort_as_half((unsigned short)code)));
    if (T == CMOE_BF16)
        return code << 16;
    if (T == CMOE_E4M3) {
        uint32_t pair[2];
        operands8<CMOE_E4M3>(code * 0x0101, 0, 0, pair);
        return TYPE == CMOE_BF16 ? bf16x2_of_f16x2(pair[0]) : pair[0];
    }
    return code;
}

template <int TYPE, int T, int STRIDE> DEV void put_scales(const uint32_t *code, int groups, uint32_t *to)
{
#pragma unroll
    for (int i = 0; i < GROUPS; i++)
        if (i < groups)
            to[i * STRIDE] = usable_scale<TYPE, T>(code[i]);
}

template <int TYPE, int STRIDE> DEV void put_scales(int type, const uint32_t *code, int groups, uint32_t *to)
{
    if (type == CMOE_F32)
        put_scales<TYPE, CMOE_F32, STRIDE>(code, groups, to);
    else if (type == CMOE_E8M0)
        put_scales<TYPE, CMOE_E8M0, STRIDE>(code, groups, to);
    else if (type == CMOE_E4M3)
        put_scales<TYPE, CMOE_E4M3, STRIDE>(code, groups, to);
    else if (type == CMOE_BF16)
        put_scales<TYPE, CMOE_BF16, STRIDE>(code, groups, to);
    else
        put_scales<TYPE, CMOE_F16, STRIDE>(code, groups, to);
}

/* Copies a stage of one operand: thread i takes pieces i, i + 128, ...; rows from `count` on are zeros. */
template <int BITS, int ROWS>
DEV void copy_stage(uint8_t *to, const uint8_t *const *rows, int count, int64_t col_stride, int k0, int limit,
                    bool vectors)
{
    constexpr int PIECES = BITS / 2, CODES = 128 / BITS, N = ROWS * PIECES / THREADS, STEP = THREADS / PIECES;
    const int r = threadIdx.x / PIECES, k = k0 + threadIdx.x % PIECES * CODES;
    uint8_t *const out = to + r * 8 * BITS + ((threadIdx.x % PIECES * 16) ^ flip_of<BITS>(r));
    if (vectors && k0 + BK <= limit) {
        const uint8_t *from[N];
#pragma unroll
        for (int j = 0; j < N; j++)
            from[j] = rows[r + j * STEP];
#pragma unroll
        for (int j = 0; j < N; j++)
            copy_or_clear(out + j * STEP * 8 * BITS, from[j] + (int64_t)k * BITS / 8,
                          ROWS == BM || r + j * STEP < count);
        return;
    }
#pragma unroll 1
    for (int j = 0; j < N; j++)
        if (r + j * STEP < count)
            copy_slowly<BITS>(out + j * STEP * 8 * BITS, rows[r + j * STEP], col_stride, k, limit);
}

/* Keeps the ring full. Scales are loaded with a stage's codes and put in place one stage later. */
template <int TYPE, int X, int W> struct tile_loader {
    using ring_of = tile_ring<X, W>;
    static constexpr bool SCALES = type_of<W>::BITS < 16;
    int k, slot, count;
    scale_row w;
    const uint8_t *x; /* scales of the thread's row */
    uint32_t w_pending[GROUPS], x_pending[GROUPS], zero_pending[2];
    int64_t col_stride;

    MEMBER void start(const cmoe_gpu_tiles &s, const tile &t, const places &at)
    {
        const cmoe_gpu_half *half = s.g.experts[t.expert].half + s.g.half;
        const output o = output_of(s, threadIdx.x);
        k = slot = 0;
        count = t.count;
        col_stride = half[0].col_stride;
        x = NULL;
        if (!SCALES)
            return;
        const bool in = inside(s, o);
        w = scales_of(s.g, half[in ? o.half : 0], in ? o.n : 0, s.w_shift);
        if (s.x_groups > 0 && (int)threadIdx.x < t.count)
            x = s.g.a_scale + a_row(s.g, at.rows[threadIdx.x]) * s.g.a_scale_stride;
    }

    MEMBER void load_scales(const cmoe_gpu_tiles &s)
    {
        const int first = k >> s.w_shift, past = ((s.g.k - 1) >> s.w_shift) + 1;
        if (s.w_groups > 0)
            load_codes(s.w_scale, w.at, first, past, s.w_groups, w_pending);
        if (w.zero)
#pragma unroll
            for (int i = 0; i < 2; i++)
                zero_pending[i] = first + i < past ? w.zero[first + i] : 0;
        if (x)
            load_codes(s.x_scale, x, k >> s.x_shift, ((s.g.k - 1) >> s.x_shift) + 1, s.x_groups, x_pending);
    }

    MEMBER void settle(const cmoe_gpu_tiles &s, stage_scales *to)
    {
        if (s.w_groups > 0)
            put_scales<TYPE, BM>(s.w_scale, w_pending, s.w_groups, &to->w[0][threadIdx.x]);
        if (w.zero)
#pragma unroll
            for (int i = 0; i < 2; i++)
                to->zero[i][threadIdx.x] = zero_operand<TYPE, type_of<W>::BITS>(zero_pending[i]);
        if (x)
            put_scales<TYPE, BN>(s.x_scale, x_pending, s.x_groups, &to->x[0][threadIdx.x]);
    }

    /* The next stage, if there is one, into the next slot. */
    MEMBER void advance(const cmoe_gpu_tiles &s, const places &at, const ring_of &ring)
    {
        constexpr int STAGES = ring_of::STAGES;
        if (SCALES && k > 0 && k < s.g.k + BK)
            settle(s, ring.scales(slot == 0 ? STAGES - 1 : slot - 1));
        if (k < s.g.k) {
            copy_stage<ring_of::WBITS, BM>(ring.w(slot), at.w, BM, col_stride, k, s.g.k, s.w_vectors);
            copy_stage<ring_of::XBITS, BN>(ring.x(slot), at.x, count, 0, k, s.g.k, s.x_vectors);
            if (SCALES)
                load_scales(s);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        k += BK;
        slot = slot == STAGES - 1 ? 0 : slot + 1;
    }
};

#endif
