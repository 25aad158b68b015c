/* SPDX-License-Identifier: MIT
 * ctest: labels=portable
 * Problem strings: what is printed reads back, presets mean what they say, junk is refused whole. */
#include "core/keys.h"
#include "harness.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Bytes of a problem without the padding at its end. */
#define FIELDS (offsetof(cmoe_problem, mid) + sizeof(cmoe_format))

static cmoe_problem defaults(void)
{
    cmoe_problem p;
    cmoe_problem_init(&p);
    return p;
}

static void assert_line(const cmoe_problem *p, const char *want)
{
    char line[CMOE_PROBLEM_TEXT];
    const int n = cmoe_problem_print(p, line, sizeof line);
    assert_string_equal(line, want);
    assert_int_equal(n, strlen(want));
}

static void assert_parses(const char *text, const char *want)
{
    const cmoe_problem p = test_problem(text);
    assert_line(&p, want);
}

static void defaults_print_as_sizes(void **state)
{
    (void)state;
    const cmoe_problem p = defaults();
    assert_line(&p, "t=1 e=1 k=1 h=0 i=0");
    assert_int_equal(p.struct_size, sizeof p);
    assert_int_equal(p.in, CMOE_BF16);
    assert_int_equal(p.last, CMOE_STAGE_COMBINE);
}

static void words_are_understood(void **state)
{
    (void)state;
    assert_parses("", "t=1 e=1 k=1 h=0 i=0");
    assert_parses(" h=5,\t i=6 ,,\n k=0 ", "t=1 e=1 k=0 h=5 i=6");
    assert_parses("groups=8/4 eps=1e-20 scale=2.5", "t=1 e=1 k=1 h=0 i=0 groups=8/4 eps=1e-20 "
                                                    "scale=2.5");
    assert_parses("groups=8/4 groups=0", "t=1 e=1 k=1 h=0 i=0");
    assert_parses("renorm rbias renorm=0 b2=1", "t=1 e=1 k=1 h=0 i=0 rbias b2");
    assert_parses("stages=gemm1..combine", "t=1 e=1 k=1 h=0 i=0 stages=gemm1..combine");
    assert_parses("stages=sort..sort sort=flat bm=64", "t=1 e=1 k=1 h=0 i=0 stages=sort sort=flat "
                                                       "bm=64");
    assert_parses("w=u4/g64:bf16:zp x=i8/token:trunc mid=e2m1/mx32:even",
                  "t=1 e=1 k=1 h=0 i=0 x=i8/token:trunc w=u4/g64:zp:bf16 mid=e2m1/mx32:even");
    /* A type of scales that the scaling has anyway is not part of the canonical spelling. */
    assert_parses("w=e2m1/mx32:e8m0 x=e2m1/nv16:e4m3:static mid=i8/token:f32",
                  "t=1 e=1 k=1 h=0 i=0 x=e2m1/nv16:static w=e2m1/mx32 mid=i8/token");
    assert_parses("acc=-0.1 limit=7 alpha=1.702", "t=1 e=1 k=1 h=0 i=0 limit=7 alpha=1.702 "
                                                  "acc=-0.1");
}

static void commas_belong_to_scheme_options(void **state)
{
    (void)state;
    assert_parses("scheme=int4-w4a16:g64,zp,t=3,renorm", "t=3 e=1 k=1 h=0 i=0 w=u4/g64:zp renorm");
    assert_parses("scheme=fp8-token,renorm",
                  "t=1 e=1 k=1 h=0 i=0 x=e4m3/token w=e4m3/channel mid=e4m3/token renorm");
    assert_parses("scheme=int4-w4a16:zp, renorm", "t=1 e=1 k=1 h=0 i=0 w=u4/g32:zp renorm");
}

