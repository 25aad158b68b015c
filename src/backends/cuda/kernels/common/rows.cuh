/* SPDX-License-Identifier: MIT
 * Tiles of many rows an expert: 128 rows of x as the M operand by 256 weight rows as the N operand. The ring, its
 * producer's copies and the facts of a tile are those of the kernels whose M operand is weights. */
#ifndef CMOE_KERNELS_ROWS_CUH
#define CMOE_KERNELS_ROWS_CUH

#include "backends/cuda/kernels/common/rows_store.cuh"

/* Scale along k of a row of x for each of the producer's threads, 4-byte units from x's scales or NO_ROW, and
 * of a piece's weights for four of them, NULL for the others. */
struct row_scales {
    uint32_t row;
    const float *piece;
};

DEV row_scales row_scales_of(const cmoe_gpu_wgmma &p, const work &w)
{
    const int thread = (int)threadIdx.x % LOAD_THREADS;
    row_scales s = {NO_ROW, NULL};
    if (thread < w.count)
        s.row = (uint32_t)(a_row(p.g, p.g.call.rows[w.first + thread]) * (p.g.a_scale_stride / 4));
    if (thread < PIECES)
        s.piece = block_scales(p, w, thread % 2, thread / 2);
    return s;
}

DEV void load_row_scales(const cmoe_gpu_wgmma &p, const ring &r, const cursor &c, const row_scales &s, int column)
{
    const int thread = (int)threadIdx.x % LOAD_THREADS;
    const uint32_t to = shared_address(r.tail->scale) + (c.stage * STAGE_SCALES + thread) * 4;
    if (s.row != NO_ROW)
        copy_4(to, (const float *)p.g.a_scale + s.row + column / 128);
    if (s.piece)
        copy_4(to + BLOCK_AT * 4, s.piece + column / 128);
}

/* Other tiles of the expert read the same soon. */
DEV void load_tile_weights(const cmoe_gpu_wgmma &p, const ring &r, const work &w, const cursor &c, int column)
{
    const uint32_t to = stage_at(r, c), full = full_at(r, c);
    barrier_expect(full, A_BYTES);
    copy_box(to, &p.map[0], column, w.m, w.expert, full, evict_normal());
    copy_box(to + HALF_BYTES, &p.map[1], column, w.m + (p.gated ? 0 : CMOE_WGMMA_HALF), w.expert, full, evict_normal());
}

/* Weights of the block's first tile while the kernel before this one still runs. */
template <int TYPE> DEV int load_first(const cmoe_gpu_wgmma &p, const ring &r, int index)
{
    cursor c = {0, 0};
    int loaded = 0;
    if (index >= work_total(p, r))
        return 0;
    const work w = work_at<STRIP>(p, r, index, 0);
    for (int column = 0; column < p.g.k && loaded < r.count; column += SPAN / element_bytes<TYPE>, loaded++) {
        load_tile_weights(p, r, w, c, column);
        advance(c, r);
    }
    return loaded;
}

/* A block's first tile has its number, the others are taken by an atomic counter just before they are needed:
 * tiles of one expert that share weights start at about the same time, whatever came before them. */
