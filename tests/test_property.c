/* SPDX-License-Identifier: MIT
 * ctest: labels=slow
 * Random problems on the cpu device against cmoe_reference: sizes, formats, routers, activations,
 * slices, hostile ids, strides. Half of the cases have exact inputs, where results must be equal.
 *
 * PROPERTY_CASES sets the number of cases. A failing case is shrunk and printed as one line; lines
 * that were ever printed live in seeds.txt and are run again every time. */
#include "harness_call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_FAILURES = 5, CONTEXTS = 2 };

struct property {
    struct rig rig[CONTEXTS];
    long cases, exact, mistrusted, refused;
    int failures;
};

struct trial {
    struct rig *rig;
    enum gen_kind kind;
    uint64_t seed;
};

static struct outcome run_trial(const struct trial *trial, const cmoe_problem *p)
{
    const struct gen_options options = call_options(&trial->rig->guard, trial->kind, trial->seed);
    return call_check(trial->rig, p, &options, trial->rig->cpu, NULL);
}

static bool bad(enum outcome_kind kind)
{
    return kind == OUTCOME_WRONG || kind == OUTCOME_REFUSED;
}

static bool still_fails(void *arg, const cmoe_problem *p)
{
    const struct trial *const trial = arg;
    const char *why;
    if (trial->kind == GEN_EXACT && !gen_exact_possible(p, &why)) return false;
    return bad(run_trial(trial, p).kind);
}

static void run_case(struct property *property, const struct trial *trial, const cmoe_problem *p)
{
    const struct outcome first = run_trial(trial, p);
    property->cases++;
    property->exact += trial->kind == GEN_EXACT;
    property->mistrusted += first.kind == OUTCOME_MISTRUSTED;
    if (!bad(first.kind)) return;
    property->failures++;
    const struct gen_options options = {.kind = trial->kind, .seed = trial->seed};
    char line[1024];
    call_repro(p, &options, line, sizeof line);
    print_error("FAILED  %s\n    %s: %s\n", line, first.path, first.why);
    const cmoe_problem small = call_shrink(p, still_fails, (void *)trial);
    const struct outcome last = run_trial(trial, &small);
    call_repro(&small, &options, line, sizeof line);
    print_error("shrunk  %s\n    %s: %s\n", line, last.path, last.why);
}

/* Lines of seeds.txt: "seed real|exact problem". */
static void replay_seeds(void **state)
{
    call_report_faults();
    struct property *const property = *state;
    FILE *const file = fopen(CMOE_TEST_DIR "/seeds.txt", "r");
    assert_non_null(file);
    char line[1024];
    int n = 0;
    while (fgets(line, sizeof line, file)) {
        unsigned long long seed;
        char kind[8];
        int at = 0;
        if (line[0] == '#' || line[0] == '\n') continue;
        if (sscanf(line, "%llu %7s %n", &seed, kind, &at) != 2) fail_with("seeds.txt: %s", line);
        const cmoe_problem p = test_problem(line + at);
        const struct trial trial = {.rig = &property->rig[n++ % CONTEXTS],
                                    .kind = strcmp(kind, "exact") == 0 ? GEN_EXACT : GEN_REAL,
                                    .seed = seed};
        run_case(property, &trial, &p);
    }
    fclose(file);
    printf("%d lines of seeds.txt\n", n);
    assert_int_equal(property->failures, 0);
}

/* A random problem; for exact inputs the first of a few that has them. */
static void draw(struct rng *seeds, struct trial *trial, cmoe_problem *p)
{
    const char *why;
    for (int i = 0; i < 40; i++) {
        trial->seed = rng_u64(seeds) >> 24;
        gen_problem(trial->seed, p);
        if (trial->kind == GEN_REAL || gen_exact_possible(p, &why)) return;
    }
    trial->kind = GEN_REAL;
}

static void random_problems(void **state)
{
    call_report_faults();
    struct property *const property = *state;
    const int64_t cases = test_env("PROPERTY_CASES", 2000);
    struct rng seeds = {test_seed()};
    property->cases = property->exact = property->mistrusted = 0;
    for (int64_t i = 0; i < cases && property->failures < MOST_FAILURES; i++) {
        struct trial trial = {.rig = &property->rig[i % CONTEXTS],
                              .kind = i % 4 < 2 ? GEN_EXACT : GEN_REAL};
        cmoe_problem p;
        draw(&seeds, &trial, &p);
        run_case(property, &trial, &p);
    }
    printf("%ld cases, %ld with exact inputs, %ld mistrusted\n", property->cases, property->exact,
           property->mistrusted);
    assert_int_equal(property->failures, 0);
    assert_true(property->exact > property->cases * 4 / 10);
    assert_true(property->mistrusted < property->cases / 10 + 1);
}

static int open_rigs(void **state)
{
    static struct property property;
    static const int threads[CONTEXTS] = {1, 3};
    for (int i = 0; i < CONTEXTS; i++) {
        rig_open(&property.rig[i], threads[i]);
    }
    *state = &property;
    return 0;
}

static int close_rigs(void **state)
{
    struct property *const property = *state;
    for (int i = 0; i < CONTEXTS; i++) {
        rig_close(&property->rig[i]);
    }
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replay_seeds),
        cmocka_unit_test(random_problems),
    };
    return cmocka_run_group_tests(tests, open_rigs, close_rigs);
}
