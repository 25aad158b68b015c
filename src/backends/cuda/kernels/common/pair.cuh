/* SPDX-License-Identifier: MIT
 * GEMM1 with its activation and GEMM2 in one persistent kernel.
 *
 * Blocks take tiles from one list, all of GEMM1's before all of GEMM2's, so that neither GEMM ends with
 * idle multiprocessors but the second, and the ring never runs empty in between: a block loads weights of
 * GEMM2 while the last rows of h are made elsewhere. Tiles are taken by tickets, not by the block's
 * number: who waits for h waits for blocks that run, whatever else is on the GPU. For a combine beside them they say
 * which strips of z are whole, and some blocks leave it their multiprocessors. */
#ifndef CMOE_KERNELS_PAIR_CUH
#define CMOE_KERNELS_PAIR_CUH

#include "backends/cuda/kernels/common/requantise.cuh"

/* Whether rows of x and h have one scale each. */
template <int TYPE, bool BLOCK> constexpr bool one_scale = TYPE == CMOE_E4M3 && !BLOCK;

/* GEMM1's tiles come first in the list. */
struct tile_list {
    int first, total;
};

DEV tile_list list_of(const cmoe_gpu_wgmma_pair &f, const ring &r)
{
    const int tiles = r.tail->first_tile[f.gemm[0].g.call.local], first = tiles * f.gemm[0].m_tiles;
    return {first, first + tiles * f.gemm[1].m_tiles};
}

/* Tiles [at, end) that a ticket stands for. */
struct tile_run {
    int at, end;
};

DEV tile_run run_of_ticket(const cmoe_gpu_wgmma_pair &f, const tile_list &list, int ticket)
{
    if (ticket < list.first)
        return {ticket, ticket + 1};
    const int at = list.first + (ticket - list.first) * f.each;
    return {at, min(at + f.each, list.total)};
}

DEV int take_ticket(const cmoe_gpu_wgmma_pair &f)
{
    return atomicAdd(f.progress + CMOE_PROGRESS_TAKEN, 1);
}

/* Strips of GEMM2 that come first, expert by expert: what idle blocks can do of it while the last tiles of GEMM1 are
 * made, and one more. The others come one by one, all experts each, so that z is whole in them one after the other. */
DEV int widen(const cmoe_gpu_wgmma_pair &f, int rows)
{
    const int blocks = (int)gridDim.x, last = rows * f.gemm[0].m_tiles % blocks, idle = last ? blocks - last : 0;
    const int ready = rows - last / f.gemm[0].m_tiles - 1, all = f.gemm[1].m_tiles;
    const int tiles = (idle * f.gemm[0].g.k + f.gemm[1].g.k - 1) / f.gemm[1].g.k;
    return !f.strips || ready <= 0 ? all : min(all, (tiles + ready - 1) / ready + 1);
}

/* near: the expert of an earlier tile of the same GEMM. */
DEV work pair_work(const cmoe_gpu_wgmma_pair &f, const ring &r, const tile_list &list, int at, int near)
{
    const cmoe_gpu_wgmma &p = f.gemm[at >= list.first];
    if (at < list.first)
        return work_at(p, r, at, near);
    const int rows = r.tail->first_tile[p.g.call.local], wide = r.tail->wide, past = at - list.first - rows * wide;
    if (past < 0)
        return work_in(p, r, strips{0, wide}, at - list.first, near);
    const int strip = quotient(past, rows);
    return work_in(p, r, strips{wide + strip, 1}, past - strip * rows, 0);
}

/* z of the tile before, for a combine that runs beside: behind the next tile's products, when a fence finds nothing on
 * its way. Each warpgroup by itself. */
DEV void say_z(const cmoe_gpu_wgmma_pair &f, const ring &r)
{
    if (f.strips && threadIdx.x % 128 == 0) {
        int &strip = r.tail->stored[threadIdx.x / 128 - 1];
        if (strip >= 0) {
            fence_gpu();
            add_relaxed(f.progress + CMOE_PROGRESS_STRIPS + strip, 1);
        }
        strip = -1;
    }
}

/* GEMM1's tile is stored by both warpgroups; each says so by itself when its threads are done. */
DEV void say_done(const cmoe_gpu_wgmma_pair &f, int expert)
{
    if (threadIdx.x % 128 == 0) {
        fence_gpu();
        add_relaxed(f.progress + CMOE_PROGRESS_EXPERTS + expert, 1);
        add_relaxed(f.progress + CMOE_PROGRESS_DONE, 1);
    }
}

