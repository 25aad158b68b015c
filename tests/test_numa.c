/* SPDX-License-Identifier: MIT
 * ctest: labels=threads
 * Memory nodes as a machine lists them, and the own pool's threads on them. */
#include "core/context.h"
#include "core/numa.h"
#include "core/threads_pool.h"
#include "harness.h"
#include "harness_files.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { MOST_THREADS = 16 };

/* --- the machine ---------------------------------------------------------------------------- */

static struct cmoe_cpus cpus_from(int first, int last)
{
    struct cmoe_cpus cpus;
    memset(&cpus, 0, sizeof cpus);
    for (int i = first; i <= last; i++)
        CPU_SET_S((size_t)i, sizeof cpus.set, cpus.set);
    return cpus;
}

static void assert_cpus(const struct cmoe_cpus *got, struct cmoe_cpus want)
{
    assert_memory_equal(got->set, want.set, sizeof want.set);
}

/* A folder with /sys/devices/system/node. */
static void machine_make(struct folder *f)
{
    static const char *const parts[] = {"sys", "sys/devices", "sys/devices/system",
                                        "sys/devices/system/node"};
    folder_make(f);
    for (int i = 0; i < 4; i++)
        assert_int_equal(mkdir(folder_path(f, parts[i]), 0700), 0);
}

static void machine_online(struct folder *f, const char *list)
{
    folder_text(f, "sys/devices/system/node/online", list);
}

static void machine_node(struct folder *f, int node, const char *cpus)
{
    char name[128];
    snprintf(name, sizeof name, "sys/devices/system/node/node%d", node);
    (void)mkdir(folder_path(f, name), 0700);
    strcat(name, "/cpulist");
    folder_text(f, name, cpus);
}

static int nodes_of(const struct folder *f, int first, int last, struct cmoe_numa *out)
{
    const struct cmoe_cpus allowed = cpus_from(first, last);
    memset(out, 0x55, sizeof *out);
    cmoe__numa_read(f->path, &allowed, out);
    return out->nodes;
}

static void machines_are_read(void **state)
{
    struct folder f;
    struct cmoe_numa numa;
    (void)state;
    machine_make(&f);
    assert_int_equal(nodes_of(&f, 0, 99, &numa), 1); /* no list at all */
    machine_online(&f, "0\n");
    machine_node(&f, 0, "0-7\n");
    assert_int_equal(nodes_of(&f, 0, 99, &numa), 1);
    machine_online(&f, "0-1,4\n"); /* 4 has memory only, 5 is off */
    machine_node(&f, 0, "0-7,16-23\n");
    machine_node(&f, 1, "8-15,24-31\n");
    machine_node(&f, 4, "\n");
    machine_node(&f, 5, "40-47\n");
    assert_int_equal(nodes_of(&f, 0, 99, &numa), 2);
    struct cmoe_cpus want = cpus_from(0, 7);
    for (size_t i = 16; i < 24; i++)
        CPU_SET_S(i, sizeof want.set, want.set);
    assert_cpus(&numa.cpus[0], want);
    assert_int_equal(nodes_of(&f, 5, 9, &numa), 2); /* what the process may not use is left out */
    assert_cpus(&numa.cpus[0], cpus_from(5, 7));
    assert_cpus(&numa.cpus[1], cpus_from(8, 9));
    assert_int_equal(nodes_of(&f, 8, 12, &numa), 1); /* all on one node */
    static const char *const bad[] = {"0-1,x\n", "0-\n", "1-0\n", "-1\n", "0-9999999\n", "0 1\n"};
    for (int i = 0; i < 6; i++) {
        machine_online(&f, bad[i]);
        assert_int_equal(nodes_of(&f, 0, 99, &numa), 1);
    }
    machine_online(&f, "0-11\n"); /* more than shares: neighbours stay together */
    for (int i = 0; i < 12; i++) {
        char list[16];
        snprintf(list, sizeof list, "%d-%d\n", 2 * i, 2 * i + 1);
        machine_node(&f, i, list);
    }
    assert_int_equal(nodes_of(&f, 0, 99, &numa), CMOE_NODES);
    assert_cpus(&numa.cpus[0], cpus_from(0, 3));
    assert_cpus(&numa.cpus[1], cpus_from(4, 5));
    assert_cpus(&numa.cpus[7], cpus_from(22, 23));
    folder_remove(&f);
}

/* --- threads -------------------------------------------------------------------------------- */

struct places {
    struct cmoe_cpus of[MOST_THREADS];
};

static void note_place(void *arg, int i, int n)
{
    (void)n;
    ((struct places *)arg)->of[i] = cmoe__cpus_allowed();
}

/* Workers of the own pool stay on their node's CPUs; the caller's thread is left alone. */
static void workers_stay_on_their_node(void **state)
{
    enum { THREADS = 5 };
    const struct cmoe_cpus before = cmoe__cpus_allowed();
    struct cmoe_numa numa = {.nodes = 2};
    struct places places;
    struct cmoe_pool *pool;
    cmoe_context *const ctx = test_context(1, NULL);
    int found = 0;
    (void)state;
    for (int i = 0; i < CMOE_CPUS && found < 2; i++)
        if (CPU_ISSET_S((size_t)i, sizeof before.set, before.set))
            numa.cpus[found++] = cpus_from(i, i);
    if (found < 2) numa.cpus[1] = numa.cpus[0];
    expect_ok(cmoe__pool_create(ctx, THREADS, false, &numa, &pool));
    assert_true(cmoe__pool_run(pool, THREADS, true, note_place, &places));
    assert_cpus(&places.of[0], before);
    for (int i = 1; i < THREADS; i++)
        assert_cpus(&places.of[i], numa.cpus[i % 2]);
    cmoe__pool_destroy(ctx, pool);
    cmoe_context_destroy(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(machines_are_read),
        cmocka_unit_test(workers_stay_on_their_node),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
