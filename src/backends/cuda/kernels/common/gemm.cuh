/* SPDX-License-Identifier: MIT
 * GEMM1, GEMM1 with ACT, and GEMM2 on Hopper's wgmma; compiled for each kind of operand by itself.
 *
 * Weights are the M operand (always dense, by TMA from the layout they have), rows of x the N operand,
 * so that a tile is as wide as an expert has rows. A block is persistent: one warpgroup fills a ring
 * of stages, two multiply. Each of these owns 64 rows of both of a stage's boxes; with box 0 gate
 * rows and box 1 up rows of the same units, a thread holds both and the activation is its own. */
#ifndef CMOE_KERNELS_GEMM_CUH
#define CMOE_KERNELS_GEMM_CUH

#include "backends/cuda/kernels/common/ring.cuh"
#include "backends/cuda/kernels/common/wgmma.cuh"

template <int TYPE> constexpr int element_bytes = TYPE == CMOE_E4M3 ? 1 : 2;

/* ---- producer ---- */

/* One span of a row, element by element, zero where there is none: for what no copy engine reaches. */
template <int TYPE>
DEV void store_span(uint32_t to, int n, int chunk, const uint8_t *row, int64_t step, int column, int limit)
{
    constexpr int BYTES = element_bytes<TYPE>, COUNT = 16 / BYTES;
    const uint32_t at = to + n * SPAN + ((chunk ^ (n & 7)) << 4);
#pragma unroll 1
    for (int i = 0; i < COUNT; i++) {
        const int c = column + chunk * COUNT + i;
        const uint8_t *from = row + c * step;
        const bool inside = row && c < limit;
        if (BYTES == 2)
            store_shared_16(at + i * 2, inside ? *(const uint16_t *)from : 0);
        else
            store_shared_8(at + i, inside ? *from : 0);
    }
}

template <int TYPE> DEV void load_weights_slowly(const cmoe_gpu_wgmma &p, const work &w, int column, uint32_t to)
{
    constexpr int BYTES = element_bytes<TYPE>;
#pragma unroll 1
    for (int box = 0; box < 2; box++) {
        const int n = (int)threadIdx.x % LOAD_THREADS, row = w.m + n + (p.gated ? 0 : box * CMOE_WGMMA_HALF);
        const cmoe_gpu_half &h = p.g.experts[w.expert].half[p.g.half + (p.gated ? box : 0)];
        const uint8_t *from = row < p.out_used ? h.data + row * h.row_stride : NULL;
#pragma unroll 1
        for (int chunk = 0; chunk < 8; chunk++)
            store_span<TYPE>(to + box * HALF_BYTES, n, chunk, from, h.col_stride ? h.col_stride : BYTES, column,
                             p.g.k);
    }
}

/* A thread copies the same 16 bytes of every span's 128, of every 16th row. */
struct gather {
    int row[MOST_N / 16]; /* of x; -1: none */
    int n, chunk;         /* of the first row; swizzled place within a span */
};

DEV gather gather_of(const cmoe_gpu_wgmma &p, const work &w)
{
    gather g;
    const int thread = (int)threadIdx.x % LOAD_THREADS;
    g.n = thread / 8;
    g.chunk = thread % 8;
#pragma unroll
    for (int i = 0; i < MOST_N / 16; i++) {
        const int n = g.n + i * 16;
        g.row[i] = n < w.count ? (int)a_row(p.g, p.g.call.rows[w.first + n]) : -1;
    }
    return g;
}

template <int TYPE> DEV void load_rows(const cmoe_gpu_wgmma &p, const gather &g, int column, uint32_t to)
{
    constexpr int BYTES = element_bytes<TYPE>;
    const int64_t at = (int64_t)column * BYTES + g.chunk * 16;
    const int64_t left = (int64_t)p.g.k * BYTES - at;
    const int bytes = left >= 16 ? 16 : (left > 0 ? (int)left : 0);
#pragma unroll
    for (int i = 0; i < MOST_N / 16; i++) {
        if (g.row[i] < 0)
            break;
        const uint8_t *row = p.g.a + g.row[i] * p.g.a_stride;
        const int n = g.n + i * 16;
        if (p.vectors)
            copy_16(to + n * SPAN + ((g.chunk ^ (n & 7)) << 4), bytes > 0 ? row + at : row, bytes);
        else
            store_span<TYPE>(to, n, g.chunk, row, BYTES, column, p.g.k);
    }
}