/* Until all of the expert's h is there; the tile's weights are loaded meanwhile. True: all of every
 * expert's is. The producer's threads; the one that leads asks. */
template <int TYPE, bool BLOCK>
DEV bool wait_for_h(const cmoe_gpu_wgmma_pair &f, const ring &r, const work &w, const tile_list &list, cursor c,
                    int slot, int &loaded)
{
    constexpr int STEP = SPAN / element_bytes<TYPE>;
    const cmoe_gpu_wgmma &p = f.gemm[1];
    if (threadIdx.x % LOAD_THREADS == 0) {
        const int32_t *done = f.progress + CMOE_PROGRESS_EXPERTS + w.expert;
        const int all = one_scale<TYPE, BLOCK> ? whole_h(f, r, w.expert) : halves_of(f, r, w.expert);
        const bool open = load_acquire(f.progress + CMOE_PROGRESS_DONE) == list.first * 2;
        if (!open && load_acquire(done) < all) {
            for (; loaded < r.count && loaded * STEP < p.g.k; loaded++) {
                barrier_wait(empty_at(r, c), c.parity ^ 1);
                load_weights(p, r, w, c, loaded * STEP);
                advance(c, r);
            }
            while (load_acquire(done) < all) {
            }
        }
        r.tail->open[slot] = open;
    }
    group_sync(LOAD_BARRIER, LOAD_THREADS);
    return r.tail->open[slot];
}

/* The ticket is taken a few stages before the end of a tile, and looked up when it should have come. */
enum { TAKE_BEFORE = 6, LOOK_BEFORE = 3 };

/* A tile of GEMM2, as facts say it: all of h is there, or it may have to wait. */
enum { WAITS = 1, WHOLE = 2 };

template <int TYPE, bool BLOCK, int MOST> DEV void produce_pair(const cmoe_gpu_wgmma_pair &f, const ring &r)
{
    constexpr int STEP = SPAN / element_bytes<TYPE>;
    const bool leads = threadIdx.x % LOAD_THREADS == 0;
    const tile_list list = list_of(f, r);
    tile_run run = run_of_ticket(f, list, r.tail->ticket[1]);
    cursor c = {0, 0};
    bool open = false;
    int turn = 0, ticket = 0;
    depend_release();
    if (leads)
        r.tail->wide = widen(f, r.tail->first_tile[f.gemm[0].g.call.local]);
    group_sync(LOAD_BARRIER, LOAD_THREADS);
    work w = {}, next = {};
    gather g = {}, next_rows = {};
    if (run.at < list.total) {
        w = pair_work(f, r, list, run.at, 0);
        g = gather_of<BLOCK>(f.gemm[run.at >= list.first], w);
    }
    for (; run.at < list.total; turn++) {
        const int slot = turn & 1, second = run.at >= list.first;
        const cmoe_gpu_wgmma &p = f.gemm[second];
        const bool last = run.at + 1 == run.end;
        int loaded = 0;
        barrier_wait(shared_address(&r.tail->unused[slot]), (turn >> 1 & 1) ^ 1);
        if (leads) {
            r.tail->facts[slot].w = w;
            r.tail->second[slot] = second ? (open ? WHOLE : WAITS) : 0;
            barrier_arrive(shared_address(&r.tail->begun[slot]));
        }
        if (second && !open)
            open = wait_for_h<TYPE, BLOCK>(f, r, w, list, c, slot, loaded);
        const int steps = (p.g.k + STEP - 1) / STEP;
        const int take = max(steps - TAKE_BEFORE, 0), look = max(steps - LOOK_BEFORE, 0);
        for (int step = 0; step < steps; step++) {
            const int column = step * STEP;
            if (leads && last && step == take)
                ticket = second && (int)blockIdx.x < f.leave ? list.total : take_ticket(f);
            barrier_wait(empty_at(r, c), c.parity ^ 1);
            if (leads && step >= loaded)
                load_weights(p, r, w, c, column);
            load_rows<TYPE, MOST>(p, g, w.count, column, stage_at(r, c) + A_BYTES);
            if (BLOCK)
                load_scales(g, column, shared_address(r.tail->scale[c.stage]));
            hand_over(full_at(r, c), true);
            advance(c, r);
            if (step == look) {
                run.at++;
                if (last) {
                    if (leads)
                        r.tail->ticket[slot] = ticket;
                    group_sync(LOAD_BARRIER, LOAD_THREADS);
                    run = run_of_ticket(f, list, r.tail->ticket[slot]);
                }
                if (run.at < list.total) {
                    next = pair_work(f, r, list, run.at, second == (run.at >= list.first) ? w.expert : 0);
                    next_rows = gather_of<BLOCK>(f.gemm[run.at >= list.first], next);
                }
            }
        }
        state_facts<TYPE, BLOCK>(p, r, w, slot);
        w = next;
        g = next_rows;
    }
    const int slot = turn & 1;
    barrier_wait(shared_address(&r.tail->unused[slot]), (turn >> 1 & 1) ^ 1);
    if (leads) {
        r.tail->facts[slot].w.count = NO_TILE;
        barrier_arrive(shared_address(&r.tail->begun[slot]));
    }
}

