/* SPDX-License-Identifier: MIT
 * From the sums of rows_sum.cuh to memory: what epilogue.cuh makes of a sum, with a thread's columns in place of its
 * rows; 16-bit results and codes by way of shared memory that belongs to the warp. */
#ifndef CMOE_KERNELS_ROWS_STORE_CUH
#define CMOE_KERNELS_ROWS_STORE_CUH

#include "backends/cuda/kernels/common/epilogue.cuh"
#include "backends/cuda/kernels/common/rows_sum.cuh"

/* The thread's rows of the tile. */
template <bool SCALED> DEV row_pair rows_of(const tile_facts &facts, const place &at)
{
    const int n = at.strip * STRIP + at.warp * 16 + at.lane / 4;
    row_pair f;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        f.row[i] = facts.row[n + i * 8];
        f.scale[i] = SCALED ? facts.scale[n + i * 8] : 1.0f;
        f.weight[i] = facts.weight[n + i * 8];
    }
    return f;
}

/* Columns j and j + 1 of a piece for row i, as the output has them; j: of the thread's pairs. */
template <bool ACT, bool SCALED, bool PLAIN>
DEV float2 results(const cmoe_gpu_wgmma &p, const work &w, const tile_facts &facts, const row_pair &f, const place &at,
                   const float (&total)[PIECES][PIECE_SUMS], int piece, int j, int i)
{
    const int column = piece % 2 * PIECE + j * 8 + at.lane % 4 * 2, e = j * 4 + i * 2, up = ACT ? piece + 2 : piece;
    const unit u[2] = {unit_at<SCALED>(p, w, facts, piece / 2, column),
                       unit_at<SCALED>(p, w, facts, piece / 2, column + 1)};
    return {result<ACT, SCALED, PLAIN>(p, u[0], f, i, piece / 2, total[piece][e], total[up][e]),
            result<ACT, SCALED, PLAIN>(p, u[1], f, i, piece / 2, total[piece][e + 1], total[up][e + 1])};
}

/* Pieces of results: gate's and up's become one. */
template <bool ACT> constexpr int pieces = ACT ? PIECES / 2 : PIECES;

/* Column 0 of a piece of results. */
DEV int piece_column(const cmoe_gpu_wgmma &p, const work &w, int piece)
{
    return w.m + piece * PIECE;
}

template <bool ACT, bool SCALED, bool PLAIN>
DEV void store_rows_f32(const cmoe_gpu_wgmma &p, const work &w, const tile_facts &facts, const place &at,
                        const float (&total)[PIECES][PIECE_SUMS])
{
    const row_pair f = rows_of<SCALED>(facts, at);
#pragma unroll
    for (int piece = 0; piece < pieces<ACT>; piece++)
#pragma unroll
        for (int j = 0; j < PIECE / 8; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float2 v = results<ACT, SCALED, PLAIN>(p, w, facts, f, at, total, piece, j, i);
                const int column = piece_column(p, w, piece) + j * 8 + at.lane % 4 * 2;
                if (f.row[i] < 0)
                    continue;
                float *to = p.g.out + f.row[i] * p.g.out_stride + column;
                if (PLAIN) {
                    *(float2 *)to = v;
                } else {
                    if (column < p.out_cols)
                        to[0] = v.x;
                    if (column + 1 < p.out_cols)
                        to[1] = v.y;
                }
            }
}

/* A warp's 16 rows of 64 bytes: thread lane/4 and chunk lane%4 of rows 0 to 7, then of 8 to 15; in between, what
 * the threads of a row have, as stmatrix takes it. No other warp's. */
DEV uint32_t staging_of(const ring &r, const place &at)
{
    return shared_address(r.tail->staging) + (at.strip * 4 + at.warp) * 1024;
}

DEV uint32_t staged(uint32_t staging, int row, int chunk)
{
    return staging + row * 64 + ((chunk ^ (row >> 1 & 3)) << 4);
}

/* 16-byte chunks of the thread's rows; m: by row, then by chunk. */
DEV void turn_rows(uint32_t staging, const place &at, const uint32_t (&m)[2][4], uint4 (&out)[2])
{
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; i++)
        store_matrices(staged(staging, i * 8 + at.lane % 8, at.lane / 8), m[i]);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; i++)
        out[i] = load_shared_16(staged(staging, i * 8 + at.lane / 4, at.lane % 4));
}

