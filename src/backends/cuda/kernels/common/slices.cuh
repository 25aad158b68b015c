/* SPDX-License-Identifier: MIT
 * A handful of tokens, both GEMMs in one kernel that never waits for the grid. A cluster takes slices of
 * experts: 256 bytes of each row of the second matrix, and the units of h that they multiply. Its blocks
 * share the units' gate and up rows, send each other h, and share the rows of the second matrix; what to
 * multiply next is known long before, so weights of the next GEMM and slice stream meanwhile. Every block
 * keeps its rows' sums of y over the slices of its cluster; a kernel behind this one adds up the clusters'.
 *
 * Weights are the rows of the tensor cores' instructions, all tokens their 8 columns, so that an expert's
 * weights are read once: bf16 by mma.sync, e4m3 by wgmma, for mma.sync would make f16 of every code. */
#ifndef CMOE_KERNELS_SLICES_CUH
#define CMOE_KERNELS_SLICES_CUH

#include "backends/cuda/kernels/common/activation.cuh"
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/slices_rows.cuh"
#include "backends/cuda/kernels/common/wgmma.cuh"

DEV void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* A span of the rows of 8 tokens as operands; rows that are not there are the last one's, again. */
DEV void load_span(const slice_memory &m, const uint8_t *rows, int pitch, uint32_t (&b)[8])
{
    const int lane = threadIdx.x % 32;
    const uint32_t at = shared_address(rows + min(lane % 8, max(m.tokens, 1) - 1) * pitch + lane / 8 * 16);
    uint32_t low[4], high[4];
    load_matrices(at, low);
    load_matrices(at + 64, high);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        b[i] = low[i];
        b[4 + i] = high[i];
    }
}

/* 16 rows of weights by 128 bytes, swizzled, times that. */
DEV void multiply(float (&d)[4], const uint8_t *tile, const uint32_t (&b)[8])
{
    const int lane = threadIdx.x % 32, row = lane % 16;
    const uint32_t at = shared_address(tile) + row * SPAN;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t a[4];
        load_matrices(at + (((2 * i + lane / 16) ^ (row % 8)) << 4), a);
        mma(d, a, b[2 * i], b[2 * i + 1]);
    }
}

/* 64 rows of codes by a span of 8 tokens: the sums of a warp's 16 rows lie as those of mma.sync do. */
DEV void multiply_codes(float (&d)[4], const uint8_t *tile, const uint8_t *span)
{
    const uint32_t a = wgmma_place(shared_address(tile)), b = wgmma_place(shared_address(span));
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < SPAN / 32; i++)
        wgmma<CMOE_E4M3, 8>(d, wgmma_operand(a + i * 2), wgmma_operand(b + i * 2), i > 0);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_done(d);
}

/* A warp has read the stage. */
DEV void release(const slice_memory &m, stage_cursor &at, const cmoe_gpu_slices &p)
{
    barrier_arrive_warp(shared_address(&m.tail->empty[at.stage]), false, 0);
    at.advance(p);
}

/* Scales of a slice: of the gate or up rows of the warp, of lane's stage, and of its stage's rows of the second
 * matrix. */
struct slice_scales {
    float first, second;
};

/* The span of a stage of the first GEMM that a warp multiplies, and whether by gate or up rows. */
template <int TYPE> DEV int own_span(int warp)
{
    return slice_of<TYPE>::CODES ? warp / 4 : warp / 2;
}

template <int TYPE> DEV int own_half(int warp)
{
    return slice_of<TYPE>::CODES ? warp % 4 / 2 : warp % 2;
}

template <int TYPE>
DEV slice_scales load_scales(const cmoe_gpu_slices &p, const slice_memory &m, const slice_turn &turn)
{
    using shape = slice_of<TYPE>;
    slice_scales s = {1, 1};
    if (!shape::CODES || !turn.is_there(m))
        return s;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, expert = m.tail->experts[turn.number];
    const int half = own_half<TYPE>(warp) ^ p.swapped;
    const float *first = (const float *)((const char *)p.scale[half] + expert * p.scale_stride[half]);
    const float *second = (const float *)((const char *)p.scale[2] + expert * p.scale_stride[2]);
    const int row = turn.first_unit<TYPE>(m) / 128, column = turn.first_stage(p, m) + lane;
    if (lane < turn.stages1(p))
        s.first = first[row * p.blocks[0] + column * shape::SPANS + own_span<TYPE>(warp)];
    if (lane < p.stages2)
        s.second = second[(m.rank * p.stages2 + lane) * CMOE_SLICE_DOWN / 128 * p.blocks[1] +
                          turn.slice * shape::GROUPS + (turn.halved ? turn.half : warp / 4)];
    return s;
}

