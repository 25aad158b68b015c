/* SPDX-License-Identifier: MIT
 * Refusals, presets and their documentation: each refusal is provoked and explained, what lies just
 * beside one is accepted, and docs/ lists exactly what the tables hold. */
#include "core/keys.h"
#include "core/problem_check.h"
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BASE "t=4 e=8 k=2 h=64 i=32 "

static const struct {
    const char *id, *text;
} refused[] = {
    {"P05", "lg=e4m3"},
    {"P05", "in=i8"},
    {"P05", "y=none"},
    {"P07", "t=-1"},
    {"P08", "h=0"},
    {"P09", "i=-3"},
    {"P10", "hpad=64"},
    {"P10", "hpad=-1"},
    {"P11", "ipad=32"},
    {"P12", "e=0 k=0"},
    {"P12", "e=1048577"},
    {"P13", "k=9"},
    {"P13", "k=-1"},
    {"P14", "shared=-1"},
    {"P14", "shared=1048577"},
    {"P15", "first=8"},
    {"P15", "first=-1"},
    {"P16", "local=9"},
    {"P16", "first=4 local=5"},
    {"P16", "local=-1"},
    {"P16", "map local=1048577"},
    {"P17", "map first=1"},
    {"P18", "localids local=2"},
    {"P18", "localids map"},
    {"P18", "localids first=1"},
    {"P19", "stages=combine..route"},
    {"P20", "cap=3"},
    {"P20", "cap=-1"},
    {"P20", "sort=batched stages=gemm1"},
    {"P21", "sort=batched cap=4"},
    {"P22", "sort=batched cap=4 stages=quant..sort"},
    {"P23", "sort=packed"},
    {"P23", "sort=flat stages=quant..gemm1"},
    {"P24", "sort=m-indices stages=gemm1..combine"},
    {"P24", "sort=m-indices stages=gemm1..combine k=1 shared=1"},
    {"P25", "sort=packed stages=sort bm=0"},
    {"P25", "sort=flat stages=gemm1 bm=1025"},
    {"P26", "e=300 k=255 sort=packed stages=sort"},
    {"P27", "t=16777216 sort=packed stages=sort"},
    {"P28", "groups=4/0"},
    {"P28", "groups=-1/-1"},
    {"P29", "groups=3/2"},
    {"P30", "groups=2/3"},
    {"P31", "groups=4/1 k=3"},
    {"P32", "groups=8/2 gsum2"},
    {"P33", "topkfirst rbias"},
    {"P33", "topkfirst gsum2 groups=2/1"},
    {"P34", "hash groups=2/1"},
    {"P34", "hash topkfirst"},
    {"P34", "hash rbias"},
    {"P35", "route=all renorm"},
    {"P35", "route=all shared=1"},
    {"P35", "route=all groups=2/1"},
    {"P35", "route=all rx"},
    {"P36", "rx xq x=e4m3/token"},
    {"P37", "x=i4/token"},
    {"P37", "x=bf16/token"},
    {"P37", "x=e4m3"},
    {"P37", "x=e4m3/channel"},
    {"P37", "x=i8/mx32"},
    {"P38", "w=e2m1/g32"},
    {"P38", "w=i4/tensor"},
    {"P38", "w=i8"},
    {"P38", "w=e4m3/token"},
    {"P38", "w=e8m0"},
    {"P39", "mid=u8/token"},
    {"P39", "mid=e4m3/b128"},
    {"P39", "mid=none"},
    {"P41", "w=i4/g32:e8m0"},
    {"P41", "x=e4m3/g128:bf16"},
    {"P41", "w=e2m1/mx32:f32"},
    {"P41", "w=e2m1/nv16:f32"},
    {"P41", "w=e4m3/channel:bf16"},
    {"P41", "w=bf16/none:f16"},
    {"P42", "w=i4/g32:zp"},
    {"P42", "w=u8/tensor:zp"},
    {"P42", "x=i8/token:zp"},
    {"P43", "x=e4m3/token:static"},
    {"P43", "w=e4m3/tensor:static"},
    {"P43", "mid=e4m3/mx32:static"},
    {"P44", "x=e4m3/token:trunc"},
    {"P44", "x=e2m1/mx32:trunc"},
    {"P44", "x=e4m3/token:away"},
    {"P44", "w=i8/channel:trunc"},
    {"P45", "x=e4m3/token:even"},
    {"P45", "w=e2m1/nv16:down"},
    {"P46", "x=f16"},
    {"P46", "in=f32"},
    {"P47", "xq won=input x=e4m3/token"},
    {"P48", "xq x=i8/smooth"},
    {"P49", "noreduce sort=batched cap=3 stages=gemm1..combine"},
    {"P50", "acc=1 noreduce"},
    {"P50", "acc=-1 stages=gemm1"},
    {"P50", "acc=1 sort=batched cap=3 stages=gemm1..combine"},
    {"P51", "t=1073741824"},
    {"P51", "sort=batched cap=268435456 stages=gemm1"},
    {"P52", "t=1073741823 sort=flat stages=sort bm=1024"},
    {"P53", "t=1073741823 h=2147483647"},
    {"P54", "e=1048576 h=2147483647 i=2147483647"},
    {"P55", "sort=flat stages=act..combine"},
    {"P55", "sort=batched cap=4 stages=gemm2"},
    {"P56", "sort=m-indices stages=sort k=1"},
};

