/* SPDX-License-Identifier: MIT
 * Workspace: regions are booked at plan time with the steps they live in, placed so that regions
 * whose lives do not overlap share space, and granted as pointers at run time.
 *
 * Debug builds put a redzone of CMOE_ARENA_REDZONE bytes around every region; cmoe__arena_paint
 * fills the workspace with 0xff (NaN in every float type) and cmoe__arena_check finds damage. */
#ifndef CMOE_CORE_ARENA_H
#define CMOE_CORE_ARENA_H

#include <cmoe/status.h>
#include <stddef.h>

enum {
    CMOE_ARENA_ALIGN = 256,
    CMOE_ARENA_REGIONS = 32,
#ifdef CMOE_DEBUG
    CMOE_ARENA_REDZONE = 256,
#else
    CMOE_ARENA_REDZONE = 0,
#endif
};

struct cmoe_arena {
    struct {
        size_t bytes, offset;
        int first, last; /* steps, inclusive; bytes == 0: not booked */
    } region[CMOE_ARENA_REGIONS];
    size_t total;
};

void cmoe__arena_init(struct cmoe_arena *arena);
/* Reserve `bytes` for region `id` while steps first..last run. */
void cmoe__arena_book(struct cmoe_arena *arena, int id, size_t bytes, int first, int last);
/* Place all regions. CMOE_ERR_OVERFLOW if the total does not fit. */
cmoe_status cmoe__arena_place(struct cmoe_arena *arena);
/* Address of a region in a workspace, NULL if it was not booked. */
void *cmoe__arena_grant(const struct cmoe_arena *arena, int id, void *workspace);
/* The largest region whose life ended with the step before `step`: what lives in it, `step` makes. */
void *cmoe__arena_spent(const struct cmoe_arena *arena, int step, void *workspace, size_t *bytes);
/* Debug: paint the regions that begin life at `step` (all when step < 0), and check redzones of
 * those alive at `step`. Return the first damaged region or -1. */
void cmoe__arena_paint(const struct cmoe_arena *arena, void *workspace, int step);
int cmoe__arena_check(const struct cmoe_arena *arena, const void *workspace, int step);

#endif
