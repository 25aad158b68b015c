/* SPDX-License-Identifier: MIT
 * The producer of the wgmma kernels: one warpgroup that fills the ring, weights by TMA, rows of x
 * gathered by cp.async, and leaves each tile's facts for its epilogue. */
#ifndef CMOE_KERNELS_PRODUCE_CUH
#define CMOE_KERNELS_PRODUCE_CUH

#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/ring.cuh"

template <int TYPE> constexpr int element_bytes = TYPE == CMOE_E4M3 ? 1 : 2;

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
            store_shared_u16(at + i * 2, inside ? *(const uint16_t *)from : 0);
        else
            store_shared_u8(at + i, inside ? *from : 0);
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

/* Scale along k of the 128x128 blocks that 64 rows of a box lie in. */
DEV const float *block_scales(const cmoe_gpu_wgmma &p, const work &w, int strip, int box)
{
    const int first = w.m + strip * 64 + (p.gated ? 0 : box * CMOE_WGMMA_HALF);
    const cmoe_gpu_half &h = p.g.experts[w.expert].half[p.g.half + (p.gated ? box : 0)];
    const int row = min(first, p.out_used - 1) * h.step + h.first;
    return (const float *)h.scale + (int64_t)(row / 128) * ((p.g.a_cols + 127) / 128);
}

/* A thread copies the same 16 bytes of every span's 128, of every 16th row: a warp has 4 rows of every 16.
 * Its lanes hold where these are, lane i row i % 4 of the 4 and 16 * (i / 4) on. */
struct gather {
    uint32_t rows[2]; /* of the first 128, and of the rest: 16-byte units from x, else the row; NO_ROW: none */
    const float *scales; /* that this thread copies: of a row, or of the weights' blocks; NULL: none */
};
enum : uint32_t { NO_ROW = 0xffffffff };

template <bool BLOCK> DEV gather gather_of(const cmoe_gpu_wgmma &p, const work &w)
{
    gather g;
    const int thread = (int)threadIdx.x % LOAD_THREADS, lane = thread % 32;
    const uint32_t units = p.vectors ? (uint32_t)(p.g.a_stride / 16) : 1;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int n = i * 128 + lane / 4 * 16 + thread / 32 * 4 + lane % 4;
        g.rows[i] = n < w.count ? (uint32_t)a_row(p.g, p.g.call.rows[w.first + n]) * units : NO_ROW;
    }
    g.scales = NULL;
    if (BLOCK && thread < w.count)
        g.scales = (const float *)(p.g.a_scale + a_row(p.g, p.g.call.rows[w.first + thread]) * p.g.a_scale_stride);
    else if (BLOCK && thread >= SCALED_N && thread < SCALED_N + 4)
        g.scales = block_scales(p, w, (thread - SCALED_N) / 2, (thread - SCALED_N) % 2);
    return g;
}

DEV uint32_t row_at(const gather &g, int i)
{
    return __shfl_sync(0xffffffff, g.rows[i / 8], i % 8 * 4 + (int)threadIdx.x % 32 / 8);
}

/* No branch but one every 64 rows: the lanes' rows and their copies overlap. */
template <int TYPE, int MOST>
DEV void load_rows(const cmoe_gpu_wgmma &p, const gather &g, int count, int column, uint32_t to)
{
    const int thread = (int)threadIdx.x % LOAD_THREADS, chunk = thread % 8, first = thread / 8;
    const int at = column * element_bytes<TYPE> + chunk * 16;
    const bool inside = at < p.g.k * element_bytes<TYPE>;
    const uint8_t *from = p.g.a + (inside ? at : 0);
    const uint32_t place = to + first * SPAN + ((chunk ^ (first & 7)) << 4); /* first & 7 is that of all its rows */
#pragma unroll
    for (int i = 0; i < MOST / 16; i++) {
        if (i % 4 == 0 && i * 16 >= count)
            break;
        const uint32_t row = row_at(g, i);
        copy_16(place + i * 16 * SPAN, from + (uint64_t)row * 16, row != NO_ROW, inside);
    }
}

template <int TYPE, int MOST>
DEV void load_rows_slowly(const cmoe_gpu_wgmma &p, const gather &g, int column, uint32_t to)
{
    const int thread = (int)threadIdx.x % LOAD_THREADS;
#pragma unroll 1
    for (int i = 0; i < MOST / 16; i++) {
        const uint32_t held = i < 8 ? g.rows[0] : g.rows[1];
        const uint32_t row = __shfl_sync(0xffffffff, held, i % 8 * 4 + thread % 32 / 8);
        if (row != NO_ROW)
            store_span<TYPE>(to, thread / 8 + i * 16, thread % 8, p.g.a + row * p.g.a_stride, element_bytes<TYPE>,
                             column, p.g.k);
    }
}

/* Scales of the stage's rows of x, one a row and 128 columns, as readers take them: of 16 rows, a thread that
 * has rows 2q, 2q + 1, 2q + 8, 2q + 9 finds these four together. */
DEV void load_scales(const gather &g, int column, uint32_t to)
{
    const int n = (int)threadIdx.x % LOAD_THREADS, place = (n & ~15) | n % 8 / 2 * 4 | n / 8 % 2 * 2 | n % 2;
    if (g.scales)
        copy_4(to + (n < SCALED_N ? place : n) * 4, g.scales + column / 128);
}