/* Scales of the stage's rows of x, one a row and 128 columns. */
DEV void load_scales(const cmoe_gpu_wgmma &p, const work &w, int column, uint32_t to)
{
    const int n = (int)threadIdx.x % LOAD_THREADS;
    if (n < w.count) {
        const int64_t row = a_row(p.g, p.g.call.rows[w.first + n]);
        copy_4(to + n * 4, p.g.a_scale + row * p.g.a_scale_stride + column / 128 * 4);
    }
}

/* This thread's arrival, once its copies have landed; nothing waits for them here. The readers put the
 * proxy fence between the arrival and their wgmma. */
DEV void hand_over(uint32_t barrier, bool copied)
{
    if (copied) {
        barrier_arrive_copied(barrier);
        return;
    }
    copy_wait();
    fence_proxy();
    barrier_arrive(barrier);
}

template <int TYPE, bool BLOCK> DEV void produce(const cmoe_gpu_wgmma &p, const ring &r)
{
    constexpr int STEP = SPAN / element_bytes<TYPE>;
    const bool leads = threadIdx.x % LOAD_THREADS == 0;
    const uint64_t once = evict_first(), many = evict_normal();
    cursor c = {0, 0};
    for (int index = blockIdx.x; index < tile_total(p, r); index += gridDim.x) {
        const work w = work_at(p, r, index);
        const gather g = gather_of(p, w);
        const uint64_t policy = w.count == p.g.call.offsets[w.expert + 1] - p.g.call.offsets[w.expert] ? once : many;
        for (int column = 0; column < p.g.k; column += STEP) {
            const uint32_t to = stage_at(r, c), full = full_at(r, c);
            barrier_wait(empty_at(r, c), c.parity ^ 1);
            if (leads && p.tma) {
                barrier_expect(full, A_BYTES);
                copy_box(to, &p.map[0], column, w.m, w.expert, full, policy);
                copy_box(to + HALF_BYTES, &p.map[1], column, w.m + (p.gated ? 0 : CMOE_WGMMA_HALF), w.expert, full,
                         policy);
            }
            if (!p.tma) {
                load_weights_slowly<TYPE>(p, w, column, to);
                if (leads)
                    barrier_arrive(full);
            }
            load_rows<TYPE>(p, g, column, to + A_BYTES);
            if (BLOCK)
                load_scales(p, w, column, shared_address(r.tail->scale[c.stage]));
            hand_over(full, p.tma && p.vectors);
            advance(c, r);
        }
    }
}

/* ---- consumer ---- */

/* What one thread holds of a tile: of both boxes rows lane/4 and lane/4 + 8 of its warp's 16, and of
 * every 8 rows of x columns lane%4*2 and + 1. */
struct place {
    int strip; /* 64 rows of each box */
    int warp, lane;
};

DEV place place_of(void)
{
    const int thread = (int)threadIdx.x - LOAD_THREADS;
    return {thread / 128, thread / 32 % 4, thread % 32};
}

DEV void release(uint32_t barrier)
{
    if (threadIdx.x % 32 == 0)
        barrier_arrive(barrier);
}

/* One span of k: 4 instructions of 32 bytes. */
template <int TYPE, int N> DEV void multiply(float (&d)[N / 2], uint32_t a, uint32_t b, bool fresh)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        wgmma<TYPE, N>(d, wgmma_operand(a + i * 32), wgmma_operand(b + i * 32), !(fresh && i == 0));
}

