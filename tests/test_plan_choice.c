/* SPDX-License-Identifier: MIT
 * What a plan takes and why: pins, buckets, weight formats by regret, tuned times, explain. */
#include "harness_call.h"
#include "harness_files.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT = 1 << 16 };
static const char layer[] = "t=256 e=8 k=2 h=64 i=96 scheme=bf16";

static cmoe_plan *make_plan(cmoe_device *dev, const char *problem, const char *pin)
{
    const cmoe_problem p = test_problem(problem);
    const cmoe_plan_options options = {.struct_size = sizeof options, .pin = pin};
    cmoe_plan *plan = NULL;
    expect_ok(cmoe_plan_create(dev, &p, NULL, &options, &plan));
    return plan;
}

static void expect_path(const cmoe_plan *plan, int tokens, const char *part, bool wanted)
{
    char path[512];
    cmoe_plan_path(plan, tokens, path, sizeof path);
    if ((strstr(path, part) != NULL) != wanted) {
        fail_with("path for %d tokens is \"%s\", which %s \"%s\"", tokens, path,
                  wanted ? "lacks" : "has", part);
    }
}

/* --- pins ---------------------------------------------------------------------------------------*/

static void expect_pin_error(cmoe_device *dev, const char *problem, const char *pin,
                             const char *part)
{
    const cmoe_problem p = test_problem(problem);
    const cmoe_plan_options options = {.struct_size = sizeof options, .pin = pin};
    cmoe_plan *plan = (cmoe_plan *)&options;
    expect_error(cmoe_plan_create(dev, &p, NULL, &options, &plan), CMOE_ERR_INVALID, part);
    assert_null(plan);
}

static void pins(void **state)
{
    struct rig *const rig = *state;
    cmoe_plan *plan = make_plan(rig->cpu, layer, "gemm1_xfloat_wfloat_2x4__generic");
    expect_path(plan, 256, "gemm1_xfloat_wfloat_2x4__generic", true);
    expect_path(plan, 1, "gemm1_xfloat_wfloat_2x4__generic", true);
    cmoe_plan_destroy(plan);

    /* A glob, and a list of them: nothing else covers a stage that they cover. */
    plan = make_plan(rig->cpu, layer, "*__generic");
    for (int tokens = 1; tokens <= 256; tokens *= 2) {
        expect_path(plan, tokens, "avx", false);
        expect_path(plan, tokens, "__generic", true);
    }
    cmoe_plan_destroy(plan);
    plan = make_plan(rig->cpu, layer, "combine__generic,act__ref,gemm1__ref");
    expect_path(plan, 64, "gemm1__ref > act__ref > ", true);
    expect_path(plan, 64, "combine__generic", true);
    cmoe_plan_destroy(plan);

    expect_pin_error(rig->cpu, layer, "gemm3_*", "gemm3_*");
    expect_pin_error(rig->ref, layer, "combine__generic", "combine__generic");
    expect_pin_error(rig->cpu, "t=8 e=4 k=2 h=32 i=32 scheme=fp8-token",
                     "gemm1_xfloat_wfloat_2x4__generic", "cannot be used");
    expect_pin_error(rig->cpu, "t=8 e=4 k=2 h=32 i=32 stages=sort", "combine__generic",
                     "combine__generic");
}

/* --- explain ------------------------------------------------------------------------------------*/

static void explain_names_every_row(void **state)
{
    struct rig *const rig = *state;
    static char text[TEXT], again[TEXT];
    static const char *const problems[] = {layer, "t=8 e=4 k=2 h=32 i=32 scheme=nvfp4-w4a4"};
    for (int i = 0; i < 2; i++) {
        cmoe_plan *const plan = make_plan(rig->cpu, problems[i], NULL);
        const int n = cmoe_plan_explain(plan, 4, text, sizeof text);
        assert_in_range(n, 100, sizeof text - 1);
        assert_int_equal(strlen(text), n);
        cmoe_kernel_info info;
        for (int row = 0; cmoe_kernel_describe(row, &info); row++) {
            const char *const at = strstr(text, info.name);
            if (!at) fail_with("explain does not mention %s", info.name);
            /* A cost, or a reason, behind the name. */
            const char *rest = at + strlen(info.name);
            rest += strspn(rest, " ");
            if (*rest == '\n' || *rest == '\0')
                fail_with("explain gives no reason for %s", info.name);
        }
        /* snprintf's rules */
        assert_int_equal(cmoe_plan_explain(plan, 4, NULL, 0), n);
        memset(again, 'x', sizeof again);
        assert_int_equal(cmoe_plan_explain(plan, 4, again, 50), n);
        assert_int_equal(strlen(again), 49);
        assert_memory_equal(again, text, 49);
        assert_int_equal(again[50], 'x');
        /* every bucket */
        assert_true(cmoe_plan_explain(plan, 0, text, sizeof text) > 0);
        const int buckets = i == 0 ? 9 : 4;
        for (int b = 0; b < buckets; b++) {
            char line[32];
            snprintf(line, sizeof line, "tokens <= %d:", 1 << b);
            assert_non_null(strstr(text, line));
        }
        cmoe_plan_destroy(plan);
    }
}

