/* SPDX-License-Identifier: MIT
 * ctest: labels=portable
 * Placement of workspace regions: neighbours in time never share a byte, others do, damage shows. */
#include "core/arena.h"
#include "harness.h"

#include <stdlib.h>
#include <string.h>

struct booking {
    int id;
    size_t bytes;
    int first, last;
};

static struct cmoe_arena place(const struct booking *bookings, int n)
{
    struct cmoe_arena arena;
    cmoe__arena_init(&arena);
    for (int i = 0; i < n; i++) {
        cmoe__arena_book(&arena, bookings[i].id, bookings[i].bytes, bookings[i].first,
                         bookings[i].last);
    }
    expect_ok(cmoe__arena_place(&arena));
    return arena;
}

/* A region with its redzones and the bytes that alignment adds. */
static size_t footprint(size_t bytes)
{
    return (bytes + CMOE_ARENA_ALIGN - 1) / CMOE_ARENA_ALIGN * CMOE_ARENA_ALIGN +
           2 * (size_t)CMOE_ARENA_REDZONE;
}

static void regions_of_random_lives_never_meet(void **state)
{
    (void)state;
    struct rng r = {test_seed()};
    int shared = 0;
    for (int round = 0; round < 2000; round++) {
        struct booking b[CMOE_ARENA_REGIONS];
        size_t sum = 0, largest = 0;
        const int n = (int)rng_between(&r, 1, CMOE_ARENA_REGIONS);
        for (int i = 0; i < n; i++) {
            const int first = (int)rng_below(&r, 8);
            b[i] = (struct booking){.id = i,
                                    .bytes = (size_t)rng_between(&r, 1, 5000),
                                    .first = first,
                                    .last = (int)rng_between(&r, first, 7)};
            sum += footprint(b[i].bytes);
            if (footprint(b[i].bytes) > largest) largest = footprint(b[i].bytes);
        }
        const struct cmoe_arena arena = place(b, n);
        assert_in_range(arena.total, largest, sum);
        shared += arena.total < sum;
        for (int i = 0; i < n; i++) {
            const size_t begin = arena.region[i].offset - CMOE_ARENA_REDZONE;
            assert_int_equal(arena.region[i].offset % CMOE_ARENA_ALIGN, 0);
            assert_true(begin + footprint(b[i].bytes) <= arena.total);
            for (int j = 0; j < i; j++) {
                const size_t other = arena.region[j].offset - CMOE_ARENA_REDZONE;
                const bool apart = begin + footprint(b[i].bytes) <= other ||
                                   other + footprint(b[j].bytes) <= begin;
                assert_true(apart || b[i].last < b[j].first || b[j].last < b[i].first);
            }
        }
    }
    assert_in_range(shared, 1000, 2000);
}

static void regions_of_other_times_share_space(void **state)
{
    (void)state;
    const struct booking chain[] = {
        {.id = 0, .bytes = 1000, .first = 0, .last = 1},
        {.id = 1, .bytes = 1000, .first = 1, .last = 2},
        {.id = 2, .bytes = 1000, .first = 2, .last = 3},
        {.id = 3, .bytes = 1000, .first = 3, .last = 4},
    };
    const struct cmoe_arena arena = place(chain, 4);
    assert_int_equal(arena.total, 2 * footprint(1000));
    assert_int_equal(arena.region[0].offset, arena.region[2].offset);
}

static void regions_that_were_not_booked_are_null(void **state)
{
    (void)state;
    const struct booking one[] = {{.id = 3, .bytes = 1, .first = 0, .last = 0}};
    const struct cmoe_arena arena = place(one, 1);
    char workspace[2048];
    assert_null(cmoe__arena_grant(&arena, 2, workspace));
    assert_null(cmoe__arena_grant(&arena, 3, NULL));
    assert_ptr_equal(cmoe__arena_grant(&arena, 3, workspace), workspace + CMOE_ARENA_REDZONE);
    const struct cmoe_arena empty = place(NULL, 0);
    assert_int_equal(empty.total, 0);
}

