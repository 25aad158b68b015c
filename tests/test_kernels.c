/* SPDX-License-Identifier: MIT
 * ctest: labels=kernels,portable cost=80
 * Every kernel row on every problem of problems.def that it supports, with exact inputs (equal
 * results) and real ones (within the bound); and what the table of rows promises about itself.
 * Rows that convert a sort format cover no stage: test_sort_import runs them. */
#include "harness_call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const problems[] = {
#define PROBLEM(text) text,
#include "cli/problems.def"
#undef PROBLEM
};
enum { PROBLEMS = sizeof problems / sizeof problems[0], MOST_ROWS = 512, LEAST_CASES = 4 };

struct tally {
    int cases[2]; /* by gen_kind */
    int mistrusted;
};

static int rows_total(void)
{
    cmoe_kernel_info info;
    int n = 0;
    while (cmoe_kernel_describe(n, &info)) {
        n++;
    }
    return n;
}

/* NULL: a backend whose memory is not the host's; `cmoe check` runs its rows where there is one. */
static cmoe_device *device_of(struct rig *rig, const cmoe_kernel_info *info)
{
    if (strcmp(info->backend, "ref") == 0) return test_lowered() ? NULL : rig->ref;
    return strcmp(info->backend, "cpu") == 0 ? rig->cpu : NULL;
}

/* Whether this machine can run the row at all: else the device's refusal names the instructions. */
static bool runs_here(struct rig *rig, int row, const cmoe_kernel_info *info)
{
    char why[160] = "";
    const cmoe_problem p = test_problem("t=1 e=1 k=1 h=32 i=32");
    cmoe_device *const dev = device_of(rig, info);
    if (!dev) return false;
    return cmoe_kernel_supports(row, dev, &p, why, sizeof why) || !strstr(why, "needs ");
}

static void run_row(struct rig *rig, int row, const struct prepared *prepared, struct tally *tally)
{
    cmoe_kernel_info info;
    cmoe_kernel_describe(row, &info);
    cmoe_device *const dev = device_of(rig, &info);
    const cmoe_problem *const p = &prepared->call.problem;
    if (info.conversion || !dev || !cmoe_kernel_supports(row, dev, p, NULL, 0)) return;
    const struct outcome out = call_run(rig, prepared, dev, info.name);
    if (out.kind == OUTCOME_WRONG) {
        const struct gen_options options = {.kind = prepared->kind, .seed = test_seed()};
        char repro[1024];
        call_repro(p, &options, repro, sizeof repro);
        fail_with("%s\n  %s\n  %s: %s", info.name, repro, out.path, out.why);
    }
    /* A row for few tokens may be refused in the bucket that these tokens fall in. */
    if (out.kind == OUTCOME_REFUSED || !strstr(out.path, info.name)) return;
    tally->cases[prepared->kind]++;
    tally->mistrusted += out.kind == OUTCOME_MISTRUSTED;
}

static void run_problem(struct rig *rig, const cmoe_problem *p, enum gen_kind kind, int rows,
                        struct tally *tallies)
{
    const char *why;
    if (kind == GEN_EXACT && !gen_exact_possible(p, &why)) return;
    const struct gen_options options = call_options(&rig->guard, kind, test_seed());
    struct prepared prepared;
    expect_ok(call_prepare(rig, p, &options, &prepared));
    static int turn;
    turn++;
    for (int row = 0; row < rows; row++) {
        if (test_short() && tallies[row].cases[kind] > 0 && (row + turn) % 5 != 0) continue;
        run_row(rig, row, &prepared, &tallies[row]);
    }
    call_done(&prepared);
}

/* Rows that ran too little or proved too little, each said. */
static int insufficient(struct rig *rig, int rows, const struct tally *tallies)
{
    int n = 0;
    const int least = test_short() ? 1 : LEAST_CASES;
    for (int row = 0; row < rows; row++) {
        cmoe_kernel_info info;
        cmoe_kernel_describe(row, &info);
        const struct tally *const t = &tallies[row];
        if (info.conversion || (test_lowered() && strcmp(info.backend, "ref") == 0)) continue;
        if (!runs_here(rig, row, &info)) {
            print_message("NOT RUN: %s needs %s, which this machine lacks or CMOE_CPU hides\n",
                          info.name, info.target);
            continue;
        }
        const bool enough = t->cases[GEN_REAL] >= least && t->cases[GEN_EXACT] >= least;
        const bool trusted = 2 * t->mistrusted <= t->cases[GEN_REAL] + t->cases[GEN_EXACT];
        if (enough && trusted) continue;
        n++;
        print_error("%s: %d real and %d exact cases, %d of them mistrusted\n", info.name,
                    t->cases[GEN_REAL], t->cases[GEN_EXACT], t->mistrusted);
    }
    return n;
}

/* Whether a problem's other kind of inputs is needed: preparing it costs more than running a row. */
static bool wanted(struct rig *rig, const cmoe_problem *p, int kind, int rows,
                   const struct tally *tallies)
{
    for (int row = 0; row < rows; row++) {
        cmoe_kernel_info info;
        cmoe_kernel_describe(row, &info);
        cmoe_device *const dev = device_of(rig, &info);
        if (!test_short()) return true;
        if (!info.conversion && dev && tallies[row].cases[kind] == 0 &&
            cmoe_kernel_supports(row, dev, p, NULL, 0))
            return true;
    }
    return false;
}

