/* SPDX-License-Identifier: MIT
 * Lines that cmoe tune writes: whichever chain is the fastest, a plan with them takes it and knows its time. */
#include "cli/tune.h"
#include "harness_call.h"
#include "harness_files.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One token: one bucket, so that no other has a say in the weights' formats. */
static const char *const problems[] = {"t=1 e=8 k=2 h=64 i=96 scheme=bf16",
                                       "t=1 e=8 k=2 h=64 i=96 scheme=int8-w8a8",
                                       "t=1 e=8 k=2 h=64 i=96 scheme=int4-w4a16"};
static const double fastest = 400;

/* What is planned, and the cheapest chain with each kernel. */
static void find_chains(cmoe_device *dev, const cmoe_problem *p, struct tune_point *point,
                        char *device, size_t len)
{
    cmoe_kernel_info row = {.name = NULL};
    point->tokens = 1;
    point->n = 0;
    for (int i = -1; i < 0 || cmoe_kernel_describe(i, &row); i++) {
        const cmoe_plan_options options = {.struct_size = sizeof options, .pin = row.name};
        cmoe_plan *plan = NULL;
        char path[CLI_PATH_TEXT];
        if (i >= 0 && !cmoe_kernel_supports(i, dev, p, NULL, 0)) continue;
        if (cmoe_plan_create(dev, p, NULL, &options, &plan) != CMOE_OK) continue;
        cmoe_plan_path(plan, 1, path, sizeof path);
        tune_add(point, path, cmoe_plan_estimate(plan, 1));
        cmoe_plan_device(plan, device, len);
        cmoe_plan_destroy(plan);
    }
}

/* Times of all chains, that of `best` the shortest. */
static void make_times(struct tune_point *point, int best)
{
    for (int i = 0; i < point->n; i++) {
        struct tune_chain *const chain = &point->chain[i];
        chain->us = i == best ? fastest : 1000 + 7 * i;
        for (int stage = 0; stage < CMOE_STAGE_COUNT; stage++)
            chain->stage_us[stage] = 1 + (stage + i) % 5;
    }
}

static void expect_taken(const cmoe_problem *p, const struct tune_point *point, const char *device,
                         const char *wanted)
{
    struct folder f;
    folder_make(&f);
    FILE *const file = fopen(folder_path(&f, "tuned.csv"), "w");
    assert_non_null(file);
    assert_true(tune_print(file, device, p, point) > 0);
    assert_int_equal(fclose(file), 0);
    const cmoe_context_options options = {
        .struct_size = sizeof options, .n_threads = 2, .tuned = folder_path(&f, "tuned.csv")};
    cmoe_context *ctx = NULL;
    cmoe_device *dev = NULL;
    cmoe_plan *plan = NULL;
    char path[CLI_PATH_TEXT];
    expect_ok(cmoe_context_create(&options, &ctx));
    expect_ok(cmoe_device_open(ctx, "cpu", &dev));
    expect_ok(cmoe_plan_create(dev, p, NULL, NULL, &plan));
    cmoe_plan_path(plan, 1, path, sizeof path);
    assert_string_equal(path, wanted);
    /* Lines have three decimals. */
    assert_true(fabs(cmoe_plan_estimate(plan, 1) - fastest) < 0.01);
    cmoe_plan_destroy(plan);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
    folder_remove(&f);
}

static void the_fastest_chain_is_taken(void **state)
{
    struct rig *const rig = *state;
    struct tune_point *const point = malloc(sizeof *point);
    char device[64];
    assert_non_null(point);
    for (size_t i = 0; i < sizeof problems / sizeof *problems; i++) {
        const cmoe_problem p = test_problem(problems[i]);
        find_chains(rig->cpu, &p, point, device, sizeof device);
        assert_true(point->n > 8 && point->n < TUNE_CHAINS);
        for (int best = 0; best < point->n; best++) {
            make_times(point, best);
            expect_taken(&p, point, device, point->chain[best].path);
            assert_ptr_equal(tune_best(point), &point->chain[best]);
        }
    }
    free(point);
}

static void chains_make_pins(void **state)
{
    (void)state;
    char pin[32];
    tune_pin("a__ref > b__ref > c__ref", pin, sizeof pin);
    assert_string_equal(pin, "a__ref,b__ref,c__ref");
    tune_pin("a__ref", pin, sizeof pin);
    assert_string_equal(pin, "a__ref");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_fastest_chain_is_taken),
        cmocka_unit_test(chains_make_pins),
    };
    return cmocka_run_group_tests(tests, rig_setup, rig_teardown);
}