template <int OUT, bool ACT, bool SCALED, bool PLAIN>
DEV void store_rows_16(const cmoe_gpu_wgmma &p, const work &w, const ring &r, const tile_facts &facts, const place &at,
                       const float (&total)[PIECES][PIECE_SUMS])
{
    const row_pair f = rows_of<SCALED>(facts, at);
    const uint32_t staging = staging_of(r, at);
#pragma unroll
    for (int part = 0; part < pieces<ACT> * 2; part++) {
        const int piece = part / 2, first = part % 2 * 4;
        uint32_t m[2][4];
        uint4 out[2];
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float2 v = results<ACT, SCALED, PLAIN>(p, w, facts, f, at, total, piece, first + j, i);
                m[i][j] = pack<OUT>(v.x, v.y);
            }
        turn_rows(staging, at, m, out);
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (f.row[i] >= 0)
                store_chunk<2, PLAIN>(p, f.row[i], piece_column(p, w, piece) + first * 8 + at.lane % 4 * 8, out[i]);
    }
}

/* Results of both rows as codes; FAST: divides_fast of both scales. */
template <bool FAST>
DEV void store_codes_of(const cmoe_gpu_wgmma &p, const work &w, const ring &r, const row_pair &f, const place &at,
                        const float (&total)[PIECES][PIECE_SUMS], const float (&scale)[2], const float (&inverse)[2])
{
    const uint32_t staging = staging_of(r, at);
#pragma unroll
    for (int piece = 0; piece < 2; piece++) {
        uint32_t m[2][4];
        uint4 out[2];
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float *v = total[piece] + j * 8 + i * 2;
                m[i][j] = e4m3_pair<FAST>(v[0], v[1], scale[i], inverse[i]) |
                          e4m3_pair<FAST>(v[4], v[5], scale[i], inverse[i]) << 16;
            }
        turn_rows(staging, at, m, out);
        /* A word has two units and, in its upper half, those 8 further on. */
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (f.row[i] >= 0)
                store_chunk<1, false>(
                    p, f.row[i], piece_column(p, w, piece) + at.lane % 4 * 16,
                    make_uint4(__byte_perm(out[i].x, out[i].y, 0x5410), __byte_perm(out[i].z, out[i].w, 0x5410),
                               __byte_perm(out[i].x, out[i].y, 0x7632), __byte_perm(out[i].z, out[i].w, 0x7632)));
    }
}

/* silu(gate)*up as e4m3; the tile's 128 units are one span of h's scales. */
DEV void store_row_codes(const cmoe_gpu_wgmma &p, const work &w, const ring &r, const tile_facts &facts,
                         const place &at, float (&total)[PIECES][PIECE_SUMS])
{
    const row_pair f = rows_of<false>(facts, at);
    float scale[2], inverse[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t top = 0;
#pragma unroll
        for (int j = 0; j < PIECE / 4; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &v = total[j / 8][j % 8 * 4 + i * 2 + e];
                v = silu(v) * total[j / 8 + 2][j % 8 * 4 + i * 2 + e];
                top = max(top, __float_as_uint(v) & 0x7fffffff);
            }
        top = max(top, __shfl_xor_sync(0xffffffff, top, 1));
        top = max(top, __shfl_xor_sync(0xffffffff, top, 2));
        scale[i] = scale_f32(CMOE_E4M3, bits_f32(top));
        inverse[i] = __frcp_rn(scale[i]);
        if (at.lane % 4 == 0 && f.row[i] >= 0)
            p.mid_scales[f.row[i] * p.mid_scale_stride + w.m / 128] = scale[i];
    }
    /* The code for other scales is long and nearly never run: apart, it does not lie in the way. */
    if (__all_sync(0xffffffff, divides_fast(scale[0]) && divides_fast(scale[1])))
        store_codes_of<true>(p, w, r, f, at, total, scale, inverse);
    else
        store_codes_of<false>(p, w, r, f, at, total, scale, inverse);
}

template <int OUT, bool ACT, bool SCALED, bool PLAIN>
DEV void store_rows(const cmoe_gpu_wgmma &p, const work &w, const ring &r, const tile_facts &facts, const place &at,
                    const float (&total)[PIECES][PIECE_SUMS])
{
    if constexpr (OUT == CMOE_F32)
        store_rows_f32<ACT, SCALED, PLAIN>(p, w, facts, at, total);
    else
        store_rows_16<OUT, ACT, SCALED, PLAIN>(p, w, r, facts, at, total);
}

#endif