/* One step back from a refusal. */
static const char *const accepted[] = {
    "",
    "t=0",
    "k=0",
    "k=8",
    "e=1 k=1 h=1 i=1",
    "hpad=63 ipad=31",
    "e=1048576 h=1 i=1",
    "first=7",
    "first=4 local=4",
    "map local=12",
    "localids",
    "stages=combine",
    "sort=batched cap=4 stages=gemm1..combine",
    "sort=batched cap=4 stages=quant..combine",
    "sort=packed stages=route..sort bm=1",
    "sort=flat stages=gemm1..combine bm=1024",
    "sort=m-indices stages=gemm1..combine k=1",
    "e=300 k=254 sort=packed stages=sort",
    "t=16777215 sort=packed stages=sort",
    "groups=4/2 k=4 gsum2",
    "groups=8/2",
    "rbias gsum2 groups=2/1",
    "hash renorm tiehigh",
    "route=all k=8",
    "x=i8/g16 w=u4/g128:zp:f16 mid=e2m1/nv16:static",
    "x=e4m3/tensor:static w=e5m2/mx32 mid=i8/smooth:trunc",
    "x=e2m1/mx32:even w=e2m1/mx32:down mid=e2m1/nv16:away",
    "x=f16 in=f16 w=bf16 mid=f32 y=f32",
    "x=e4m3/token w=bf16",
    "xq x=i8/token won=gemm1",
    "rx",
    "acc=0.5",
    "noreduce",
    "gate=none act=swiglu-oai limit=-1",
    "gate=none act=relu2",
    "t=1073741823",
    "t=1 e=1 k=1 h=2147483647 i=1000000",
};

static const char *refusal_of(const cmoe_problem *p, cmoe_status *status)
{
    const char *id = "?";
    *status = cmoe__problem_check(p, &id);
    return id;
}

static void assert_refused(const cmoe_problem *p, const char *want, const char *text)
{
    cmoe_status status;
    const char *const id = refusal_of(p, &status);
    if (!id || strcmp(id, want) != 0) {
        fail_with("%s: refused by %s, expected %s (%s)", text, id ? id : "none", want,
                  id ? cmoe_last_error() : "");
    }
    /* The public function says the same, in a whole sentence. */
    assert_int_equal(cmoe_problem_check(p), status);
    const char *const message = cmoe_last_error();
    assert_true(strlen(message) > 20);
    assert_null(strchr(message, '?'));
    assert_true(strchr(message, '.') != NULL);
}