/* OUT1: type of h, with one scale a row before it is quantised. OUT2: of z. */
template <int TYPE, int OUT1, int OUT2, bool BLOCK, int MOST>
DEV void consume_pair(const cmoe_gpu_wgmma_pair &f, const ring &r)
{
    constexpr bool SCALED = one_scale<TYPE, BLOCK>;
    cursor c = {0, 0};
    float acc[2][MOST / 2] = {};
    turn taken = {NO_EXPERT, 0, 0};
    if (threadIdx.x % 128 == 0)
        r.tail->stored[threadIdx.x / 128 - 1] = -1;
    for (int at = 0;; at++) {
        const int slot = at & 1, parity = at >> 1 & 1;
        const tile_facts &facts = r.tail->facts[slot];
        barrier_wait(shared_address(&r.tail->begun[slot]), parity);
        const int count = facts.w.count, second = r.tail->second[slot];
        if (SCALED)
            quantise_rows(f, r, taken, count != NO_TILE && second == WAITS ? facts.w.expert : NO_EXPERT);
        if (count == NO_TILE)
            break;
        taken.expert = NO_EXPERT;
        accumulate_from<TYPE, BLOCK, 8>(f.gemm[second != 0], r, count, place_of(), c, acc);
        say_z(f, r);
        barrier_wait(shared_address(&r.tail->ready[slot]), parity);
        if (second) {
            epilogue<OUT2, false, SCALED>(f.gemm[1], r, facts, acc);
            if (f.strips && threadIdx.x % 128 == 0)
                r.tail->stored[threadIdx.x / 128 - 1] = facts.w.m / (2 * CMOE_WGMMA_HALF);
        } else {
            epilogue<OUT1, true, SCALED>(f.gemm[0], r, facts, acc);
            if (SCALED) {
                say_stored(f, r, facts.w.expert);
                taken = r.tail->next;
            } else {
                say_done(f, facts.w.expert);
            }
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            barrier_arrive(shared_address(&r.tail->unused[slot]));
    }
    say_z(f, r);
}

/* To L2, before it is known which experts have rows: `early` stages of what this block does first if all do. */
template <int TYPE> DEV void prefetch_weights(const cmoe_gpu_wgmma_pair &f)
{
    const cmoe_gpu_wgmma &p = f.gemm[0];
    const int expert = (int)blockIdx.x / p.m_tiles, m = (int)blockIdx.x % p.m_tiles * CMOE_WGMMA_HALF;
    for (int i = 0; i < f.early && expert < p.g.call.local; i++)
        for (int box = 0; box < 2; box++)
            prefetch_box(&p.map[box], i * SPAN / element_bytes<TYPE>, m, expert);
}

template <int TYPE, int OUT1, int OUT2, bool BLOCK> DEV void gemm_pair(const cmoe_gpu_wgmma_pair &f)
{
    extern __shared__ uint8_t memory[];
    constexpr int MOST = TYPE == CMOE_E4M3 ? CMOE_WGMMA_PAIR_N : MOST_N;
    const ring r = make_ring(f.gemm[0], memory);
    if (threadIdx.x < 4)
        prefetch_map(&f.gemm[threadIdx.x / 2].map[threadIdx.x % 2]);
    if (threadIdx.x == 0)
        prefetch_weights<TYPE>(f);
    depend_wait();
    if (threadIdx.x == 0)
        r.tail->ticket[1] = take_ticket(f);
    count_tiles(f.gemm[0], r.tail->first_tile);
    if (threadIdx.x < LOAD_THREADS) {
        fewer_registers<56>();
        produce_pair<TYPE, BLOCK, MOST>(f, r);
    } else {
        more_registers<224>();
        consume_pair<TYPE, OUT1, OUT2, BLOCK, MOST>(f, r);
    }
}

#endif