static void unknown_words_leave_the_problem_alone(void **state)
{
    (void)state;
    static const struct {
        const char *text, *named;
    } bad[] = {
        {"h=64 foo", "foo"},
        {"h=64 foo=1", "foo"},
        {"h=", "h="},
        {"h", "\"h\""},
        {"h=12x", "12x"},
        {"h=2147483648", "2147483648"},
        {"h=--1", "--1"},
        {"h=+1", "+1"},
        {"eps=nan", "nan"},
        {"eps=inf", "inf"},
        {"eps=1e99", "1e99"},
        {"eps=0x1p3", "0x1p3"},
        {"eps=1,5 ", "5"},
        {"eps=", "eps="},
        {"route=softmin", "softmin"},
        {"renorm=2", "renorm=2"},
        {"groups=8", "groups=8"},
        {"groups=8/", "groups=8/"},
        {"stages=", "stages="},
        {"stages=a..b", "a..b"},
        {"x=e4m4", "e4m4"},
        {"x=e4m3/", "x=e4m3/"},
        {"x=e4m3/g", "x=e4m3/g"},
        {"x=e4m3/g48", "g48"},
        {"x=e4m3/token:", "token:"},
        {"x=e4m3/token:zq", "zq"},
        {"scheme=", "scheme"},
        {"scheme=fp9", "fp9"},
        {"scheme=bf16:g32", "g32"},
        {"scheme=int4-w4a16:g33", "g33"},
        {"scheme=int4-w4a16:", "\"\""},
        {"scheme=fp8-block:zp", "zp"},
        {"model=gpt-5", "gpt-5"},
        {"router=x", "\"x\""},
        {"model", "model"},
        {"=", "="},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cmoe_problem p = test_problem("t=9 e=8 k=2 h=3 i=4 renorm scheme=fp8-block");
        const cmoe_problem before = p;
        expect_error(cmoe_problem_parse(&p, bad[i].text), CMOE_ERR_INVALID, bad[i].named);
        assert_memory_equal(&p, &before, FIELDS);
    }
    cmoe_problem p = defaults();
    char word[300];
    memset(word, 'a', sizeof word);
    word[sizeof word - 1] = '\0';
    expect_error(cmoe_problem_parse(&p, word), CMOE_ERR_INVALID, "299 bytes");
    expect_error(cmoe_problem_parse(&p, NULL), CMOE_ERR_INVALID, "text is NULL");
    expect_error(cmoe_problem_parse(NULL, ""), CMOE_ERR_INVALID, "p is NULL");
    /* The message names both the scheme and the option, and lists what there is. */
    expect_error(cmoe_problem_scheme(&p, "fp8-block:zp"), CMOE_ERR_INVALID, "fp8-block");
    expect_error(cmoe_problem_scheme(&p, "fp8-block:zp"), CMOE_ERR_INVALID, "f32 f16 bf16 e5m2");
}

/* --- round trips --------------------------------------------------------------------------------*/

/* Any finite float, special ones often. */
static float random_float(struct rng *r)
{
    static const float special[] = {0, -0.0F, 1, 2.5F, 1e-20F, 0x1p-149F, 0x1.fffffep127F, 0.1F};
    if (rng_chance(r, 60)) return special[rng_below(r, 8)];
    float value;
    do {
        const uint32_t bits = (uint32_t)rng_u64(r);
        memcpy(&value, &bits, sizeof value);
    } while (!isfinite(value));
    return value;
}

static cmoe_format random_format(struct rng *r)
{
    static const uint16_t groups[] = {16, 32, 64, 128};
    static const uint8_t own[CMOE_SCALING_COUNT] = {
        [CMOE_SCALE_MX] = CMOE_E8M0, [CMOE_SCALE_NV] = CMOE_E4M3};
    cmoe_format f = {
        .dtype = (uint8_t)rng_below(r, CMOE_DTYPE_COUNT),
        .scaling = (uint8_t)rng_below(r, CMOE_SCALING_COUNT),
        .scale_dtype = (uint8_t)(rng_chance(r, 70) ? 0 : rng_below(r, CMOE_DTYPE_COUNT)),
        .zero = rng_chance(r, 30),
        .fixed = rng_chance(r, 30),
        .rounding = (uint8_t)(rng_chance(r, 70) ? 0 : rng_below(r, CMOE_ROUNDING_COUNT)),
        .mx_rounding = (uint8_t)(rng_chance(r, 70) ? 0 : rng_below(r, CMOE_MX_ROUNDING_COUNT)),
    };
    if (f.scaling == CMOE_SCALE_GROUP) f.group = groups[rng_below(r, 4)];
    const int same = own[f.scaling] ? own[f.scaling] : CMOE_F32;
    if (f.scale_dtype == same) f.scale_dtype = CMOE_NONE;
    return f;
}

