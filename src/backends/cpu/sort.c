/* SPDX-License-Identifier: MIT
 * SORT: a stable counting sort of slots by local expert, in two loops over chunks of slots: count,
 * then place. Chunk c of expert e writes after all chunks before c, so the order is that of one
 * pass however many workers there are. */
#include "backends/cpu/run.h"

#include "core/size.h"
#include <string.h>

/* Below 32768 slots one chunk is faster than a second fork; more than 64 chunks help nobody. */
enum { CHUNK_SLOTS = 16384, MOST_CHUNKS = 64 };

int cmoe__cpu_sort_chunks(int64_t slots)
{
    return (int)cmoe__max64(1, cmoe__min64(slots / CHUNK_SLOTS, MOST_CHUNKS));
}

/* Slots [*first, *end) of a chunk. */
static void chunk_range(const struct cmoe_cpu_run *run, int chunk, int64_t *first, int64_t *end)
{
    const int64_t slots = (int64_t)run->x.tokens * run->x.shape->slots;
    *first = slots * chunk / run->sort_chunks;
    *end = slots * (chunk + 1) / run->sort_chunks;
}

static int begin_count(struct cmoe_cpu_run *run)
{
    return run->x.shape->batched ? 0 : run->sort_chunks;
}

static void count(struct cmoe_cpu_run *run, int chunk, int worker)
{
    const struct cmoe_exec *const x = &run->x;
    const int32_t local = x->shape->local;
    int32_t *const counts = run->counts + (int64_t)chunk * local;
    int64_t first, end;
    (void)worker;
    chunk_range(run, chunk, &first, &end);
    memset(counts, 0, (size_t)local * sizeof *counts);
    for (int64_t row = first; row < end; row++) {
        const int32_t e = cmoe__exec_local(x, x->ids[row]);
        if (e >= 0) counts[e]++;
    }
}

/* Batched rows are in order already: only their counts are the caller's. */
static void place_batched(const struct cmoe_exec *x)
{
    const int32_t capacity = x->p->capacity;
    x->offsets[0] = 0;
    for (int32_t e = 0; e < x->shape->local; e++) {
        const int64_t n = cmoe__max64(0, cmoe__min64(x->t->expert_offsets[e], capacity));
        x->offsets[e + 1] = x->offsets[e] + (int32_t)n;
        for (int32_t r = 0; r < n; r++)
            x->rows[x->offsets[e] + r] = e * capacity + r;
    }
}

/* Counts become the place of each chunk's first row. */
static int begin_place(struct cmoe_cpu_run *run)
{
    const struct cmoe_exec *const x = &run->x;
    const int32_t local = x->shape->local;
    if (x->shape->batched) {
        place_batched(x);
        return 0;
    }
    int32_t next = 0;
    for (int32_t e = 0; e < local; e++) {
        x->offsets[e] = next;
        for (int c = 0; c < run->sort_chunks; c++) {
            int32_t *const at = &run->counts[(int64_t)c * local + e];
            const int32_t n = *at;
            *at = next;
            next += n;
        }
    }
    x->offsets[local] = next;
    return run->sort_chunks;
}

static void place(struct cmoe_cpu_run *run, int chunk, int worker)
{
    const struct cmoe_exec *const x = &run->x;
    int32_t *const next = run->counts + (int64_t)chunk * x->shape->local;
    int64_t first, end;
    (void)worker;
    chunk_range(run, chunk, &first, &end);
    for (int64_t row = first; row < end; row++) {
        const int32_t e = cmoe__exec_local(x, x->ids[row]);
        if (e >= 0) x->rows[next[e]++] = (int32_t)row;
    }
}

const struct cmoe_cpu_loop cmoe__cpu_loop_count = {.begin = begin_count, .item = count};
const struct cmoe_cpu_loop cmoe__cpu_loop_place = {.begin = begin_place, .item = place};
