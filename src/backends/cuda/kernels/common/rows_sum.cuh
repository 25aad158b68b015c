/* SPDX-License-Identifier: MIT
 * The sums of a tile whose M operand is rows of x: 64 of them a warpgroup, read from the stage into registers once a
 * span, by the stage's weights in four pieces of 64 rows. A thread has two rows of x, so that a piece's sums take two
 * scales; while they are scaled the next piece's products run. A stage is left by each thread for itself: what its lane
 * has read no other one answers for. */
#ifndef CMOE_KERNELS_ROWS_SUM_CUH
#define CMOE_KERNELS_ROWS_SUM_CUH

#include "backends/cuda/kernels/common/multiply.cuh"

enum {
    PIECES = 4, /* gate's two and up's two, or 256 outputs */
    PIECE = A_BYTES / PIECES / SPAN,
    PIECE_SUMS = PIECE / 2,     /* of a thread: 2 rows by PIECE / 4 columns */
    STRIP = 64,                 /* rows of x of a warpgroup */
    BLOCK_AT = CMOE_WGMMA_ROWS, /* of a stage's scales: its rows' of x, then the pieces' */
    STAGE_SCALES = BLOCK_AT + PIECES,
};
static_assert(sizeof(ring_tail::scale) >= STAGE_SCALES * 4 * 4, "four stages have their scales there");

/* D[64 rows of x, PIECE] += a * B^T; a: the thread's part of 64 rows by 32 bytes of k. */
template <int TYPE> DEV void wgmma_piece(float (&d)[PIECE_SUMS], const uint32_t (&a)[4], uint64_t b, int accumulate)
{
#define WGMMA_PIECE(KIND, TRANSPOSE)                                                                                   \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                                          \
                 "wgmma.mma_async.sync.aligned.m64n64" KIND " {" D64 "}, {%32, %33, %34, %35}, %36"                    \
                 ", p, 1, 1" TRANSPOSE ";\n}"                                                                          \
                 : R64                                                                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))
    if constexpr (TYPE == CMOE_BF16)
        WGMMA_PIECE("k16.f32.bf16.bf16", ", 0");
    else if constexpr (TYPE == CMOE_F16)
        WGMMA_PIECE("k16.f32.f16.f16", ", 0");
    else
        WGMMA_PIECE("k32.f32.e4m3.e4m3", "");
#undef WGMMA_PIECE
}

/* A span of the thread's rows of x as operands, by 32 bytes of k. */
struct span_rows {
    uint32_t a[4][4];
};

/* Ordinary reads of what cp.async wrote: no proxy fence. from: the lane's row of its warp's 16, and the half
 * of 32 bytes, swizzled. */
DEV span_rows load_span_rows(uint32_t from)
{
    span_rows x;
#pragma unroll
    for (int k = 0; k < 4; k++)
        load_matrices(from ^ (uint32_t)(k << 5), x.a[k]);
    return x;
}

/* Where in a stage the lane finds 16 bytes of x's first 32 of k, and where in its scales the first row's. */
struct lane_places {
    uint32_t rows, factors;
};

DEV lane_places lane_places_of(const place &at)
{
    const int first = at.strip * STRIP + at.warp * 16, row = first + at.lane % 16;
    return {(uint32_t)(A_BYTES + row * SPAN + ((at.lane / 16 ^ (row & 7)) << 4)), (uint32_t)(first + at.lane / 4) * 4};
}

/* stage: wgmma_place of its address. */
template <int TYPE>
DEV void multiply_piece(float (&sums)[PIECE_SUMS], const span_rows &x, uint32_t stage, int piece, bool fresh)
{
#pragma unroll
    for (int k = 0; k < 4; k++)
        wgmma_piece<TYPE>(sums, x.a[k], wgmma_operand(stage + piece * (PIECE * SPAN / 16) + k * 2), !(fresh && k == 0));
}

/* Scales of a span: of the thread's two rows, and of the pieces. */
struct span_factors {
    float row[2];
    float4 piece;
};

DEV span_factors load_span_factors(const ring &r, const cursor &c, uint32_t row)
{
    const uint32_t from = shared_address(r.tail->scale) + c.stage * (STAGE_SCALES * 4);
    const uint4 piece = load_shared_16(from + BLOCK_AT * 4);
    return {{load_shared_f32(from + row), load_shared_f32(from + row + 32)},
            {bits_f32(piece.x), bits_f32(piece.y), bits_f32(piece.z), bits_f32(piece.w)}};
}