/* Fields that no string can set. */
static void broken_structs_are_refused(void **state)
{
    (void)state;
    const cmoe_problem good = test_problem(BASE);
    cmoe_problem p = good;
    p.struct_size = 1;
    assert_refused(&p, "P01", "struct_size");
    p = good;
    p.flags = 1U << 31;
    assert_refused(&p, "P03", "flags");
    static const size_t enums[] = {
        offsetof(cmoe_problem, router),        offsetof(cmoe_problem, act),
        offsetof(cmoe_problem, gate),          offsetof(cmoe_problem, weight_on),
        offsetof(cmoe_problem, first),         offsetof(cmoe_problem, last),
        offsetof(cmoe_problem, sort_format),   offsetof(cmoe_problem, x.dtype),
        offsetof(cmoe_problem, w.scaling),     offsetof(cmoe_problem, mid.rounding),
        offsetof(cmoe_problem, x.mx_rounding),
    };
    for (size_t i = 0; i < sizeof enums / sizeof enums[0]; i++) {
        p = good;
        ((uint8_t *)&p)[enums[i]] = 99;
        assert_refused(&p, "P02", "an enumeration");
    }
    static const size_t reserved[] = {
        offsetof(cmoe_problem, reserved[0]),
        offsetof(cmoe_problem, x.reserved),
        offsetof(cmoe_problem, w.reserved2),
        offsetof(cmoe_problem, mid.reserved),
    };
    for (size_t i = 0; i < sizeof reserved / sizeof reserved[0]; i++) {
        p = good;
        ((uint8_t *)&p)[reserved[i]] = 1;
        assert_refused(&p, "P04", "a reserved field");
    }
    static const size_t floats[] = {
        offsetof(cmoe_problem, renorm_eps),    offsetof(cmoe_problem, route_scale),
        offsetof(cmoe_problem, shared_weight), offsetof(cmoe_problem, act_limit),
        offsetof(cmoe_problem, act_alpha),     offsetof(cmoe_problem, act_beta),
        offsetof(cmoe_problem, act_lbeta),     offsetof(cmoe_problem, accumulate),
    };
    for (size_t i = 0; i < sizeof floats / sizeof floats[0]; i++) {
        const float bad = i % 2 ? NAN : INFINITY;
        p = good;
        memcpy((char *)&p + floats[i], &bad, sizeof bad);
        assert_refused(&p, "P06", "a number");
    }
    p = test_problem(BASE "x=e4m3/g64");
    p.x.group = 48;
    assert_refused(&p, "P40", "a group of 48");
    p = good;
    p.w.group = 32;
    assert_refused(&p, "P40", "a group without its scaling");
    p = test_problem(BASE "w=u8/g64:zp");
    p.w.zero = 2;
    assert_refused(&p, "P42", "zero of 2");
    expect_error(cmoe_problem_check(NULL), CMOE_ERR_INVALID, "NULL");
}

static void refused_combinations_say_why(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        char text[256];
        snprintf(text, sizeof text, BASE "%s", refused[i].text);
        const cmoe_problem p = test_problem(text);
        assert_refused(&p, refused[i].id, text);
    }
}

static void their_neighbours_are_accepted(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof accepted / sizeof accepted[0]; i++) {
        char text[256];
        snprintf(text, sizeof text, BASE "%s", accepted[i]);
        const cmoe_problem p = test_problem(text);
        expect_ok(cmoe_problem_check(&p));
    }
}

/* --- presets ------------------------------------------------------------------------------------*/

static void every_scheme_is_accepted(void **state)
{
    (void)state;
    static const char *const options[] = {
        "f32", "f16",  "bf16", "e5m2",    "fnuz",   "static", "zp",   "fp8",  "g16",  "g32",
        "g64", "g128", "up",   "channel", "tensor", "b128",   "down", "even", "ceil",
    };
    int n = 0, varied = 0;
    for (; cmoe_scheme_name(n); n++) {
        const cmoe_problem base = test_problem(BASE "renorm won=act");
        cmoe_problem p = base;
        expect_ok(cmoe_problem_scheme(&p, cmoe_scheme_name(n)));
        expect_ok(cmoe_problem_check(&p));
        for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
            char name[64];
            snprintf(name, sizeof name, "%s:%s", cmoe_scheme_name(n), options[i]);
            cmoe_problem q = base;
            if (cmoe_problem_scheme(&q, name) != CMOE_OK) {
                assert_non_null(strstr(cmoe_last_error(), options[i]));
                assert_non_null(strstr(cmoe_last_error(), cmoe_scheme_name(n)));
                continue;
            }
            varied++;
            expect_ok(cmoe_problem_check(&q));
            /* Nothing else than x, w, mid, in and y. */
            q.x = base.x, q.w = base.w, q.mid = base.mid, q.in = base.in, q.y = base.y;
            assert_memory_equal(&q, &base, offsetof(cmoe_problem, mid) + sizeof base.mid);
        }
    }
    assert_int_equal(n, 19);
    assert_in_range(varied, 80, 120);
}