/* The warp's part of gate or up of the block's units, into the tail's sums. */
template <int TYPE>
DEV void multiply_first(const cmoe_gpu_slices &p, const slice_memory &m, const slice_turn &turn, stage_cursor &at,
                        float scales)
{
    using shape = slice_of<TYPE>;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, token = lane % 4 * 2;
    const int stages = turn.stages1(p), first_span = turn.first_stage(p, m) * shape::SPANS + own_span<TYPE>(warp);
    float acc[4] = {};
#pragma unroll 1
    for (int i = 0; i < stages; i++) {
        const int span = first_span + i * shape::SPANS;
        const uint8_t *stage = m.ring + at.stage * STAGE;
        if (shape::CODES) {
            const float w = __shfl_sync(0xffffffff, scales, i);
            const float2 x = *(const float2 *)&m.x_scale[span * TOKENS + token];
            float sum[4];
            barrier_wait(shared_address(&m.tail->full[at.stage]), at.parity);
            multiply_codes(sum, stage + warp / 4 * (STAGE / 2), m.x + span * SWIZZLED);
            release(m, at, p);
            acc[0] += w * x.x * sum[0];
            acc[1] += w * x.y * sum[1];
            acc[2] += w * x.x * sum[2];
            acc[3] += w * x.y * sum[3];
        } else {
            uint32_t b[8];
            load_span(m, m.x + span * SPAN, p.x_pitch, b);
            barrier_wait(shared_address(&m.tail->full[at.stage]), at.parity);
            multiply(acc, stage + warp * TILE, b);
            release(m, at, p);
        }
    }
    *(float2 *)&m.tail->sums[warp][lane / 4][token] = make_float2(acc[0], acc[1]);
    *(float2 *)&m.tail->sums[warp][lane / 4 + 8][token] = make_float2(acc[2], acc[3]);
}

/* Of half a slice's h: gate and up of a unit from the blocks with the first half of x, or with the second. */
template <int TYPE> DEV float2 *half_sums(const slice_memory &m, int buffer, int part, int token)
{
    return (float2 *)m.tail->h[buffer] + (part * m.tokens + token) * (slice_of<TYPE>::UNITS / 2);
}

/* h of the block's units, to all blocks; of half a slice what they make it of. */
template <int TYPE> DEV void send_h(const cmoe_gpu_slices &p, const slice_memory &m, const slice_turn &turn, int buffer)
{
    using shape = slice_of<TYPE>;
    const int unit = threadIdx.x / TOKENS, token = threadIdx.x % TOKENS;
    if (unit >= shape::ROWS || token >= m.tokens)
        return;
    float gate = 0, up = 0;
#pragma unroll
    for (int i = 0; i < WARPS / 2 / (shape::ROWS / 16); i++) { /* the warps that have the unit's spans */
        const int warp = shape::CODES ? i * 4 + unit / 16 : i * 2;
        gate += m.tail->sums[warp + p.swapped * shape::UP][unit % 16][token];
        up += m.tail->sums[warp + (1 - p.swapped) * shape::UP][unit % 16][token];
    }
    if (turn.halved) {
        const uint2 sums = make_uint2(__float_as_uint(gate), __float_as_uint(up));
        send_all(half_sums<TYPE>(m, buffer, m.rank / 4, token) + m.rank % 4 * shape::ROWS + unit, sums,
                 &m.tail->there[buffer]);
    } else {
        const float h = activation(p.p, gate, up);
        send_all(&m.tail->h[buffer][token][m.rank * shape::ROWS + unit], __float_as_uint(h), &m.tail->there[buffer]);
    }
}

/* Half a slice's h from both halves of x, token by token, to where the block's own sums were. */
template <int TYPE> DEV const float *add_halves(const cmoe_gpu_slices &p, const slice_memory &m, int buffer)
{
    const float2 *low = half_sums<TYPE>(m, buffer, 0, 0), *high = half_sums<TYPE>(m, buffer, 1, 0);
    float *h = &m.tail->sums[0][0][0];
    group_sync(MATH_BARRIER, MATH); /* all threads have read these */
    for (int i = threadIdx.x; i < slice_of<TYPE>::UNITS / 2 * m.tokens; i += MATH)
        h[i] = activation(p.p, low[i].x + high[i].x, low[i].y + high[i].y);
    group_sync(MATH_BARRIER, MATH);
    return h;
}

/* The slice's h of all tokens as operands, and what their sums are multiplied by: nothing of tokens that do not
 * have the expert. */