/* All of k with one scale or none: one stage's instructions stay in flight. */
template <int TYPE, int N>
DEV void accumulate_all(const cmoe_gpu_wgmma &p, const ring &r, const place &at, cursor &c, float (&acc)[2][N / 2])
{
    constexpr int STEP = SPAN / element_bytes<TYPE>;
    uint32_t before = 0;
    for (int column = 0; column < p.g.k; column += STEP) {
        const uint32_t a = stage_at(r, c) + at.strip * 64 * SPAN, b = stage_at(r, c) + A_BYTES;
        barrier_wait(full_at(r, c), c.parity);
        fence_proxy();
        wgmma_begin();
        multiply<TYPE, N>(acc[0], a, b, false);
        multiply<TYPE, N>(acc[1], a + HALF_BYTES, b, false);
        wgmma_commit();
        wgmma_wait<1>();
        if (before)
            release(before);
        before = empty_at(r, c);
        advance(c, r);
    }
    wgmma_wait<0>();
    wgmma_done(acc[0]);
    wgmma_done(acc[1]);
    if (before)
        release(before);
}

/* Scale of the 128x128 block that the thread's 64 rows of a box lie in. */
[[maybe_unused]] DEV const float *block_scales(const cmoe_gpu_wgmma &p, const work &w, const place &at, int box)
{
    int row = w.m + at.strip * 64 + (p.gated ? 0 : box * CMOE_WGMMA_HALF);
    const cmoe_gpu_half &h = p.g.experts[w.expert].half[p.g.half + (p.gated ? box : 0)];
    row = min(row, p.out_used - 1) * h.step + h.first;
    return (const float *)h.scale + (int64_t)(row / 128) * ((p.g.a_cols + 127) / 128);
}

/* e4m3: the instruction keeps few bits of its sums, so each span's are added to the total in f32, with
 * BLOCK times their scales. The other warpgroup's instructions run meanwhile. */
template <bool BLOCK, int N>
DEV void accumulate_spans(const cmoe_gpu_wgmma &p, const ring &r, const work &w, const place &at, cursor &c,
                           float (&acc)[2][N / 2])
{
    const float *scales[2] = {BLOCK ? block_scales(p, w, at, 0) : NULL, BLOCK ? block_scales(p, w, at, 1) : NULL};
    float part[N / 2];
    for (int column = 0; column < p.g.k; column += SPAN) {
        const uint32_t a = stage_at(r, c) + at.strip * 64 * SPAN, b = stage_at(r, c) + A_BYTES;
        const float weight[2] = {BLOCK ? scales[0][column / 128] : 1.0f, BLOCK ? scales[1][column / 128] : 1.0f};
        const float *token = r.tail->scale[c.stage] + at.lane % 4 * 2;
        barrier_wait(full_at(r, c), c.parity);
        fence_proxy();
#pragma unroll
        for (int box = 0; box < 2; box++) {
            wgmma_begin();
            multiply<CMOE_E4M3, N>(part, a + box * HALF_BYTES, b, true);
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_done(part);
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                const float2 s = BLOCK ? *(const float2 *)(token + j * 8) : make_float2(1.0f, 1.0f);
                const float s0 = s.x * weight[box], s1 = s.y * weight[box];
                acc[box][j * 4] += part[j * 4] * s0;
                acc[box][j * 4 + 1] += part[j * 4 + 1] * s1;
                acc[box][j * 4 + 2] += part[j * 4 + 2] * s0;
                acc[box][j * 4 + 3] += part[j * 4 + 3] * s1;
            }
        }
        __syncwarp();
        release(empty_at(r, c));
        advance(c, r);
    }
}

/* ---- epilogue ---- */

/* One of the thread's rows of a box: what its sums are multiplied by and what is added. */
struct unit {
    int at; /* row of the half */
    bool inside;
    float scale[2], bias[2]; /* by box (ungated: its own box's in both) */
};

template <bool SCALED>
DEV unit unit_of(const cmoe_gpu_wgmma &p, const work &w, const place &at, int box, int r)
{
    unit u;
    u.at = w.m + (p.gated ? 0 : box * CMOE_WGMMA_HALF) + at.strip * 64 + at.warp * 16 + at.lane / 4 + r * 8;
    u.inside = u.at < p.out_used;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const cmoe_gpu_half &h = p.g.experts[w.expert].half[p.g.half + (p.gated ? i : 0)];
        const int64_t channel = p.g.w.scaling == CMOE_SCALE_CHANNEL ? (int64_t)u.at * h.step + h.first : 0;
        u.scale[i] = SCALED && u.inside ? ((const float *)h.scale)[channel] : 1.0f;
        u.bias[i] = p.g.bias && u.inside ? h.bias[(int64_t)u.at * h.step + h.first] : 0.0f;
    }
    return u;
}

