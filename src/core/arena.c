/* SPDX-License-Identifier: MIT
 * Placement of workspace regions: largest first, each at the lowest offset where it meets no
 * region that lives at the same time. */
#include "core/arena.h"

#include "core/fail.h"
#include "core/size.h"

#include <assert.h>
#include <stdint.h>
#include <string.h>

enum { PAINT = 0xff, ZONE = 0xa5 };

void cmoe__arena_init(struct cmoe_arena *arena)
{
    memset(arena, 0, sizeof *arena);
}

void cmoe__arena_book(struct cmoe_arena *arena, int id, size_t bytes, int first, int last)
{
    assert(id >= 0 && id < CMOE_ARENA_REGIONS && first <= last);
    arena->region[id].bytes = bytes;
    arena->region[id].first = first;
    arena->region[id].last = last;
}

/* Bytes that a region takes with its alignment, without its redzones. */
static bool padded(size_t bytes, size_t *out)
{
    if (!cmoe__add_size(bytes, CMOE_ARENA_ALIGN - 1, out)) return false;
    *out = *out / CMOE_ARENA_ALIGN * CMOE_ARENA_ALIGN;
    return true;
}

static bool lives_meet(const struct cmoe_arena *arena, int a, int b)
{
    return arena->region[a].first <= arena->region[b].last &&
           arena->region[b].first <= arena->region[a].last;
}

/* End of a placed region with its redzone. It fits: placing it computed this sum. */
static size_t end_of(const struct cmoe_arena *arena, int id)
{
    size_t bytes = 0;
    (void)padded(arena->region[id].bytes, &bytes);
    return arena->region[id].offset + bytes + CMOE_ARENA_REDZONE;
}

/* Move region `id` (of `bytes` with redzones) up until it meets none of the placed ones. */
static bool first_fit(struct cmoe_arena *arena, const int *placed, int n_placed, int id,
                      size_t bytes, size_t *end)
{
    size_t begin = 0;
    for (int i = 0; i < n_placed; i++) {
        const int other = placed[i];
        if (!cmoe__add_size(begin, bytes, end)) return false;
        const bool apart = *end <= arena->region[other].offset - CMOE_ARENA_REDZONE ||
                           begin >= end_of(arena, other);
        if (apart || !lives_meet(arena, id, other)) continue;
        begin = end_of(arena, other);
        i = -1; /* it may now meet one that it was below before */
    }
    if (!cmoe__add_size(begin, bytes, end)) return false;
    arena->region[id].offset = begin + CMOE_ARENA_REDZONE;
    return true;
}

cmoe_status cmoe__arena_place(struct cmoe_arena *arena)
{
    int placed[CMOE_ARENA_REGIONS];
    bool done[CMOE_ARENA_REGIONS] = {false};
    arena->total = 0;
    for (int n = 0; n < CMOE_ARENA_REGIONS; n++) {
        int largest = -1;
        for (int i = 0; i < CMOE_ARENA_REGIONS; i++) {
            if (done[i] || arena->region[i].bytes == 0) continue;
            if (largest < 0 || arena->region[i].bytes > arena->region[largest].bytes) largest = i;
        }
        if (largest < 0) break;
        size_t bytes, end;
        if (!padded(arena->region[largest].bytes, &bytes) ||
            !cmoe__add_size(bytes, 2 * (size_t)CMOE_ARENA_REDZONE, &bytes) ||
            !first_fit(arena, placed, n, largest, bytes, &end)) {
            return CMOE_FAIL(
                CMOE_ERR_OVERFLOW,
                "The workspace does not fit in a size_t: region %d alone is %zu bytes.", largest,
                arena->region[largest].bytes);
        }
        done[largest] = true;
        placed[n] = largest;
        if (end > arena->total) arena->total = end;
    }
    return CMOE_OK;
}

void *cmoe__arena_grant(const struct cmoe_arena *arena, int id, void *workspace)
{
    assert(id >= 0 && id < CMOE_ARENA_REGIONS);
    if (arena->region[id].bytes == 0 || !workspace) return NULL;
    return (unsigned char *)workspace + arena->region[id].offset;
}

void *cmoe__arena_spent(const struct cmoe_arena *arena, int step, void *workspace, size_t *bytes)
{
    int largest = -1;
    *bytes = 0;
    for (int i = 0; i < CMOE_ARENA_REGIONS; i++) {
        if (arena->region[i].bytes <= *bytes || arena->region[i].last + 1 != step) continue;
        largest = i;
        *bytes = arena->region[i].bytes;
    }
    return largest < 0 ? NULL : cmoe__arena_grant(arena, largest, workspace);
}

void cmoe__arena_paint(const struct cmoe_arena *arena, void *workspace, int step)
{
    for (int i = 0; i < CMOE_ARENA_REGIONS; i++) {
        const size_t bytes = arena->region[i].bytes;
        if (bytes == 0 || (step >= 0 && arena->region[i].first != step)) continue;
        unsigned char *const region = (unsigned char *)workspace + arena->region[i].offset;
        memset(region - CMOE_ARENA_REDZONE, ZONE, CMOE_ARENA_REDZONE);
        memset(region, PAINT, bytes);
        memset(region + bytes, ZONE, end_of(arena, i) - arena->region[i].offset - bytes);
    }
}

static bool intact(const unsigned char *zone, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (zone[i] != ZONE) return false;
    }
    return true;
}

int cmoe__arena_check(const struct cmoe_arena *arena, const void *workspace, int step)
{
    for (int i = 0; i < CMOE_ARENA_REGIONS; i++) {
        const size_t bytes = arena->region[i].bytes, offset = arena->region[i].offset;
        if (bytes == 0 || arena->region[i].first > step || arena->region[i].last < step) continue;
        const unsigned char *const region = (const unsigned char *)workspace + offset;
        if (!intact(region - CMOE_ARENA_REDZONE, CMOE_ARENA_REDZONE) ||
            !intact(region + bytes, end_of(arena, i) - offset - bytes)) {
            return i;
        }
    }
    return -1;
}