template <int TYPE> DEV void take_h(const cmoe_gpu_slices &p, const slice_memory &m, const slice_turn &turn, int buffer)
{
    using shape = slice_of<TYPE>;
    constexpr int PARTS = shape::UNITS / 128;
    const int lane = threadIdx.x % 32, number = turn.number;
    const bool one = PARTS == 1 || turn.halved;
    const float *h = turn.halved ? add_halves<TYPE>(p, m, buffer) : m.tail->h[buffer][0];
    const int pitch = turn.halved ? shape::UNITS / 2 : CMOE_SLICE_BYTES;
    for (int i = threadIdx.x / 32; i < (one ? m.tokens : m.tokens * PARTS); i += WARPS) {
        const int token = one ? i : i / PARTS, part = one ? 0 : i % PARTS;
        const bool counts = m.tail->chosen[number] >> token & 1;
        const float4 v = *(const float4 *)&h[token * pitch + part * 128 + lane * 4];
        float scale = 1;
        if (shape::CODES) {
            scale = span_scale(v);
            const uint32_t codes = codes_of(v, scale);
            *swizzled(m.tail->codes + part * SWIZZLED, token) = counts ? codes : 0;
        } else {
            const uint32_t low = encode(CMOE_BF16, v.x, 0) | encode(CMOE_BF16, v.y, 0) << 16;
            const uint32_t high = encode(CMOE_BF16, v.z, 0) | encode(CMOE_BF16, v.w, 0) << 16;
            ((uint2 *)(m.tail->codes + token * CODES_PITCH))[lane] = counts ? make_uint2(low, high) : make_uint2(0, 0);
        }
        const float factor = counts ? scale * m.tail->weights[number][token] : 0.0f;
        if (lane < 2 && (PARTS == 1 || lane == part))
            m.tail->factor[lane][token] = factor;
    }
    if (shape::CODES)
        fence_proxy();
}

/* The warp's rows of y, of one of the slice's spans; half a slice has only the first. */
template <int TYPE>
DEV void multiply_second(const cmoe_gpu_slices &p, const slice_memory &m, bool halved, stage_cursor &at, float scales,
                         float (&y)[MOST_DOWN][4])
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, span = warp / 4;
    if (halved && span > 0) {
#pragma unroll 1
        for (int i = 0; i < p.stages2; i++) {
            barrier_wait(shared_address(&m.tail->full[at.stage]), at.parity);
            release(m, at, p);
        }
        return;
    }
    uint32_t b[8];
    if (!slice_of<TYPE>::CODES)
        load_span(m, m.tail->codes + span * SPAN, CODES_PITCH, b);
    const float2 f = *(const float2 *)&m.tail->factor[span][lane % 4 * 2];
#pragma unroll
    for (int i = 0; i < MOST_DOWN; i++) {
        if (i >= p.stages2)
            break;
        float sum[4] = {};
        barrier_wait(shared_address(&m.tail->full[at.stage]), at.parity);
        if (slice_of<TYPE>::CODES)
            multiply_codes(sum, m.ring + at.stage * STAGE + span * (STAGE / 2), m.tail->codes + span * SWIZZLED);
        else
            multiply(sum, m.ring + at.stage * STAGE + warp * TILE, b);
        release(m, at, p);
        const float w = __shfl_sync(0xffffffff, scales, i);
        y[i][0] += w * f.x * sum[0];
        y[i][1] += w * f.y * sum[1];
        y[i][2] += w * f.x * sum[2];
        y[i][3] += w * f.y * sum[3];
    }
}

/* What nobody has stored yet, to all places of the block's sums, for the kernel that adds them up to see. */
DEV void clear_sums(const cmoe_gpu_slices &p, const slice_memory &m)
{
    constexpr uint32_t V = CMOE_SLICE_UNWRITTEN;
    uint4 *to = (uint4 *)(p.part + (int64_t)m.cluster * m.tokens * p.hidden + m.rank * p.stages2 * CMOE_SLICE_DOWN);
    if (threadIdx.x < p.stages2 * (CMOE_SLICE_DOWN / 4))
        for (int token = 0; token < m.tokens; token++)
            to[token * (p.hidden / 4) + threadIdx.x] = make_uint4(V, V, V, V);
}

/* A sum, which no NaN makes look unwritten. */
DEV float written(float v)
{
    return __float_as_uint(v) == CMOE_SLICE_UNWRITTEN ? __uint_as_float(0x7fffffff) : v;
}

/* Both spans' sums, in one order, to the cluster's rows of the workspace. */
DEV void store_sums(const cmoe_gpu_slices &p, const slice_memory &m, const float (&y)[MOST_DOWN][4])
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, token = lane % 4 * 2;
    float4 *other = (float4 *)m.ring + warp % 4 * MOST_DOWN * 32 + lane;
    group_sync(MATH_BARRIER, MATH); /* nobody reads stages */