/* --- buckets ------------------------------------------------------------------------------------*/

static void few_tokens_take_one_fork(void **state)
{
    struct rig *const rig = *state;
    static const char *const formats[] = {"canonical", "p32"};
    const cmoe_problem p = test_problem(layer);
    for (int i = 0; i < 2; i++) {
        const cmoe_plan_options options = {
            .struct_size = sizeof options, .format1 = formats[i], .format2 = formats[i]};
        cmoe_plan *plan = NULL;
        expect_ok(cmoe_plan_create(rig->cpu, &p, NULL, &options, &plan));
        assert_string_equal(cmoe_plan_weight_format(plan, 1), formats[i]);
        assert_string_equal(cmoe_plan_weight_format(plan, 2), formats[i]);
        expect_path(plan, 1, "moe_", true);
        expect_path(plan, 1, " > ", false);
        expect_path(plan, 256, "moe_", false);
        cmoe_plan_destroy(plan);
    }
    cmoe_plan *const plan = make_plan(rig->cpu, "t=4 e=4 k=2 h=32 i=32 stages=sort..act", NULL);
    assert_string_equal(cmoe_plan_weight_format(plan, 2), "none");
    cmoe_plan_destroy(plan);
}

/* --- tuned times and formats --------------------------------------------------------------------*/

/* A context whose tuned table is `text`; %s of a line's first two fields are filled in by us. */
static void with_table(const char *text, cmoe_context **ctx, cmoe_device **dev)
{
    struct folder f;
    folder_make(&f);
    folder_text(&f, "tuned.csv", text);
    const cmoe_context_options options = {
        .struct_size = sizeof options, .n_threads = 2, .tuned = folder_path(&f, "tuned.csv")};
    expect_ok(cmoe_context_create(&options, ctx));
    expect_ok(cmoe_device_open(*ctx, "cpu", dev));
    folder_remove(&f);
}

struct table {
    char text[8192];
    size_t n;
};

static void add_line(struct table *t, const cmoe_problem *p, const char *isa, int tokens,
                     const char *kernel, double us)
{
    t->n += (size_t)snprintf(t->text + t->n, sizeof t->text - t->n,
                             "cpu-%s-2t,%016" PRIx64 ",%d,%s,%.4f\n", isa, cmoe_problem_hash(p),
                             tokens, kernel, us);
}

/* Fabricated times: canonical is ten times faster up to 8 tokens, p32 ten times faster above. */
static void fabricate(struct table *t, const cmoe_problem *p, const char *isa)
{
    t->n = 0;
    for (int tokens = 1; tokens <= p->max_tokens; tokens *= 2) {
        const bool few = tokens <= 8;
        add_line(t, p, isa, tokens, "gemm1_xfloat_wfloat_2x4__generic", few ? 1 : 10);
        add_line(t, p, isa, tokens, "gemm1_xfloat_wfloat_p32_4x8__generic", few ? 10 : 1);
    }
}

static void table_device(struct rig *rig, char *isa, size_t len)
{
    cmoe_device_info info = {.struct_size = sizeof info};
    cmoe_device_describe(rig->cpu, &info);
    snprintf(isa, len, "%s", info.isa);
}

static const char *chosen_format(cmoe_device *dev, const cmoe_problem *p, const double *weight,
                                 int n, char *text)
{
    const cmoe_plan_options options = {.struct_size = sizeof options,
                                       .pin = "gemm1_xfloat_wfloat*__generic",
                                       .bucket_weight = weight,
                                       .n_bucket_weight = n};
    cmoe_plan *plan = NULL;
    expect_ok(cmoe_plan_create(dev, p, NULL, &options, &plan));
    cmoe_plan_explain(plan, 0, text, TEXT);
    const char *const format =
        strcmp(cmoe_plan_weight_format(plan, 1), "p32") == 0 ? "p32" : "canonical";
    assert_string_equal(cmoe_plan_weight_format(plan, 1), format);
    cmoe_plan_destroy(plan);
    return format;
}