/* gate*sigmoid(alpha*gate)*(up + beta): silu has alpha 1, beta 0. */
DEV float gated_value(const cmoe_gpu_wgmma &p, float gate, float up)
{
    if (p.limit > 0.0f) {
        gate = gate > p.limit ? p.limit : gate;
        up = up > p.limit ? p.limit : (up < -p.limit ? -p.limit : up);
    }
    const float f = gate * __fdividef(1.0f, 1.0f + expf(-p.alpha * gate));
    return p.gated ? f * (up + p.beta) : f;
}

/* What holds for one row of x. */
struct row_factors {
    int row;     /* of the output; -1: none */
    float scale, weight;
};

template <bool SCALED> DEV row_factors factors_of(const cmoe_gpu_wgmma &p, int row)
{
    row_factors f = {row, 1.0f, 1.0f};
    if (row < 0)
        return f;
    if (SCALED)
        f.scale = *(const float *)(p.g.a_scale + a_row(p.g, f.row) * p.g.a_scale_stride);
    if (p.g.weigh || p.weigh_act)
        f.weight = row_weight(p.g.call, f.row);
    return f;
}

template <int TYPE> DEV uint32_t pack(float a, float b)
{
    if constexpr (TYPE == CMOE_BF16) {
        const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
        return *(const uint32_t *)&v;
    } else {
        const __half2 v = __floats2half2_rn(a, b);
        return *(const uint32_t *)&v;
    }
}

/* Two rows of x at one column of the output. */
DEV void store_columns(const cmoe_gpu_wgmma &p, const row_factors (&f)[2], int column, const float (&v)[2])
{
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (f[i].row >= 0)
            p.g.out[(int64_t)f[i].row * p.g.out_stride + column] = v[i];
}

/* The same as 16-bit numbers: transposed across the warp, so that a lane has two columns of one row.
 * first: column of the warp's first row. */
template <int OUT>
DEV void store_pairs(const cmoe_gpu_wgmma &p, int64_t row, int first, int lane, const float (&v)[2])
{
    const uint32_t pair = transpose_8x8(pack<OUT>(v[0], v[1]));
    const int column = first + lane % 4 * 2;
    uint16_t *to = (uint16_t *)p.g.out + row * p.g.out_stride + column;
    if (row < 0)
        return;
    if (p.g.out_stride % 2 == 0 && column + 1 < p.out_cols) {
        *(uint32_t *)to = pair;
        return;
    }
    if (column < p.out_cols)
        to[0] = (uint16_t)pair;
    if (column + 1 < p.out_cols)
        to[1] = (uint16_t)(pair >> 16);
}

/* The value of a unit for a row of x. */
template <bool SCALED>
DEV float linear(const cmoe_gpu_wgmma &p, const unit &u, int i, const row_factors &f, float sum)
{
    float v = SCALED ? sum * f.scale * u.scale[i] : sum;
    if (p.g.weigh)
        v *= f.weight;
    return v + u.bias[i];
}