template <bool BLOCK>
DEV void add_piece(float (&total)[PIECE_SUMS], const float (&sums)[PIECE_SUMS], const float (&row)[2], float piece)
{
    const float s[2] = {row[0] * piece, row[1] * piece};
#pragma unroll
    for (int i = 0; i < PIECE_SUMS; i++)
        total[i] = BLOCK ? total[i] + sums[i] * s[i / 2 % 2] : total[i] + sums[i];
}

/* What a warpgroup has of a tile of e4m3. */
struct spans {
    float total[PIECES][PIECE_SUMS];
    float sums[2][PIECE_SUMS]; /* of pieces on their way */
    span_rows x;
};

/* A span: its sums are added to the total in f32, with BLOCK times their scales. Unless it is the LAST, x is
 * the next one's at the end, on its way while the last piece is scaled. */
template <bool BLOCK, bool LAST> DEV void add_span(const ring &r, const lane_places &lane, cursor &c, spans &s)
{
    constexpr int TYPE = CMOE_E4M3;
    const uint32_t stage = uniform(wgmma_place(stage_at(r, c))), empty = empty_at(r, c);
    span_factors f = {};
    bool there = true;
    wgmma_begin();
    multiply_piece<TYPE>(s.sums[0], s.x, stage, 0, true);
    wgmma_commit();
    multiply_piece<TYPE>(s.sums[1], s.x, stage, 1, true);
    wgmma_commit();
    if (BLOCK)
        f = load_span_factors(r, c, lane.factors);
    wgmma_wait<1>();
    wgmma_done(s.sums[0]);
    add_piece<BLOCK>(s.total[0], s.sums[0], f.row, f.piece.x);
    wgmma_begin();
    multiply_piece<TYPE>(s.sums[0], s.x, stage, 2, true);
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_done(s.sums[1]);
    add_piece<BLOCK>(s.total[1], s.sums[1], f.row, f.piece.y);
    wgmma_begin();
    multiply_piece<TYPE>(s.sums[1], s.x, stage, 3, true);
    wgmma_commit();
    advance(c, r);
    if (!LAST)
        there = barrier_passed(full_at(r, c), c.parity);
    wgmma_wait<1>();
    wgmma_done(s.sums[0]);
    add_piece<BLOCK>(s.total[2], s.sums[0], f.row, f.piece.z);
    if (!LAST && !there)
        barrier_wait(full_at(r, c), c.parity);
    wgmma_wait<0>();
    wgmma_done(s.sums[1]);
    if (!LAST)
        s.x = load_span_rows(stage_at(r, c) + lane.rows);
    barrier_arrive(empty);
    add_piece<BLOCK>(s.total[3], s.sums[1], f.row, f.piece.w);
}

template <bool BLOCK> DEV void add_spans(const cmoe_gpu_wgmma &p, const ring &r, const place &at, cursor &c, spans &s)
{
    const lane_places lane = lane_places_of(at);
#pragma unroll
    for (int i = 0; i < PIECE_SUMS; i++)
        s.total[0][i] = s.total[1][i] = s.total[2][i] = s.total[3][i] = 0.0f;
    barrier_wait(full_at(r, c), c.parity);
    s.x = load_span_rows(stage_at(r, c) + lane.rows);
    for (int more = (p.g.k - 1) / SPAN; more > 0; more--)
        add_span<BLOCK, false>(r, lane, c, s);
    add_span<BLOCK, true>(r, lane, c, s);
}

/* 16 bits, or e4m3 whose sums may be of few bits: the sums stay where they are. */
template <int TYPE> DEV void add_all(const cmoe_gpu_wgmma &p, const ring &r, const place &at, cursor &c, spans &s)
{
    constexpr int STEP = SPAN / element_bytes<TYPE>;
    const lane_places lane = lane_places_of(at);
    barrier_wait(full_at(r, c), c.parity);
    for (int column = 0; column < p.g.k; column += STEP) {
        const uint32_t stage = uniform(wgmma_place(stage_at(r, c))), empty = empty_at(r, c);
        s.x = load_span_rows(stage_at(r, c) + lane.rows);
        wgmma_begin();
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            multiply_piece<TYPE>(s.total[i], s.x, stage, i, column == 0);
        wgmma_commit();
        advance(c, r);
        if (column + STEP < p.g.k)
            barrier_wait(full_at(r, c), c.parity);
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            wgmma_done(s.total[i]);
        barrier_arrive(empty);
    }
}

/* Through the stages of a tile that has no rows for this warpgroup. */
template <int TYPE> DEV void pass(const cmoe_gpu_wgmma &p, const ring &r, cursor &c)
{
    for (int column = 0; column < p.g.k; column += SPAN / element_bytes<TYPE>) {
        barrier_wait(full_at(r, c), c.parity);
        barrier_arrive(empty_at(r, c));
        advance(c, r);
    }
}

#endif