/* Any problem whose fields hold values of their types, accepted or not. */
static cmoe_problem random_problem(struct rng *r)
{
    cmoe_problem p = defaults();
    for (const struct cmoe_key *key = cmoe__keys; key->name; key++) {
        char *const field = (char *)&p + key->offset;
        if (rng_chance(r, 50)) continue;
        if (key->kind == CMOE_KEY_INT) {
            const int32_t value = (int32_t)rng_u64(r) >> rng_below(r, 32);
            memcpy(field, &value, sizeof value);
        } else if (key->kind == CMOE_KEY_FLOAT) {
            const float value = random_float(r);
            memcpy(field, &value, sizeof value);
        } else if (key->kind == CMOE_KEY_NAME) {
            int n = 0;
            while (key->names[n])
                n++;
            *(uint8_t *)field = (uint8_t)rng_below(r, n);
        } else if (key->kind == CMOE_KEY_FORMAT) {
            const cmoe_format f = random_format(r);
            memcpy(field, &f, sizeof f);
        } else if (key->kind == CMOE_KEY_GROUPS) {
            p.groups = (int32_t)rng_between(r, -3, 300);
            p.groups_kept = (int32_t)rng_between(r, -3, 300);
        } else {
            p.first = (uint8_t)rng_below(r, CMOE_STAGE_COUNT);
            p.last = (uint8_t)rng_below(r, CMOE_STAGE_COUNT);
        }
    }
    for (const struct cmoe_flag_name *f = cmoe__flag_names; f->name; f++) {
        if (rng_chance(r, 20)) p.flags |= f->flag;
    }
    return p;
}

static void printed_problems_read_back(void **state)
{
    (void)state;
    struct rng r = {test_seed()};
    size_t longest = 0;
    for (int i = 0; i < 10000; i++) {
        const cmoe_problem p = random_problem(&r);
        char line[CMOE_PROBLEM_TEXT], again[CMOE_PROBLEM_TEXT];
        const int n = cmoe_problem_print(&p, line, sizeof line);
        assert_int_equal(n, strlen(line));
        cmoe_problem q = defaults();
        expect_ok(cmoe_problem_parse(&q, line));
        if (memcmp(&p, &q, FIELDS) != 0) fail_with("%s reads back as another problem", line);
        cmoe_problem_print(&q, again, sizeof again);
        assert_string_equal(line, again);
        assert_int_equal(cmoe_problem_hash(&p), cmoe_problem_hash(&q));
        if ((size_t)n > longest) longest = (size_t)n;
    }
    assert_in_range(longest, 200, CMOE_PROBLEM_TEXT - 1);
}

static void every_field_changes_the_line_and_the_hash(void **state)
{
    (void)state;
    const cmoe_problem p = defaults();
    const uint64_t hash = cmoe_problem_hash(&p);
    char line[CMOE_PROBLEM_TEXT], other[CMOE_PROBLEM_TEXT];
    cmoe_problem_print(&p, line, sizeof line);
    for (size_t i = sizeof p.struct_size; i < FIELDS; i++) {
        const bool reserved = i == offsetof(cmoe_problem, reserved[0]) ||
                              i == offsetof(cmoe_problem, reserved[1]) ||
                              i == offsetof(cmoe_problem, flags) + 3; /* bits without a name */
        cmoe_problem q = p;
        ((unsigned char *)&q)[i] ^= 2;
        if (reserved) continue;
        const bool format = i >= offsetof(cmoe_problem, x);
        if (format && (i - offsetof(cmoe_problem, x)) % sizeof(cmoe_format) >= 7) continue;
        cmoe_problem_print(&q, other, sizeof other);
        if (strcmp(line, other) == 0) fail_with("byte %zu is not in the line", i);
        const bool tokens = i < offsetof(cmoe_problem, hidden);
        assert_int_equal(cmoe_problem_hash(&q) == hash, tokens);
    }
}

static void printing_follows_snprintf(void **state)
{
    (void)state;
    const cmoe_problem p = test_problem("model=deepseek-v3 t=4096");
    char whole[CMOE_PROBLEM_TEXT], part[CMOE_PROBLEM_TEXT];
    const int n = cmoe_problem_print(&p, whole, sizeof whole);
    assert_int_equal(cmoe_problem_print(&p, NULL, 0), n);
    for (int len = 0; len <= n + 2; len++) {
        memset(part, '#', sizeof part);
        assert_int_equal(cmoe_problem_print(&p, part, (size_t)len), n);
        assert_int_equal(part[len], '#');
        if (len == 0) continue;
        const size_t written = (size_t)(len - 1 < n ? len - 1 : n);
        assert_memory_equal(part, whole, written);
        assert_int_equal(part[written], '\0');
    }
}