/* OUT: type of the output. ACT: of the activation's result, else of the sums. */
template <int OUT, bool ACT, bool SCALED, int N>
DEV void epilogue(const cmoe_gpu_wgmma &p, const work &w, const place &at, const int (&rows)[N / 8],
                  const float (&acc)[2][N / 2])
{
    const int passes = ACT && p.gated ? 1 : 2;
#pragma unroll
    for (int box = 0; box < 2; box++) {
        if (box >= passes)
            break;
        const unit u[2] = {unit_of<SCALED>(p, w, at, box, 0), unit_of<SCALED>(p, w, at, box, 1)};
        /* Sums of gate and up: box 1's columns follow all of box 0's. */
        const int shift = !ACT && p.gated && box ? p.g.split : 0;
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            row_factors f[2];
#pragma unroll
            for (int i = 0; i < 2; i++)
                f[i] = factors_of<SCALED>(p, __shfl_sync(0xffffffff, rows[j], (at.lane % 4 * 2 + i) * 4));
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float v[2];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int e = j * 4 + r * 2 + i;
                    v[i] = linear<SCALED>(p, u[r], ACT ? 0 : box, f[i], acc[box][e]);
                    if (ACT) {
                        const float up = p.gated ? linear<SCALED>(p, u[r], 1, f[i], acc[1][e]) : 0.0f;
                        v[i] = gated_value(p, v[i], up);
                        v[i] = p.weigh_act ? v[i] * f[i].weight : v[i];
                    }
                    v[i] = u[r].inside ? v[i] : 0.0f;
                }
                if constexpr (OUT != CMOE_F32)
                    store_pairs<OUT>(p, rows[j], u[r].at - at.lane / 4, at.lane, v);
                else if (u[r].at < p.out_cols)
                    store_columns(p, f, u[r].at + shift, v);
            }
        }
    }
}

/* ---- the kernel ---- */

template <int TYPE, int OUT, bool ACT, bool BLOCK, int N>
DEV void consume_tile(const cmoe_gpu_wgmma &p, const ring &r, const work &w, const place &at, cursor &c)
{
    int rows[N / 8]; /* of the output, asked for long before they are used */
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        const int n = j * 8 + at.lane / 4;
        rows[j] = n < w.count ? p.g.call.rows[w.first + n] : -1;
    }
    float acc[2][N / 2] = {};
    if constexpr (TYPE == CMOE_E4M3)
        accumulate_spans<BLOCK, N>(p, r, w, at, c, acc);
    else
        accumulate_all<TYPE, N>(p, r, at, c, acc);
    epilogue<OUT, ACT, TYPE == CMOE_E4M3 && !BLOCK, N>(p, w, at, rows, acc);
}

template <int TYPE, int OUT, bool ACT, bool BLOCK> DEV void consume(const cmoe_gpu_wgmma &p, const ring &r)
{
    const place at = place_of();
    cursor c = {0, 0};
    for (int index = blockIdx.x; index < tile_total(p, r); index += gridDim.x) {
        const work w = work_at(p, r, index);
        if (w.count <= 8)
            consume_tile<TYPE, OUT, ACT, BLOCK, 8>(p, r, w, at, c);
        else if (w.count <= 16)
            consume_tile<TYPE, OUT, ACT, BLOCK, 16>(p, r, w, at, c);
        else if (w.count <= 32)
            consume_tile<TYPE, OUT, ACT, BLOCK, 32>(p, r, w, at, c);
        else if (TYPE == CMOE_E4M3 || w.count <= 64)
            consume_tile<TYPE, OUT, ACT, BLOCK, 64>(p, r, w, at, c);
        else if constexpr (TYPE != CMOE_E4M3) {
            if (w.count <= 96)
                consume_tile<TYPE, OUT, ACT, BLOCK, 96>(p, r, w, at, c);
            else if (w.count <= 112)
                consume_tile<TYPE, OUT, ACT, BLOCK, 112>(p, r, w, at, c);
            else
                consume_tile<TYPE, OUT, ACT, BLOCK, 128>(p, r, w, at, c);
        }
    }
}

template <int TYPE, int OUT, bool ACT, bool BLOCK> DEV void gemm(const cmoe_gpu_wgmma &p)
{
    extern __shared__ uint8_t memory[];
    const ring r = make_ring(p, memory);
    if (threadIdx.x < LOAD_THREADS) {
        fewer_registers<88>();
        produce<TYPE, BLOCK>(p, r);
    } else {
        more_registers<208>();
        consume<TYPE, OUT, ACT, BLOCK>(p, r);
    }
}

/* Named by operand type, scales along k, and what comes out: sums, or the activation's result. */
#define ENTRY(name, type, out, act, block)                                                         \
    extern "C" __global__ void __launch_bounds__(CMOE_WGMMA_THREADS, 1)                            \
        name(const __grid_constant__ cmoe_gpu_wgmma p)                                             \
    {                                                                                              \
        gemm<type, out, act, block>(p);                                                            \
    }

#endif