#pragma unroll
    for (int i = 0; i < MOST_DOWN; i++)
        if (warp >= 4 && i < p.stages2)
            other[i * 32] = make_float4(y[i][0], y[i][1], y[i][2], y[i][3]);
    group_sync(MATH_BARRIER, MATH);
    if (warp >= 4)
        return;
    float *to = p.part + ((int64_t)m.cluster * m.tokens + token) * p.hidden + m.rank * p.stages2 * CMOE_SLICE_DOWN +
                warp * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < MOST_DOWN; i++) {
        if (i >= p.stages2)
            break;
        const float4 v = other[i * 32];
        float *at = to + i * CMOE_SLICE_DOWN;
        if (token < m.tokens) {
            at[0] = written(y[i][0] + v.x);
            at[8] = written(y[i][2] + v.z);
        }
        if (token + 1 < m.tokens) {
            at[p.hidden] = written(y[i][1] + v.y);
            at[p.hidden + 8] = written(y[i][3] + v.w);
        }
    }
}

/* The warps that multiply. */
template <int TYPE> DEV void multiply_slices(const cmoe_gpu_slices &p, const slice_memory &m)
{
    using shape = slice_of<TYPE>;
    uint4 rows[PIECES];
    if (threadIdx.x == 0) /* codes and scales, or two bytes a column */
        barrier_expect(shared_address(&m.tail->rows),
                       m.tokens * p.spans * (shape::CODES ? SPAN + (int)sizeof(float) : 512));
    load_rows<TYPE>(p, m, rows);
    clear_sums(p, m);
    group_sync(EXPERTS_BARRIER, CMOE_SLICE_THREADS);
    slice_turn next(p, m);
    slice_scales scales = load_scales<TYPE>(p, m, next);
    send_rows<TYPE>(p, m, rows);
    if (threadIdx.x == MATH - 1) { /* all that is cleared, before the kernel of the sum starts */
        fence_gpu();
        depend_release();
    }
    __syncwarp();
    barrier_wait(shared_address(&m.tail->rows), 0);
    if (shape::CODES)
        fence_proxy();
    group_sync(WEIGHTS_BARRIER, CMOE_SLICE_THREADS);
    stage_cursor at = {0, 0};
    float y[MOST_DOWN][4] = {};
#pragma unroll 1
    for (int i = 0; next.is_there(m); i++) {
        const slice_scales now = scales;
        const slice_turn turn = next;
        next.advance(p, m);
        scales = load_scales<TYPE>(p, m, next);
        if (threadIdx.x == 0)
            barrier_expect(shared_address(&m.tail->there[i & 1]), shape::UNITS * m.tokens * (turn.halved ? 8 : 4));
        multiply_first<TYPE>(p, m, turn, at, now.first);
        group_sync(MATH_BARRIER, MATH);
        send_h<TYPE>(p, m, turn, i & 1);
        barrier_wait(shared_address(&m.tail->there[i & 1]), i >> 1 & 1);
        take_h<TYPE>(p, m, turn, i & 1);
        group_sync(MATH_BARRIER, MATH);
        multiply_second<TYPE>(p, m, turn.halved, at, now.second, y);
    }
    store_sums(p, m, y);
}

template <int TYPE> DEV void slices(const cmoe_gpu_slices &p, uint8_t *memory)
{
    uint8_t *aligned = memory + (-shared_address(memory) & 1023);
    slice_memory m = {aligned,
                      aligned + p.x_at,
                      (float *)(aligned + p.x_scale_at),
                      (slice_tail *)(aligned + p.tail_at),
                      0,
                      (int)cluster_rank(),
                      (int)blockIdx.x / CLUSTER,
                      (int)gridDim.x / CLUSTER};
    if (threadIdx.x == 0) {
        for (int i = 0; i < p.stages; i++) {
            barrier_init(shared_address(&m.tail->full[i]), 1);
            barrier_init(shared_address(&m.tail->empty[i]), WARPS);
        }
        barrier_init(shared_address(&m.tail->there[0]), 1);
        barrier_init(shared_address(&m.tail->there[1]), 1);
        barrier_init(shared_address(&m.tail->rows), 1);
        fence_barrier_init();
        for (int i = 0; i < 3; i++)
            prefetch_map(&p.map[i]);
    }
    cluster_sync();
    depend_wait();
    m.tokens = token_count(p.call);
    if (threadIdx.x < MATH)
        multiply_slices<TYPE>(p, m);
    else
        supply_weights<TYPE>(p, m);
}

#endif