static void options_do_what_they_say(void **state)
{
    (void)state;
    static const struct {
        const char *scheme, *want;
    } cases[] = {
        {"f16", "in=f16 y=f16 x=f16 w=f16 mid=f16"},
        {"fp8-tensor:static", "x=e4m3/tensor:static w=e4m3/tensor mid=e4m3/tensor:static"},
        {"fp8-block:fnuz,f32", "in=f32 y=f32 x=e4m3fnuz/g128 w=e4m3fnuz/b128 mid=e4m3fnuz/g128"},
        {"fp8-w8a16:b128:f16", "in=f16 y=f16 x=f16 w=e4m3/b128 mid=f16"},
        {"fp8-w8a16:tensor,e5m2", "w=e5m2/tensor"},
        {"int8-w8a16:zp", "w=u8/channel:zp"},
        {"int8-w8a16:g64", "w=i8/g64"},
        {"int4-w4a16:g64,zp", "w=u4/g64:zp"},
        {"int4-w4a16:channel", "w=i4/channel"},
        {"int4-w4a8:fp8,g128", "x=e4m3/token w=i4/g128 mid=e4m3/token"},
        {"mxfp4-w4a8:int8", "x=i8/token w=e2m1/mx32 mid=i8/token"},
        {"mxfp4-w4a8:static,int8,f16", "in=f16 y=f16 x=i8/token w=e2m1/mx32 mid=i8/token"},
        {"mxfp4-w4a4:even", "x=e2m1/mx32:even w=e2m1/mx32 mid=e2m1/mx32:even"},
        {"mxfp4-mxfp8:down", "x=e4m3/mx32:down w=e2m1/mx32 mid=e4m3/mx32:down"},
        {"nvfp4-w4a4:static", "x=e2m1/nv16:static w=e2m1/nv16 mid=e2m1/nv16:static"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cmoe_problem p = test_problem(BASE);
        expect_ok(cmoe_problem_scheme(&p, cases[i].scheme));
        char line[512];
        cmoe_problem_print(&p, line, sizeof line);
        assert_string_equal(line + strlen(BASE), cases[i].want);
    }
}

static void every_model_and_router_is_accepted(void **state)
{
    (void)state;
    int models = 0, routers = 0;
    for (; cmoe_model_name(models); models++) {
        /* Whatever was there before: a model means the same after any other. */
        cmoe_problem p = test_problem("t=77"), q = test_problem("t=77 shared=3 hpad=1");
        expect_ok(cmoe_problem_model(&p, cmoe_model_name(models)));
        expect_ok(cmoe_problem_check(&p));
        expect_ok(cmoe_problem_model(&q, "gpt-oss-20b"));
        expect_ok(cmoe_problem_model(&q, "deepseek-v2"));
        expect_ok(cmoe_problem_model(&q, cmoe_model_name(models)));
        assert_memory_equal(&p, &q, offsetof(cmoe_problem, mid) + sizeof p.mid);
        assert_int_equal(p.max_tokens, 77);
    }
    for (; cmoe_router_name(routers); routers++) {
        cmoe_problem p = test_problem("t=5 e=64 k=4 h=8 i=8 gate=none rx"), q = p;
        expect_ok(cmoe_problem_router(&p, cmoe_router_name(routers)));
        expect_ok(cmoe_problem_check(&p));
        expect_ok(cmoe_problem_router(&q, "llama4"));
        expect_ok(cmoe_problem_router(&q, "deepseek-v3"));
        expect_ok(cmoe_problem_router(&q, cmoe_router_name(routers)));
        assert_memory_equal(&p, &q, offsetof(cmoe_problem, mid) + sizeof p.mid);
        assert_true(p.flags & CMOE_ROUTE_FROM_X);
    }
    assert_int_equal(models, 16);
    assert_int_equal(routers, 14);
    const cmoe_problem p = test_problem("model=deepseek-v3-ep8");
    assert_int_equal(cmoe_problem_local_experts(&p), 32);
}

/* --- documentation ------------------------------------------------------------------------------*/

static char *read_doc(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/../docs/%s", CMOE_TEST_DIR, name);
    FILE *const file = fopen(path, "r");
    assert_non_null(file);
    char *const text = calloc(1, 1 << 17);
    assert_in_range(fread(text, 1, (1 << 17) - 1, file), 1, (1 << 17) - 2);
    fclose(file);
    return text;
}

static void assert_mentions(const char *text, const char *before, const char *name,
                            const char *after)
{
    char part[128];
    snprintf(part, sizeof part, "%s%s%s", before, name, after);
    if (!strstr(text, part)) fail_with("the documentation lacks %s", part);
}

static void docs_list_every_refusal(void **state)
{
    (void)state;
    static const struct {
        const char *id;
        cmoe_status status;
    } rows[] = {
#define REFUSAL(id, status, condition, ...) {#id, status},
#include "core/refusals.def"
#undef REFUSAL
    };
    static const char letters[] = {
        [CMOE_ERR_INVALID] = 'I', [CMOE_ERR_UNSUPPORTED] = 'U', [CMOE_ERR_OVERFLOW] = 'O'};
    char *const doc = read_doc("problem.md");
    const char *at = strstr(doc, "## Refusals");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char row[32];
        snprintf(row, sizeof row, "\n| %s | %c |", rows[i].id, letters[rows[i].status]);
        assert_non_null(at);
        at = strstr(at, "\n| P"); /* the next row is this refusal's */
        assert_non_null(at);
        if (strncmp(at, row, strlen(row)) != 0) {
            fail_with("docs/problem.md has \"%.20s\" where it should have \"%s\"", at + 1, row + 1);
        }
        at++;
        /* Provoked above, unless it is one of those that no string can provoke. */
        bool provoked = false;
        static const char *const by_struct[] = {"P01", "P02", "P03", "P04", "P06", "P40"};
        for (size_t j = 0; j < sizeof refused / sizeof refused[0]; j++) {
            provoked = provoked || strcmp(refused[j].id, rows[i].id) == 0;
        }
        for (size_t j = 0; j < sizeof by_struct / sizeof by_struct[0]; j++) {
            provoked = provoked || strcmp(by_struct[j], rows[i].id) == 0;
        }
        if (!provoked) fail_with("no test provokes %s", rows[i].id);
    }
    assert_null(strstr(at, "\n| P"));
    free(doc);
}

