/* SPDX-License-Identifier: MIT
 * No combination without a golden: every scheme x activation x weight position, every router option
 * and preset must appear in tests/golden/manifest.txt. The lists are cmoe's own, so that whatever is
 * added to them is missed here until foreign code has computed it. */
#include "harness_golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN CMOE_TEST_DIR "/golden/"

struct covered {
    struct golden_list list;
    cmoe_problem *problems; /* of every case */
};

static int group_setup(void **out)
{
    struct covered *const all = calloc(1, sizeof *all);
    assert_non_null(all);
    golden_read(GOLDEN "manifest.txt", &all->list);
    all->problems = calloc((size_t)all->list.n, sizeof *all->problems);
    assert_non_null(all->problems);
    for (int64_t i = 0; i < all->list.n; i++)
        all->problems[i] = test_problem(all->list.cases[i].problem);
    *out = all;
    return 0;
}

static int group_teardown(void **state)
{
    struct covered *const all = *state;
    golden_free(&all->list);
    free(all->problems);
    free(all);
    return 0;
}

static bool same_format(cmoe_format a, cmoe_format b)
{
    return memcmp(&a, &b, sizeof a) == 0;
}

/* A layer golden of these formats, this activation (limited: with a clamp) and weight position. */
static bool has_layer(const struct covered *all, const cmoe_problem *want, bool limited)
{
    for (int64_t i = 0; i < all->list.n; i++) {
        const cmoe_problem *const p = &all->problems[i];
        if (all->list.cases[i].kind == GOLDEN_LAYER && same_format(p->x, want->x) &&
            same_format(p->w, want->w) && same_format(p->mid, want->mid) && p->act == want->act &&
            p->weight_on == want->weight_on && (p->act_limit > 0) == limited)
            return true;
    }
    return false;
}

static void every_layer_combination(void **state)
{
    const struct covered *const all = *state;
    int64_t n = 0, missing = 0;
    for (int i = 0; cmoe_scheme_name(i); i++) {
        for (int act = 0; act <= CMOE_ACTIVATION_COUNT; act++) {
            for (int on = 0; on < CMOE_WEIGHT_ON_COUNT; on++) {
                cmoe_problem want = test_problem("h=1 i=1");
                expect_ok(cmoe_problem_scheme(&want, cmoe_scheme_name(i)));
                const bool limited = act == CMOE_ACTIVATION_COUNT; /* silu with act_limit */
                want.act = (uint8_t)(limited ? CMOE_ACT_SILU : act);
                want.weight_on = (uint8_t)on;
                n++;
                expect_ok(cmoe_problem_check(&want));
                if (has_layer(all, &want, limited)) continue;
                char text[256];
                cmoe_problem_print(&want, text, sizeof text);
                fprintf(stderr, "no golden: %s%s\n", text, limited ? " limit" : "");
                missing++;
            }
        }
    }
    assert_true(n >= 19 * 9 * 4);
    if (missing > 0) fail_with("%lld layer combinations have no golden", (long long)missing);
}

/* What a router golden may show off beside its score function. */
struct option {
    const char *name;
    uint32_t flag; /* or */
    bool (*shown)(const cmoe_problem *p);
};

static bool shows_groups(const cmoe_problem *p)
{
    return p->groups > 0 && !(p->flags & CMOE_GROUP_SUM2);
}

static bool shows_scale(const cmoe_problem *p)
{
    return p->route_scale > 1;
}

static bool shows_eps(const cmoe_problem *p)
{
    return p->renorm_eps > 0 && (p->flags & CMOE_RENORMALIZE);
}

static bool shows_shared(const cmoe_problem *p)
{
    return p->shared > 0 && p->shared_weight < 1;
}

static bool shows_bf16(const cmoe_problem *p)
{
    return p->logits == CMOE_BF16;
}

static bool shows_f16(const cmoe_problem *p)
{
    return p->logits == CMOE_F16;
}

static bool shows_nothing(const cmoe_problem *p)
{
    return p->flags == 0 && p->groups == 0;
}

static const struct option options[] = {
    {"alone", 0, shows_nothing},
    {"renorm", CMOE_RENORMALIZE, NULL},
    {"topkfirst", CMOE_TOPK_FIRST, NULL},
    {"rbias", CMOE_ROUTE_BIAS, NULL},
    {"gsum2", CMOE_GROUP_SUM2, NULL},
    {"tiehigh", CMOE_TIE_HIGH, NULL},
    {"hash", CMOE_HASH, NULL},
    {"rx", CMOE_ROUTE_FROM_X, NULL},
    {"shsigmoid", CMOE_SHARED_SIGMOID, NULL},
    {"groups", 0, shows_groups},
    {"scale", 0, shows_scale},
    {"eps", 0, shows_eps},
    {"shared", 0, shows_shared},
    {"lg=bf16", 0, shows_bf16},
    {"lg=f16", 0, shows_f16},
};

