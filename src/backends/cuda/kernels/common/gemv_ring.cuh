/* SPDX-License-Identifier: MIT
 * Steps of weights into a ring of a warp's own, by asynchronous copies: each lane brings the codes that
 * it multiplies, and one lane each scale. Plain weights lie where parameters say; for others the table
 * of experts is read, and what is not aligned comes element by element. */
#ifndef CMOE_KERNELS_GEMV_RING_CUH
#define CMOE_KERNELS_GEMV_RING_CUH

#include "backends/cuda/kernels/common/gemv.cuh"

enum { CODES = CMOE_GEMV_CODES, SCALES = CMOE_GEMV_SCALES };

DEV uint32_t shared_address(const void *at)
{
    return (uint32_t)__cvta_generic_to_shared(at);
}

/* Weights leave L2 before what a layer uses again: code, parameters, ids, x. The constant is createpolicy's of
 * evict_first. */
DEV void copy_piece(uint32_t to, const uint8_t *from, bool counts, bool wide)
{
    constexpr uint64_t EVICT_FIRST = 0x12f0000000000000;
    const int bytes = counts ? 16 : 0; /* the rest becomes 0 */
    if (wide)
        asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::256B [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from),
                     "r"(bytes), "l"(EVICT_FIRST));
    else
        asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from),
                     "r"(bytes), "l"(EVICT_FIRST));
}

/* A word, or 0. */
DEV void copy_word(uint32_t to, const uint8_t *from, bool counts)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(counts ? 4 : 0));
}

template <int N> DEV void wait_copies()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* Until the oldest of so many steps is there: of 4, 5, 6 or 8. */
DEV void wait_step(int depth)
{
    if (depth < 5)
        wait_copies<3>();
    else if (depth < 6)
        wait_copies<4>();
    else if (depth < 8)
        wait_copies<5>();
    else
        wait_copies<7>();
}

DEV void commit_copies()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

DEV void store_shared(uint32_t at, uint32_t v)
{
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory");
}

DEV uint32_t load_shared(uint32_t at)
{
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
}

DEV void load_shared(uint32_t at, uint32_t *v)
{
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(at));
}

/* Nothing changes where `counts` is not set. */
DEV void load_shared_if(bool counts, uint32_t at, uint32_t *v)
{
    asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];}"
                 : "+r"(v[0]), "+r"(v[1]), "+r"(v[2]), "+r"(v[3])
                 : "r"(at), "r"((uint32_t)counts));
}