static void every_row(void **state)
{
    call_report_faults();
    struct rig *const rig = *state;
    static struct tally tallies[MOST_ROWS];
    const int rows = rows_total();
    assert_in_range(rows, 1, MOST_ROWS);
    for (int i = 0; i < PROBLEMS; i++) {
        const cmoe_problem p = test_problem(problems[i]);
        if (p.last != CMOE_STAGE_COMBINE || p.first > CMOE_STAGE_SORT) continue;
        for (int kind = 0; kind < 2; kind++) {
            if (i % 6 == 3 * kind || wanted(rig, &p, kind, rows, tallies))
                run_problem(rig, &p, (enum gen_kind)kind, rows, tallies);
        }
    }
    assert_int_equal(insufficient(rig, rows, tallies), 0);
}

static void names_and_intervals(void **state)
{
    (void)state;
    cmoe_kernel_info a, b;
    for (int i = 0; cmoe_kernel_describe(i, &a); i++) {
        assert_non_null(a.name);
        assert_true(a.name[0] != '\0' && !strpbrk(a.name, " ,*?["));
        assert_true(a.first <= a.last && a.last < CMOE_STAGE_COUNT);
        for (int j = 0; j < i; j++) {
            cmoe_kernel_describe(j, &b);
            assert_string_not_equal(a.name, b.name);
        }
    }
    assert_int_equal(cmoe_kernel_describe(rows_total(), &a), 0);
    assert_int_equal(cmoe_kernel_describe(-1, &a), 0);
}

/* ref plans every stage alone. */
static void check_stages(struct rig *rig, const cmoe_problem *p)
{
    for (int stage = p->first; stage <= p->last; stage++) {
        cmoe_problem one = *p;
        one.first = one.last = (uint8_t)stage;
        cmoe_plan *plan = NULL;
        if (cmoe_problem_check(&one) != CMOE_OK) continue;
        const cmoe_status status = cmoe_plan_create(rig->ref, &one, NULL, NULL, &plan);
        if (status != CMOE_OK) {
            char text[512];
            cmoe_problem_print(&one, text, sizeof text);
            fail_with("ref has no plan for \"%s\": %s", text, cmoe_last_error());
        }
        cmoe_plan_destroy(plan);
    }
}

static void ref_covers_everything(void **state)
{
    struct rig *const rig = *state;
    for (int i = 0; i < PROBLEMS; i++) {
        const cmoe_problem p = test_problem(problems[i]);
        check_stages(rig, &p);
    }
    for (uint64_t seed = 0; seed < 2000; seed++) {
        cmoe_problem p;
        gen_problem(test_seed() + seed, &p);
        check_stages(rig, &p);
    }
    /* every sort format that a plan can begin with, and batched rows */
    static const char *const formats[] = {"sort=index", "sort=packed bm=16", "sort=flat bm=4",
                                          "sort=m-indices", "cap=5 sort=batched"};
    for (int i = 0; i < 5; i++) {
        char text[128];
        snprintf(text, sizeof text, "t=4 e=4 k=2 h=32 i=16 stages=gemm1..combine %s", formats[i]);
        cmoe_problem p = test_problem(text);
        if (p.sort_format == CMOE_SORT_M_INDICES) p.topk = 1;
        expect_ok(cmoe_problem_check(&p));
        check_stages(rig, &p);
    }
}

/* cmoe_reference's y and bounds of a problem, *n of each; the caller frees them. */
static double *expected_of(struct rig *rig, const char *text, size_t *n)
{
    const cmoe_problem p = test_problem(text);
    const struct gen_options options = {.kind = GEN_REAL, .seed = 1};
    struct prepared made;
    expect_ok(call_prepare(rig, &p, &options, &made));
    *n = (size_t)(made.call.y_rows * p.hidden);
    double *const out = malloc(2 * *n * sizeof *out);
    assert_non_null(out);
    memcpy(out, made.want, *n * sizeof *out);
    memcpy(out + *n, made.bound, *n * sizeof *out);
    call_done(&made);
    return out;
}

/* A sum of e4m3 may lose more under one scale a row; what it should be stays, and so does any other bound. */
static void fast_sums_widen_bounds_under_one_scale(void **state)
{
    struct rig *const rig = *state;
    static const char *const schemes[] = {"fp8-token", "fp8-tensor", "fp8-block", "bf16"};
    for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++) {
        char plain[128], fast[160];
        size_t n = 0, same = 0, wider = 0;
        snprintf(plain, sizeof plain, "t=3 e=2 k=1 h=640 i=512 scheme=%s", schemes[i]);
        snprintf(fast, sizeof fast, "%s fastsums", plain);
        double *const a = expected_of(rig, plain, &n), *const b = expected_of(rig, fast, &n);
        assert_memory_equal(a, b, n * sizeof *a);
        for (size_t j = n; j < 2 * n; j++) {
            same += a[j] == b[j];
            wider += b[j] > 1.5 * a[j];
        }
        assert_int_equal(i < 2 ? wider : same, n);
        free(a);
        free(b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_intervals),
        cmocka_unit_test(fast_sums_widen_bounds_under_one_scale),
        cmocka_unit_test(ref_covers_everything),
        cmocka_unit_test(every_row),
    };
    return cmocka_run_group_tests(tests, rig_setup, rig_teardown);
}