/* Bytes of any kind, which no caller should pass, with every flag: as long as lines get. */
static void no_line_is_longer_than_said(void **state)
{
    (void)state;
    struct rng r = {test_seed()};
    int longest = 0;
    for (int i = 0; i < 10000; i++) {
        cmoe_problem p = defaults();
        for (size_t at = sizeof p.struct_size; at < FIELDS; at++)
            ((unsigned char *)&p)[at] = (unsigned char)(i < 256 ? i : (int)rng_below(&r, 256));
        for (const struct cmoe_flag_name *f = cmoe__flag_names; f->name; f++)
            p.flags |= f->flag;
        const int n = cmoe_problem_print(&p, NULL, 0);
        if (n > longest) longest = n;
    }
    assert_in_range(longest, 600, CMOE_PROBLEM_TEXT - 1);
}

static void the_locale_does_not_matter(void **state)
{
    (void)state;
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "de_DE"};
    bool found = false;
    for (int i = 0; i < 4 && !found; i++)
        found = setlocale(LC_ALL, names[i]) != NULL;
    if (!found) skip();
    assert_parses("scale=2.5", "t=1 e=1 k=1 h=0 i=0 scale=2.5");
    setlocale(LC_ALL, "C");
}

static void hashes_never_change(void **state)
{
    (void)state;
    /* Tuned files hold these numbers. */
    const cmoe_problem a = defaults(), b = test_problem("model=deepseek-v3");
    const cmoe_problem c = test_problem("t=77 model=deepseek-v3");
    uint64_t want = UINT64_C(0xcbf29ce484222325);
    for (const char *s = "e=1 k=1 h=0 i=0"; *s; s++) {
        want = (want ^ (unsigned char)*s) * UINT64_C(0x100000001b3);
    }
    assert_int_equal(cmoe_problem_hash(&a), want);
    assert_int_equal(cmoe_problem_hash(&b), cmoe_problem_hash(&c));
    assert_int_not_equal(cmoe_problem_hash(&a), cmoe_problem_hash(&b));
}

/* --- counts -------------------------------------------------------------------------------------*/

static void counts_follow_from_sizes(void **state)
{
    (void)state;
    cmoe_problem p = test_problem("e=256 k=8 shared=1 h=64 i=48 first=32 local=16");
    assert_int_equal(cmoe_problem_slots(&p), 9);
    assert_int_equal(cmoe_problem_local_experts(&p), 17);
    assert_int_equal(cmoe_problem_rows1(&p), 96);
    p = test_problem("e=8 k=1 h=4 i=2147483647 route=all first=3");
    assert_int_equal(cmoe_problem_slots(&p), 8);
    assert_int_equal(cmoe_problem_local_experts(&p), 5);
    assert_int_equal(cmoe_problem_rows1(&p), INT64_C(4294967294));
    p.gate = CMOE_GATE_NONE;
    assert_int_equal(cmoe_problem_rows1(&p), INT32_MAX);
}

static void ranks_cover_all_tokens(void **state)
{
    (void)state;
    static const int64_t tokens[] = {0, 1, 2, 7, 8, 9, 1000, INT64_MAX};
    for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
        for (int size = 1; size < 20; size++) {
            const int64_t n = tokens[i], per = n / size + (n % size != 0);
            int64_t next = 0;
            for (int rank = 0; rank < size; rank++) {
                int64_t first, end;
                cmoe_rank_tokens(n, size, rank, &first, &end);
                assert_true(first == next);
                assert_true(end >= first && end - first <= per);
                assert_true(end == n || end - first == per);
                next = end;
            }
            assert_true(next == n);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_print_as_sizes),
        cmocka_unit_test(words_are_understood),
        cmocka_unit_test(commas_belong_to_scheme_options),
        cmocka_unit_test(unknown_words_leave_the_problem_alone),
        cmocka_unit_test(printed_problems_read_back),
        cmocka_unit_test(every_field_changes_the_line_and_the_hash),
        cmocka_unit_test(printing_follows_snprintf),
        cmocka_unit_test(no_line_is_longer_than_said),
        cmocka_unit_test(the_locale_does_not_matter),
        cmocka_unit_test(hashes_never_change),
        cmocka_unit_test(counts_follow_from_sizes),
        cmocka_unit_test(ranks_cover_all_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