static void docs_list_every_name(void **state)
{
    (void)state;
    char *const problem = read_doc("problem.md"), *const schemes = read_doc("schemes.md");
    for (const struct cmoe_key *key = cmoe__keys; key->name; key++) {
        assert_mentions(problem, "`", key->name, "`");
        for (int i = 0; key->names && key->names[i]; i++) {
            if (key->names != cmoe__dtype_names) assert_mentions(problem, "", key->names[i], "");
        }
    }
    for (const struct cmoe_flag_name *f = cmoe__flag_names; f->name; f++) {
        assert_mentions(problem, "`", f->name, "` ");
    }
    for (int i = 0; cmoe_model_name(i); i++) {
        assert_mentions(problem, "\n| ", cmoe_model_name(i), " |");
    }
    for (int i = 0; cmoe_router_name(i); i++)
        assert_mentions(problem, "", cmoe_router_name(i), "");
    for (int i = 0; cmoe_scheme_name(i); i++) {
        assert_mentions(schemes, "\n| ", cmoe_scheme_name(i), " |");
        cmoe_problem p = test_problem(BASE);
        expect_ok(cmoe_problem_scheme(&p, cmoe_scheme_name(i)));
        char x[64], w[64], mid[64], row[256];
        cmoe__format_print(p.x, x, sizeof x);
        cmoe__format_print(p.w, w, sizeof w);
        cmoe__format_print(p.mid, mid, sizeof mid);
        snprintf(row, sizeof row, "\n| %s | %s | %s | %s |", cmoe_scheme_name(i), x, w, mid);
        assert_mentions(schemes, "", row, "");
    }
    free(problem);
    free(schemes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_structs_are_refused),
        cmocka_unit_test(refused_combinations_say_why),
        cmocka_unit_test(their_neighbours_are_accepted),
        cmocka_unit_test(every_scheme_is_accepted),
        cmocka_unit_test(options_do_what_they_say),
        cmocka_unit_test(every_model_and_router_is_accepted),
        cmocka_unit_test(docs_list_every_refusal),
        cmocka_unit_test(docs_list_every_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