template <int TYPE, bool BLOCK> DEV void produce_rows(const cmoe_gpu_rows &f, const ring &r)
{
    enum { TAKE_BEFORE = 3 }; /* stages */
    const cmoe_gpu_wgmma &p = f.gemm;
    constexpr int STEP = SPAN / element_bytes<TYPE>;
    const bool leads = threadIdx.x % LOAD_THREADS == 0;
    int index = (int)blockIdx.x, loaded = p.ahead && leads ? load_first<TYPE>(p, r, index) : 0, turn = 0;
    cursor c = {0, 0};
    depend();
    while (index < work_total(p, r)) {
        const int slot = turn & 1, take = max(p.g.k - TAKE_BEFORE * STEP, 0) / STEP * STEP;
        const work w = work_at<STRIP>(p, r, index, 0);
        const gather g = gather_of<false>(p, w);
        const row_scales s = BLOCK ? row_scales_of(p, w) : row_scales{};
        int ticket = 0;
        barrier_wait(shared_address(&r.tail->unused[slot]), (turn >> 1 & 1) ^ 1);
        if (leads) {
            r.tail->facts[slot].w = w;
            barrier_arrive(shared_address(&r.tail->begun[slot]));
        }
        state_facts<TYPE, BLOCK>(p, r, w, slot);
        for (int column = 0; column < p.g.k; column += STEP) {
            if (leads && column == take)
                ticket = atomicAdd(f.taken, 1);
            barrier_wait(empty_at(r, c), c.parity ^ 1);
            if (loaded > 0)
                loaded--;
            else if (leads)
                load_tile_weights(p, r, w, c, column);
            load_rows<TYPE, CMOE_WGMMA_ROWS>(p, g, CMOE_WGMMA_ROWS, column, stage_at(r, c) + A_BYTES);
            if (BLOCK)
                load_row_scales(p, r, c, s, column);
            hand_over(full_at(r, c), true);
            advance(c, r);
        }
        if (leads)
            r.tail->ticket[slot] = (int)gridDim.x + ticket;
        group_sync(LOAD_BARRIER, LOAD_THREADS);
        index = r.tail->ticket[slot];
        turn++;
    }
    barrier_wait(shared_address(&r.tail->unused[turn & 1]), (turn >> 1 & 1) ^ 1);
    if (leads) {
        r.tail->facts[turn & 1].w.count = NO_TILE;
        barrier_arrive(shared_address(&r.tail->begun[turn & 1]));
    }
}

template <int TYPE, int OUT, bool ACT, bool BLOCK, bool FAST>
DEV void consume_rows(const cmoe_gpu_wgmma &p, const ring &r)
{
    constexpr bool SCALED = TYPE == CMOE_E4M3 && !BLOCK;
    cursor c = {0, 0};
    spans s;
    for (int turn = 0;; turn++) {
        const int slot = turn & 1, parity = turn >> 1 & 1;
        const tile_facts &facts = r.tail->facts[slot];
        barrier_wait(shared_address(&r.tail->begun[slot]), parity);
        const int count = facts.w.count;
        if (count == NO_TILE)
            break;
        const bool some = place_of().strip * STRIP < count;
        if (!some)
            pass<TYPE>(p, r, c);
        else if constexpr (TYPE == CMOE_E4M3 && !FAST)
            add_spans<BLOCK>(p, r, place_of(), c, s);
        else
            add_all<TYPE>(p, r, place_of(), c, s);
        barrier_wait(shared_address(&r.tail->ready[slot]), parity);
        if (some) {
            const work w = facts.w;
            if constexpr (OUT == CMOE_E4M3)
                store_row_codes(p, w, r, facts, place_of(), s.total);
            else if (p.plain)
                store_rows<OUT, ACT, SCALED, true>(p, w, r, facts, place_of(), s.total);
            else
                store_rows<OUT, ACT, SCALED, false>(p, w, r, facts, place_of(), s.total);
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            barrier_arrive(shared_address(&r.tail->unused[slot]));
    }
}

/* What copies no engine makes are left to the kernels whose M operand is weights. FAST: sums of e4m3 stay where they
 * are, too. */
template <int TYPE, int OUT, bool ACT, bool BLOCK, bool FAST = false> DEV void gemm_rows(const cmoe_gpu_rows &f)
{
    extern __shared__ uint8_t memory[];
    const cmoe_gpu_wgmma &p = f.gemm;
    const ring r = make_ring(p, memory, CMOE_WGMMA_MATH);
    if (threadIdx.x < 2)
        prefetch_map(&p.map[threadIdx.x]);
    if (!p.ahead)
        depend_wait();
    count_tiles(p, r.tail->first_tile);
    if (threadIdx.x < LOAD_THREADS) {
        fewer_registers<40>();
        produce_rows<TYPE, BLOCK>(f, r);
    } else {
        more_registers<232>();
        consume_rows<TYPE, OUT, ACT, BLOCK, FAST>(p, r);
    }
}

#endif