static void bucket_weights_choose_the_format(void **state)
{
    struct rig *const rig = *state;
    static struct table table;
    static char decode[TEXT], prefill[TEXT];
    const cmoe_problem p = test_problem("t=64 e=8 k=2 h=64 i=96 stages=gemm1 scheme=bf16");
    char isa[64];
    table_device(rig, isa, sizeof isa);
    fabricate(&table, &p, isa);
    cmoe_context *ctx;
    cmoe_device *dev;
    with_table(table.text, &ctx, &dev);
    static const double few[7] = {1, 1, 1, 1, 0, 0, 0}, many[7] = {0, 0, 0, 0, 1, 1, 1};
    assert_string_equal(chosen_format(dev, &p, few, 7, decode), "canonical");
    assert_string_equal(chosen_format(dev, &p, many, 7, prefill), "p32");
    /* log(10) is lost where the other format would have been ten times faster. */
    assert_non_null(strstr(decode, "regret of the weight formats 2.303"));
    assert_non_null(strstr(decode, "regret of the weight formats 0.000"));
    assert_string_not_equal(decode, prefill);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
}

static void tuned_times_decide(void **state)
{
    struct rig *const rig = *state;
    static struct table table;
    const cmoe_problem p = test_problem("t=64 e=8 k=2 h=64 i=96 scheme=bf16");
    char isa[64];
    table_device(rig, isa, sizeof isa);
    table.n = 0;
    add_line(&table, &p, isa, 64, "act__ref", 0.001);
    add_line(&table, &p, isa, 64, "no_such_row", 0.001);
    add_line(&table, &p, isa, 128, "combine__ref", 0.001); /* beyond max_tokens */
    table.n += (size_t)snprintf(table.text + table.n, sizeof table.text - table.n,
                                "garbage\n,,,,\n\r\ncpu-%s-2t,0,64,combine__ref,1\n"
                                "cpu-%s-2t,%016" PRIx64 ",64,combine__ref,-1\r\n"
                                "cpu-%s-2t,%016" PRIx64 ",64,combine__ref,1e-9",
                                isa, isa, cmoe_problem_hash(&p), isa, cmoe_problem_hash(&p));
    cmoe_context *ctx;
    cmoe_device *dev;
    with_table(table.text, &ctx, &dev);
    cmoe_plan *plan = NULL;
    expect_ok(cmoe_plan_create(dev, &p, NULL, NULL, &plan));
    expect_path(plan, 64, "act__ref", true);
    expect_path(plan, 64, "combine__ref", false);
    expect_path(plan, 32, "act__ref", false);
    const double measured = cmoe_plan_estimate(plan, 64);
    cmoe_plan_destroy(plan);
    const cmoe_plan_options ignore = {.struct_size = sizeof ignore, .ignore_tuned = 1};
    expect_ok(cmoe_plan_create(dev, &p, NULL, &ignore, &plan));
    expect_path(plan, 64, "act__ref", false);
    const double estimated = cmoe_plan_estimate(plan, 64);
    assert_true(measured > 0 && measured < estimated);
    assert_true(estimated > cmoe_plan_estimate(plan, 32) && cmoe_plan_estimate(NULL, 64) == 0);
    cmoe_plan_destroy(plan);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
}

/* A layer whose arithmetic is nothing: what waking threads costs is in every row that does it. */
static void tiny_layers_avoid_the_reference(void **state)
{
    struct rig *const rig = *state;
    static const char *const schemes[] = {"int8-w8a8", "int4-w4a8", "mxfp4-w4a8", "fp8-token"};
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        char problem[128];
        snprintf(problem, sizeof problem, "t=4 e=8 k=2 h=64 i=32 scheme=%s", schemes[i]);
        cmoe_plan *const plan = make_plan(rig->cpu, problem, NULL);
        expect_path(plan, 1, "__ref", false);
        for (int tokens = 2; tokens <= 4; tokens++) {
            expect_path(plan, tokens, "gemm1__ref", false);
            expect_path(plan, tokens, "gemm2__ref", false);
        }
        cmoe_plan_destroy(plan);
    }
}

static void unknown_formats(void **state)
{
    struct rig *const rig = *state;
    const cmoe_problem p = test_problem(layer);
    const cmoe_plan_options options = {.struct_size = sizeof options, .format1 = "p33"};
    cmoe_plan *plan = NULL;
    assert_int_not_equal(cmoe_plan_create(rig->cpu, &p, NULL, &options, &plan), CMOE_OK);
    assert_non_null(strstr(cmoe_last_error(), "p33"));
    assert_null(plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pins),
        cmocka_unit_test(explain_names_every_row),
        cmocka_unit_test(few_tokens_take_one_fork),
        cmocka_unit_test(bucket_weights_choose_the_format),
        cmocka_unit_test(tuned_times_decide),
        cmocka_unit_test(tiny_layers_avoid_the_reference),
        cmocka_unit_test(unknown_formats),
    };
    return cmocka_run_group_tests(tests, rig_setup, rig_teardown);
}