/* The largest of those whose last step is over, and of no other step's. */
static void what_a_step_was_the_last_to_read_is_known(void **state)
{
    (void)state;
    const struct booking b[] = {{0, 900, 0, 1}, {1, 700, 1, 2}, {2, 800, 2, 2}, {3, 950, 1, 3}};
    const struct cmoe_arena arena = place(b, 4);
    unsigned char *const workspace = malloc(arena.total);
    assert_non_null(workspace);
    static const struct {
        int region, step;
    } spent[] = {{-1, 0}, {-1, 1}, {0, 2}, {2, 3}};
    for (int i = 0; i < 4; i++) {
        size_t bytes = 1;
        const void *at = cmoe__arena_spent(&arena, spent[i].step, workspace, &bytes);
        const int region = spent[i].region;
        assert_ptr_equal(at, region < 0 ? NULL : cmoe__arena_grant(&arena, region, workspace));
        assert_int_equal(bytes, region < 0 ? 0 : b[region].bytes);
    }
    free(workspace);
}

static void totals_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    struct cmoe_arena arena;
    cmoe__arena_init(&arena);
    cmoe__arena_book(&arena, 0, SIZE_MAX - 10, 0, 0);
    expect_error(cmoe__arena_place(&arena), CMOE_ERR_OVERFLOW, "region 0");
    cmoe__arena_init(&arena);
    for (int i = 0; i < 3; i++)
        cmoe__arena_book(&arena, i, SIZE_MAX / 2 - 4096, 0, 1);
    expect_error(cmoe__arena_place(&arena), CMOE_ERR_OVERFLOW, "workspace");
}

static void damage_around_a_region_is_found(void **state)
{
    (void)state;
    const struct booking b[] = {
        {.id = 0, .bytes = 300, .first = 0, .last = 1},
        {.id = 5, .bytes = 700, .first = 1, .last = 2},
        {.id = 7, .bytes = 256, .first = 2, .last = 2},
    };
    const struct cmoe_arena arena = place(b, 3);
    unsigned char *const workspace = calloc(1, arena.total);
    for (int step = 0; step < 3; step++) {
        cmoe__arena_paint(&arena, workspace, step);
        assert_int_equal(cmoe__arena_check(&arena, workspace, step), -1);
        for (int i = 0; i < 3; i++) {
            unsigned char *const region = cmoe__arena_grant(&arena, b[i].id, workspace);
            if (b[i].first == step) {
                for (size_t j = 0; j < b[i].bytes; j++)
                    assert_int_equal(region[j], 0xff);
            }
            if (b[i].first > step || b[i].last < step) continue;
            memset(region, step, b[i].bytes); /* all of a region may be written */
            assert_int_equal(cmoe__arena_check(&arena, workspace, step), -1);
            if (b[i].bytes % CMOE_ARENA_ALIGN || CMOE_ARENA_REDZONE > 0) {
                const unsigned char old = region[b[i].bytes];
                region[b[i].bytes] = 0;
                assert_int_equal(cmoe__arena_check(&arena, workspace, step), b[i].id);
                region[b[i].bytes] = old;
            }
            if (CMOE_ARENA_REDZONE > 0) {
                region[-1] ^= 1;
                assert_int_equal(cmoe__arena_check(&arena, workspace, step), b[i].id);
                region[-1] ^= 1;
            }
        }
    }
    free(workspace);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(regions_of_random_lives_never_meet),
        cmocka_unit_test(regions_of_other_times_share_space),
        cmocka_unit_test(regions_that_were_not_booked_are_null),
        cmocka_unit_test(what_a_step_was_the_last_to_read_is_known),
        cmocka_unit_test(totals_that_do_not_fit_are_refused),
        cmocka_unit_test(damage_around_a_region_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