static bool has_router(const struct covered *all, int router, const struct option *o)
{
    for (int64_t i = 0; i < all->list.n; i++) {
        const cmoe_problem *const p = &all->problems[i];
        if (all->list.cases[i].kind != GOLDEN_ROUTER || p->router != router) continue;
        if (o->shown ? o->shown(p) : (p->flags & o->flag) != 0) return true;
    }
    return false;
}

static void every_router_option(void **state)
{
    const struct covered *const all = *state;
    int missing = 0;
    for (int router = 0; router < CMOE_ROUTER_COUNT; router++) {
        if (router == CMOE_ROUTE_ALL) continue; /* no router: a layer golden shows it */
        for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
            if (has_router(all, router, &options[i])) continue;
            fprintf(stderr, "no golden: router %d with %s\n", router, options[i].name);
            missing++;
        }
    }
    assert_int_equal(missing, 0);
}

static bool mentions(const struct covered *all, enum golden_kind kind, const char *word)
{
    const size_t n = strlen(word);
    for (int64_t i = 0; i < all->list.n; i++) {
        if (all->list.cases[i].kind != kind) continue;
        const char *at = all->list.cases[i].problem;
        for (; (at = strstr(at, word)); at++)
            if (at[n] == ' ' || at[n] == '\0') return true;
    }
    return false;
}

static void every_router_preset(void **state)
{
    const struct covered *const all = *state;
    int n = 0;
    for (; cmoe_router_name(n); n++) {
        char word[64];
        snprintf(word, sizeof word, "router=%s", cmoe_router_name(n));
        if (!mentions(all, GOLDEN_ROUTER, word)) fail_with("no golden has %s", word);
    }
    assert_true(n >= 9);
    assert_true(mentions(all, GOLDEN_LAYER, "route=all"));
}

static void every_layer_option(void **state)
{
    const struct covered *const all = *state;
    static const char *const words[] = {
        "gate=interleaved", "gate=none",    "b1",     "b2",       "noreduce", "xq",     "joint",
        "midround",         "sort=batched", "map",    "shared=1", "acc=0.75", "hpad=5", "ipad=3",
        "first=1",          "in=f16",       "in=f32", "y=f16",
    };
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (!mentions(all, GOLDEN_LAYER, words[i])) fail_with("no golden has %s", words[i]);
}

static bool has_format(const struct covered *all, enum golden_kind kind, cmoe_format want)
{
    for (int64_t i = 0; i < all->list.n; i++) {
        const cmoe_format f = kind == GOLDEN_ROWS ? all->problems[i].x : all->problems[i].w;
        if (all->list.cases[i].kind == kind && f.dtype == want.dtype && f.scaling == want.scaling &&
            f.zero == want.zero && f.fixed == want.fixed)
            return true;
    }
    return false;
}

/* Every element type under every scaling that a problem may ask for, with and without zero points or
 * a static scale, has been quantised by foreign code. Smoothing multiplies and then is `token`. */
static void every_quantiser(void **state)
{
    const struct covered *const all = *state;
    int n = 0, missing = 0;
    for (int i = 0; i < CMOE_DTYPE_COUNT * CMOE_SCALING_COUNT * 4; i++) {
        const bool more = i & 1, weight = i & 2;
        cmoe_format f = {.dtype = (uint8_t)(i / 4 / CMOE_SCALING_COUNT),
                         .scaling = (uint8_t)(i / 4 % CMOE_SCALING_COUNT)};
        if (f.scaling == CMOE_SCALE_NONE || f.scaling == CMOE_SCALE_SMOOTH) continue;
        if (f.scaling == CMOE_SCALE_GROUP) f.group = 32;
        if (weight)
            f.zero = more;
        else
            f.fixed = more;
        cmoe_problem p = test_problem("h=1 i=1");
        *(weight ? &p.w : &p.x) = f;
        if (cmoe_problem_check(&p) != CMOE_OK) continue;
        n++;
        if (has_format(all, weight ? GOLDEN_MATRIX : GOLDEN_ROWS, f)) continue;
        fprintf(stderr, "no golden: %s of %s scaling %d, zero %d, static %d\n",
                weight ? "weights" : "rows", cmoe_dtype_name((cmoe_dtype)f.dtype), f.scaling,
                f.zero, f.fixed);
        missing++;
    }
    assert_true(n >= 40);
    assert_int_equal(missing, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layer_combination), cmocka_unit_test(every_router_option),
        cmocka_unit_test(every_router_preset),     cmocka_unit_test(every_layer_option),
        cmocka_unit_test(every_quantiser),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
