/* SPDX-License-Identifier: MIT
 * ctest: labels=kernels cost=20
 * Every row of the cpu backend writes the same bits with 1, 2, 3 and 7 threads, and with packed weights
 * divided among two memory nodes, on the first few problems of problems.def that it runs. */
#include "harness_call.h"

#include <stdlib.h>
#include <string.h>

static const char *const problems[] = {
#define PROBLEM(text) text,
#include "cli/problems.def"
#undef PROBLEM
};
static const struct {
    int threads, nodes;
} machines[] = {{1, 1}, {2, 1}, {3, 1}, {7, 1}, {1, 2}, {2, 2}, {3, 2}, {7, 2}};
enum {
    PROBLEMS = sizeof problems / sizeof problems[0],
    COUNTS = sizeof machines / sizeof machines[0],
    MOST_ROWS = 512,
    CASES = 3, /* a row */
};

struct devices {
    cmoe_context *ctx[COUNTS];
    cmoe_device *dev[COUNTS];
};

/* All outputs of a call one after another; NULL `to`: only their size. */
static size_t gather(const struct gen_call *call, unsigned char *to)
{
    struct gen_span span;
    size_t n = 0;
    for (int i = 0; gen_span_at(call, i, &span); i++) {
        if (span.input) continue;
        if (to) memcpy(to + n, span.data, span.size);
        n += span.size;
    }
    return n;
}

/* Whether the plan with the row pinned runs it; outputs in `to`. */
static bool run(cmoe_device *dev, struct gen_call *call, const char *row, unsigned char *to)
{
    const cmoe_plan_options options = {.struct_size = sizeof options, .pin = row};
    char path[1024];
    cmoe_plan *plan;
    cmoe_weights *w = NULL;
    if (cmoe_plan_create(dev, &call->problem, NULL, &options, &plan) != CMOE_OK) return false;
    cmoe_plan_path(plan, call->tensors.n_tokens, path, sizeof path);
    const bool runs = strstr(path, row) != NULL;
    if (runs) {
        const size_t size = cmoe_plan_workspace_size(plan);
        void *const workspace = aligned_alloc(256, (size + 511) / 256 * 256);
        assert_non_null(workspace);
        memset(workspace, 0x7f, size);
        gen_call_reset(call);
        expect_ok(call_weights(dev, call, plan, &w));
        cmoe_tensors t = call->tensors;
        t.weights = w;
        expect_ok(cmoe_execute(plan, &t, workspace, size, NULL));
        gather(call, to);
        free(workspace);
    }
    cmoe_plan_destroy(plan);
    cmoe_weights_destroy(w);
    return runs;
}

static bool check_row(const struct devices *d, struct gen_call *call, const char *row)
{
    const size_t n = gather(call, NULL);
    unsigned char *const first = malloc(2 * n + 1), *const again = first + n;
    assert_non_null(first);
    const bool runs = run(d->dev[0], call, row, first);
    for (int i = 1; runs && i < COUNTS; i++) {
        assert_true(run(d->dev[i], call, row, again));
        if (memcmp(first, again, n) != 0) {
            char line[512];
            cmoe_problem_print(&call->problem, line, sizeof line);
            fail_with("%s: %d threads on %d nodes change the bits of \"%s\"", row,
                      machines[i].threads, machines[i].nodes, line);
        }
    }
    free(first);
    return runs;
}

static void run_problem(const struct devices *d, const char *text, int *cases)
{
    const cmoe_problem p = test_problem(text);
    const struct gen_options options = {.kind = GEN_REAL, .seed = test_seed()};
    const int most = test_short() ? 1 : CASES;
    struct gen_call call;
    cmoe_kernel_info info;
    expect_ok(gen_call_create(&p, &options, &call));
    for (int row = 0; cmoe_kernel_describe(row, &info); row++) {
        if (info.conversion || strcmp(info.backend, "cpu") != 0 || cases[row] == most) continue;
        if (!cmoe_kernel_supports(row, d->dev[0], &p, NULL, 0)) continue;
        cases[row] += check_row(d, &call, info.name);
    }
    gen_call_free(&call);
}

static void thread_counts_do_not_matter(void **state)
{
    (void)state;
    static int cases[MOST_ROWS];
    struct devices d;
    cmoe_kernel_info info;
    const cmoe_problem tiny = test_problem("t=1 e=1 k=1 h=32 i=32");
    for (int i = 0; i < COUNTS; i++) {
        const cmoe_context_options options = {.n_threads = machines[i].threads,
                                              .nodes = machines[i].nodes};
        expect_ok(cmoe_context_create(&options, &d.ctx[i]));
        d.dev[i] = test_device(d.ctx[i], "cpu");
    }
    for (int i = 0; i < PROBLEMS; i++)
        run_problem(&d, problems[i], cases);
    for (int row = 0; cmoe_kernel_describe(row, &info); row++) {
        char why[160] = "";
        assert_true(row < MOST_ROWS);
        if (info.conversion || strcmp(info.backend, "cpu") != 0 || cases[row] > 0) continue;
        if (cmoe_kernel_supports(row, d.dev[0], &tiny, why, sizeof why) || !strstr(why, "needs "))
            fail_with("%s ran on none of the problems (%s)", info.name, why);
    }
    for (int i = 0; i < COUNTS; i++) {
        cmoe_device_close(d.dev[i]);
        cmoe_context_destroy(d.ctx[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(thread_counts_do_not_matter)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