/* The pieces of one matrix row that do not lie at 16 bytes, or that end behind the last column. */
template <int W> DEV uint4 load_slowly(const uint8_t *row, int64_t col_stride, int k, int limit)
{
    constexpr int BITS = piece_of<W>::BITS;
    uint32_t word[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        word[j] = 0;
#pragma unroll 1
        for (int i = 0; i < 32 / BITS; i++) {
            const int64_t at = k + j * (32 / BITS) + i;
            uint32_t code = 0;
            if (at < limit)
                code = BITS == 16 ? *(const uint16_t *)(row + at * (col_stride ? col_stride : 2))
                       : BITS == 8 ? row[at * (col_stride ? col_stride : 1)]
                                   : row[at / 2] >> (4 * (at & 1)) & 15;
            word[j] |= code << (i * BITS);
        }
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

/* A step in the ring: the codes, and 8 words a row for its scales. */
template <int W> struct ring_of {
    static constexpr int BYTES = CODES + (piece_of<W>::BITS < 16 ? SCALES : 0);

    /* Of this lane. */
    static MEMBER uint32_t codes(const cmoe_gpu_gemv &s, const work &k, int slot)
    {
        return shared_address(k.memory) + ((int)(threadIdx.x / 32) * s.depth + slot) * BYTES + (int)(threadIdx.x % 32) * 16;
    }

    /* Of this lane's row. */
    static MEMBER uint32_t scales(uint32_t codes)
    {
        const int lane = threadIdx.x % 32;
        return codes + CODES - lane * 16 + lane / 4 * 32;
    }
};

/* The next step to bring, and where the lane's row of it lies; codes NULL: it counts as zero. */
struct supply {
    cursor at;
    const uint8_t *codes, *scales;
    int64_t col_stride;
};

template <bool FIRST, bool PLAIN>
DEV void find_row(const cmoe_gpu_gemv &s, const slots_of &known, supply &from)
{
    const int e = known.experts[from.at.token * s.g.call.slots + from.at.slot], n = lane_row<FIRST>(s, from.at.strip);
    from.codes = NULL;
    if (e < 0 || n >= s.used)
        return;
    if (PLAIN || s.strided) {
        const cmoe_gpu_rows &h = s.half[lane_half<FIRST>(s)];
        const int grid = (n * h.step + h.first) >> s.grid_shift;
        from.codes = h.data + e * h.expert_stride + n * h.row_stride;
        from.scales = h.scale + e * h.scale_stride + (int64_t)grid * (s.scales * s.scale_bytes);
        from.col_stride = 0;
        return;
    }
    const cmoe_gpu_half &h = s.g.experts[e].half[FIRST ? lane_half<FIRST>(s) : 2];
    const int grid = (n * h.step + h.first) >> s.grid_shift;
    from.codes = h.data + n * h.row_stride;
    from.scales = (const uint8_t *)h.scale + (int64_t)grid * (s.scales * s.scale_bytes);
    from.col_stride = h.col_stride;
}

/* The codes of one of a lane's two pieces, however they lie. */
template <int W> DEV void bring_piece(const cmoe_gpu_gemv &s, const supply &from, int piece, uint32_t to)
{
    constexpr int COLUMNS = piece_of<W>::COLUMNS;
    const bool counts = from.codes && piece < s.pieces;
    if (!counts || (s.vectors && (piece + 1) * COLUMNS <= s.g.k)) {
        copy_piece(to, from.codes + piece * 16, counts, s.wide);
        return;
    }
    const uint4 v = load_slowly<W>(from.codes, from.col_stride, piece * COLUMNS, s.g.k);
    store_shared(to, v.x);
    store_shared(to + 4, v.y);
    store_shared(to + 8, v.z);
    store_shared(to + 12, v.w);
}

/* The scales of a row's step: s.step_scales of them, each brought by one lane, as f32; 0 where none is. */
template <int W, bool PLAIN> DEV void bring_scales(const cmoe_gpu_gemv &s, const supply &from, uint32_t to)
{
    const int quad = threadIdx.x % 4, first = (from.at.step * piece_of<W>::STEP) >> s.shift;
#pragma unroll
    for (int j = 0; j < (piece_of<W>::BITS == 4 ? 2 : 1); j++) {
        const int i = quad + 4 * j, at = first + i;
        if (i >= s.step_scales)
            continue;
        const bool counts = from.codes && at < s.scales;
        if (PLAIN) {
            copy_word(to + i * 4, from.scales + at * 4, counts);
            continue;
        }
        const float scale = counts ? scale_value(s.scale_type, raw_scale(s.scale_type, from.scales, at)) : 0.0f;
        store_shared(to + i * 4, __float_as_uint(scale));
    }
}

/* The words in which the 8 (e2m1) or 4 scales of a plain step of MX lie: one more from the middle of one on. */
template <int W> DEV void bring_e8m0(const cmoe_gpu_gemv &s, const supply &from, uint32_t to)
{
    constexpr int COUNT = piece_of<W>::STEP / 32;
    const int quad = threadIdx.x % 4;
    const int over = (int)((uintptr_t)from.scales & 3), at = from.at.step * COUNT + quad * 4;
    const bool counts = from.codes && quad * 4 < COUNT + over && at < s.scales + over;
    copy_word(to + quad * 4, from.scales - over + at, counts);
}

/* The four scales of each lane's two neighbouring pieces of NV, as they are. */
template <bool PLAIN> DEV void bring_nv(const cmoe_gpu_gemv &s, const supply &from, uint32_t to)
{
    const int quad = threadIdx.x % 4, first = from.at.step * 16 + quad * 4;
    if (PLAIN) {
        copy_word(to + quad * 4, from.scales + first, from.codes && first < s.scales);
        return;
    }
    uint32_t word = 0;
#pragma unroll 1
    for (int i = 0; from.codes && i < 4 && first + i < s.scales; i++)
        word |= (uint32_t)from.scales[first + i] << (8 * i);
    store_shared(to + quad * 4, word);
}

template <int W, bool FIRST, bool PLAIN>
DEV void bring(const cmoe_gpu_gemv &s, const slots_of &known, supply &from, uint32_t to)
{
    const int quad = threadIdx.x % 4, piece = from.at.step * 8 + quad;
    if (PLAIN) {
        const uint8_t *at = from.codes + from.at.step * 128 + quad * 16;
        copy_piece(to, at, from.codes && piece < s.pieces, s.wide);
        copy_piece(to + CODES / 2, at + 64, from.codes && piece + 4 < s.pieces, s.wide);
    } else {
        bring_piece<W>(s, from, piece, to);
        bring_piece<W>(s, from, piece + 4, to + CODES / 2);
    }
    if (W == CMOE_GEMV_NV)
        bring_nv<PLAIN>(s, from, ring_of<W>::scales(to));
    else if (PLAIN && (W == CMOE_E2M1 || W == CMOE_GEMV_MX8))
        bring_e8m0<W>(s, from, ring_of<W>::scales(to));
    else if (piece_of<W>::BITS < 16)
        bring_scales<W, PLAIN>(s, from, ring_of<W>::scales(to));
    from.at.left--;
    if (++from.at.step == s.steps && from.at.left > 0) {
        next_row<FIRST>(s, from.at);
        find_row<FIRST, PLAIN>(s, known, from);
    }
}

#endif