/* The two boxes of a stage. In a cluster each block brings one of them for both. */
DEV void load_weights(const cmoe_gpu_wgmma &p, const ring &r, const work &w, const cursor &c, int column)
{
    const int tiles = r.tail->first_tile[w.expert + 1] - r.tail->first_tile[w.expert];
    const uint64_t policy = tiles == p.cluster ? evict_first() : evict_normal();
    const uint32_t to = stage_at(r, c), full = full_at(r, c);
    barrier_expect(full, A_BYTES);
    if (p.cluster > 1) {
        const int row = w.m + (p.gated ? 0 : (int)r.rank * CMOE_WGMMA_HALF);
        copy_box_both(to + r.rank * HALF_BYTES, &p.map[r.rank], column, row, w.expert, full, policy);
        return;
    }
    copy_box(to, &p.map[0], column, w.m, w.expert, full, policy);
    copy_box(to + HALF_BYTES, &p.map[1], column, w.m + (p.gated ? 0 : CMOE_WGMMA_HALF), w.expert, full, policy);
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

/* A thread states its rows and its unit of either box. Nothing waits for scales here: they are copied, and arrive
 * by themselves. What is outside has none; its sums are not stored. */
template <int TYPE, bool BLOCK> DEV void state_facts(const cmoe_gpu_wgmma &p, const ring &r, const work &w, int slot)
{
    constexpr bool SCALED = TYPE == CMOE_E4M3 && !BLOCK;
    const int thread = (int)threadIdx.x % LOAD_THREADS;
    tile_facts &f = r.tail->facts[slot];
#pragma unroll 1
    for (int n = thread; n < p.tile_n; n += LOAD_THREADS) {
        const int row = n < w.count ? p.g.call.rows[w.first + n] : -1;
        f.row[n] = row;
        f.weight[n] = row >= 0 && (p.g.weigh || p.weigh_act) ? row_weight(p.g.call, row) : 1.0f;
        if (SCALED && row >= 0)
            copy_4(shared_address(&f.scale[n]), p.g.a_scale + a_row(p.g, row) * p.g.a_scale_stride);
    }
#pragma unroll 1
    for (int box = 0; box < (p.plain && !SCALED ? 0 : 2); box++) {
        const cmoe_gpu_half &h = p.g.experts[w.expert].half[p.g.half + (p.gated ? box : 0)];
        const int at = w.m + thread + (p.gated ? 0 : box * CMOE_WGMMA_HALF), unit = box * CMOE_WGMMA_HALF + thread;
        const int64_t channel = (int64_t)at * h.step + h.first;
        const bool inside = at < p.out_used;
        if (SCALED && inside)
            copy_4(shared_address(&f.unit_scale[unit]),
                   (const float *)h.scale + (p.g.w.scaling == CMOE_SCALE_CHANNEL ? channel : 0));
        f.bias[unit] = inside && p.g.bias ? h.bias[channel] : 0.0f;
    }
    barrier_arrive(shared_address(&r.tail->ready[slot]));
    barrier_arrive_copied(shared_address(&r.tail->ready[slot]));
}

/* Weights of the first stages while the kernel before this one still runs: only rows of x come from it. */
template <int TYPE> DEV int load_ahead(const cmoe_gpu_wgmma &p, const ring &r)
{
    constexpr int STEP = SPAN / element_bytes<TYPE>;
    cursor c = {0, 0};
    int loaded = 0, expert = 0;
    for (int index = first_work(p); index < work_total(p, r); index += work_step(p)) {
        const work w = work_at(p, r, index, expert);
        expert = w.expert;
        for (int column = 0; column < p.g.k; column += STEP) {
            if (loaded == r.count)
                return loaded;
            load_weights(p, r, w, c, column);
            advance(c, r);
            loaded++;
        }
    }
    return loaded;
}

/* The next work and its rows are looked up while the first stage of this one is on its way. */
template <int TYPE, bool BLOCK, int MOST> DEV void produce(const cmoe_gpu_wgmma &p, const ring &r)
{
    constexpr int STEP = SPAN / element_bytes<TYPE>;
    const bool leads = threadIdx.x % LOAD_THREADS == 0;
    const int total = work_total(p, r);
    int loaded = p.ahead && leads ? load_ahead<TYPE>(p, r) : 0, index = first_work(p);
    cursor c = {0, 0};
    depend();
    if (index >= total)
        return;
    work w = work_at(p, r, index, 0), next = w;
    gather g = gather_of<BLOCK>(p, w), next_rows = g;
    for (int turn = 0; index < total; turn++) {
        const int slot = turn & 1;
        index += work_step(p);
        barrier_wait(shared_address(&r.tail->unused[slot]), (turn >> 1 & 1) ^ 1);
        if (leads) {
            r.tail->facts[slot].w = w;
            barrier_arrive(shared_address(&r.tail->begun[slot]));
        }
        for (int column = 0; column < p.g.k; column += STEP) {
            const uint32_t to = stage_at(r, c), full = full_at(r, c);
            barrier_wait(empty_at(r, c), c.parity ^ 1);
            if (loaded > 0)
                loaded--;
            else if (leads && p.tma)
                load_weights(p, r, w, c, column);
            if (!p.tma) {
                load_weights_slowly<TYPE>(p, w, column, to);
                if (leads)
                    barrier_arrive(full);
            }
            if (p.vectors)
                load_rows<TYPE, MOST>(p, g, w.count, column, to + A_BYTES);
            else
                load_rows_slowly<TYPE, MOST>(p, g, column, to + A_BYTES);
            if (BLOCK)
                load_scales(g, column, shared_address(r.tail->scale[c.stage]));
            hand_over(full, p.tma && p.vectors);
            advance(c, r);
            if (column == 0 && index < total) {
                next = work_at(p, r, index, w.expert);
                next_rows = gather_of<BLOCK>(p, next);
            }
        }
        state_facts<TYPE, BLOCK>(p, r, w, slot);
        w = next;
        g = next_rows;
    }
}

#endif
