/* SPDX-License-Identifier: MIT
 * Seeds, comparisons, asserts and contexts of the tests. */
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

uint64_t rng_u64(struct rng *r)
{
    uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

int64_t rng_below(struct rng *r, int64_t n)
{
    return n <= 1 ? 0 : (int64_t)(rng_u64(r) % (uint64_t)n);
}

int64_t rng_between(struct rng *r, int64_t low, int64_t high)
{
    return low + rng_below(r, high - low + 1);
}

double rng_unit(struct rng *r)
{
    return (double)(rng_u64(r) >> 11) * 0x1p-53;
}

double rng_normal(struct rng *r)
{
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += rng_unit(r) - 0.5;
    }
    return sum * 1.7320508075688772;
}

bool rng_chance(struct rng *r, int percent)
{
    return rng_below(r, 100) < percent;
}

uint64_t test_seed(void)
{
    static uint64_t seed;
    static bool known;
    if (known) return seed;
    known = true;
    seed = 20240611;
    const char *const text = getenv("TEST_SEED");
    if (text && strcmp(text, "random") == 0) {
        if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed) abort();
        seed >>= 16;
    } else if (text && *text) {
        seed = strtoull(text, NULL, 0);
    }
    printf("TEST_SEED=%llu\n", (unsigned long long)seed);
    fflush(stdout);
    return seed;
}

bool test_short(void)
{
    return test_env("TEST_SHORT", 0) != 0;
}

bool test_lowered(void)
{
    const char *const cap = getenv("CMOE_CPU");
    return cap && *cap;
}

int64_t test_env(const char *name, int64_t fallback)
{
    const char *const text = getenv(name);
    return text && *text ? strtoll(text, NULL, 0) : fallback;
}

static double element(cmoe_dtype dtype, const void *data, int64_t i)
{
    switch (cmoe_dtype_bits(dtype)) {
    case 32: {
        float v;
        memcpy(&v, (const char *)data + i * 4, 4);
        return (double)v;
    }
    case 16: {
        uint16_t v;
        memcpy(&v, (const char *)data + i * 2, 2);
        return (double)cmoe_decode(dtype, v);
    }
    default:
        return (double)cmoe_decode(dtype, ((const uint8_t *)data)[i]);
    }
}

struct comparison compare(cmoe_dtype dtype, const void *got, const double *want,
                          const double *bound, int64_t n)
{
    struct comparison c = {.n = n, .first = -1};
    int64_t zeros = 0;
    for (int64_t i = 0; i < n; i++) {
        const double g = element(dtype, got, i), w = want[i], b = bound ? bound[i] : 0;
        if (w == 0) zeros++;
        const bool fine = isnan(w) ? isnan(g) : g == w || (!isinf(w) && fabs(g - w) <= b);
        if (fine) continue;
        if (c.outside++ == 0) {
            c.first = i;
            c.got = g;
            c.want = w;
            c.bound = b;
        }
    }
    c.zeros = n ? (double)zeros / (double)n : 0;
    return c;
}

bool mistrusted(const struct comparison *c)
{
    return c->zeros > 0.5;
}

void fail_text(const char *file, int line, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    print_error("%s\n", text);
    _fail(file, line);
}

void check_close(const char *file, int line, const char *what, cmoe_dtype dtype, const void *got,
                 const double *want, const double *bound, int64_t n)
{
    const struct comparison c = compare(dtype, got, want, bound, n);
    if (c.outside) {
        fail_text(file, line, "%s: %lld of %lld outside; [%lld] is %.9g, expected %.9g +- %.3g",
                  what, (long long)c.outside, (long long)n, (long long)c.first, c.got, c.want,
                  c.bound);
    }
    if (mistrusted(&c)) {
        fail_text(file, line, "%s: MISTRUSTED, %.0f %% of the expected values are 0", what,
                  100 * c.zeros);
    }
}

void check_same_bytes(const char *file, int line, const char *what, const void *got,
                      const void *want, size_t n)
{
    const unsigned char *const a = got, *const b = want;
    for (size_t i = 0; i < n; i++) {
        if (a[i] != b[i]) {
            fail_text(file, line, "%s: byte %zu of %zu is 0x%02x, expected 0x%02x", what, i, n,
                      a[i], b[i]);
        }
    }
}

void check_same_i32(const char *file, int line, const char *what, const int32_t *got,
                    const int32_t *want, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (got[i] != want[i]) {
            fail_text(file, line, "%s: [%lld] of %lld is %d, expected %d", what, (long long)i,
                      (long long)n, got[i], want[i]);
        }
    }
}

void check_status(const char *file, int line, const char *expr, cmoe_status got, cmoe_status want,
                  const char *part)
{
    if (got != want) {
        fail_text(file, line, "%s is %s, expected %s; last error: \"%s\"", expr,
                  cmoe_status_name(got), cmoe_status_name(want), cmoe_last_error());
    }
    if (want != CMOE_OK && part && !strstr(cmoe_last_error(), part)) {
        fail_text(file, line, "%s fails with \"%s\", which does not say \"%s\"", expr,
                  cmoe_last_error(), part);
    }
}

void *counter_alloc(void *user, size_t size, size_t align)
{
    struct counter *const c = user;
    const long call = ++c->calls, at = c->fail_at;
    if (at > 0 && (call == at || (c->from_then_on && call > at))) return NULL;
    void *ptr = NULL;
    if (posix_memalign(&ptr, align < sizeof ptr ? sizeof ptr : align, size) != 0) return NULL;
    memset(ptr, 0xa5, size);
    c->live++;
    return ptr;
}

void counter_free(void *user, void *ptr)
{
    struct counter *const c = user;
    if (ptr) c->live--;
    free(ptr);
}

cmoe_context *test_context(int threads, struct counter *counter)
{
    cmoe_context *ctx = NULL;
    const cmoe_context_options options = {
        .struct_size = sizeof options,
        .alloc = counter ? counter_alloc : NULL,
        .free = counter ? counter_free : NULL,
        .user = counter,
        .n_threads = threads,
    };
    expect_ok(cmoe_context_create(&options, &ctx));
    return ctx;
}

cmoe_device *test_device(cmoe_context *ctx, const char *name)
{
    cmoe_device *dev = NULL;
    expect_ok(cmoe_device_open(ctx, name, &dev));
    return dev;
}

cmoe_problem test_problem(const char *text)
{
    cmoe_problem p;
    cmoe_problem_init(&p);
    expect_ok(cmoe_problem_parse(&p, text));
    return p;
}
