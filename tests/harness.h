/* SPDX-License-Identifier: MIT
 * What every test shares: cmocka, seeds, guarded buffers, comparisons and asserts that print both
 * sides, an allocator that counts and fails on demand.
 *
 * TEST_SEED in the environment sets the seed (decimal or 0x...; "random" draws one); a test that
 * uses randomness prints the seed it took. */
#ifndef CMOE_TESTS_HARNESS_H
#define CMOE_TESTS_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <cmoe/cmoe.h>

/* --- randomness: splitmix64 --------------------------------------------------------------------*/

struct rng {
    uint64_t state;
};

uint64_t rng_u64(struct rng *r);
/* Uniform in [0, n); 0 when n <= 1. */
int64_t rng_below(struct rng *r, int64_t n);
/* Uniform in [low, high]. */
int64_t rng_between(struct rng *r, int64_t low, int64_t high);
/* Uniform in [0, 1). */
double rng_unit(struct rng *r);
/* Roughly normal, mean 0, deviation 1. */
double rng_normal(struct rng *r);
/* True `percent` times in 100. */
bool rng_chance(struct rng *r, int percent);

/* The run's seed; the first call prints it. */
uint64_t test_seed(void);
/* Whether TEST_SHORT asks exhaustive tests for a sample of their work. */
bool test_short(void);
/* Whether this run repeats another with a lower instruction set (CMOE_CPU): what does not depend on
 * it need not run again. */
bool test_lowered(void);
/* A whole number from the environment, or `fallback`. */
int64_t test_env(const char *name, int64_t fallback);

/* --- guarded buffers ----------------------------------------------------------------------------
 * Every buffer lies against an inaccessible page, after its end or before its start in turn, so that
 * one byte too far is a fault; the bytes on the other side are watched. */

enum guard_use {
    GUARD_INPUT,  /* hashed by guard_freeze: must not change */
    GUARD_OUTPUT, /* starts poisoned */
};

struct guard {
    struct guard_buffer *buffers;
    int n, capacity;
    unsigned turn; /* even: the guard page follows the data */
};

void guard_init(struct guard *g);
/* `bytes` at an address divisible by `align` (a power of two up to a page) and, where the guard page
 * permits, by nothing larger. bytes 0: an address that faults on any access. */
void *guard_alloc(struct guard *g, size_t bytes, size_t align, enum guard_use use);
/* Poison an output again. */
void guard_poison(struct guard *g, void *data);
/* Remember what every input holds. */
void guard_freeze(struct guard *g);
/* Inputs unchanged and nothing written around any buffer; else a sentence on stderr and false. */
bool guard_check(const struct guard *g);
/* Give all buffers back for reuse; guard_end unmaps them. */
void guard_reset(struct guard *g);
void guard_end(struct guard *g);

/* --- comparing ----------------------------------------------------------------------------------*/

struct comparison {
    int64_t n, outside; /* elements, those outside their bound */
    int64_t first;      /* index of the first one, -1: none */
    double got, want, bound;
    double zeros; /* share of expected values that are 0 */
};

/* n elements of a type against want +- bound (NULL: equal values). NaN equals NaN. */
struct comparison compare(cmoe_dtype dtype, const void *got, const double *want,
                          const double *bound, int64_t n);
/* More than half of what was expected is 0: the comparison proves little. */
bool mistrusted(const struct comparison *c);
/* Assert all of it: within bounds and trusted. */
#define assert_close(dtype, got, want, bound, n)                                                   \
    check_close(__FILE__, __LINE__, #got, (dtype), (got), (want), (bound), (n))
void check_close(const char *file, int line, const char *what, cmoe_dtype dtype, const void *got,
                 const double *want, const double *bound, int64_t n);
/* The same bytes; prints the first that differs. */
#define assert_same_bytes(a, b, n) check_same_bytes(__FILE__, __LINE__, #a, (a), (b), (n))
void check_same_bytes(const char *file, int line, const char *what, const void *got,
                      const void *want, size_t n);
/* The same integers; prints index and both sides. */
#define assert_same_i32(a, b, n) check_same_i32(__FILE__, __LINE__, #a, (a), (b), (n))
void check_same_i32(const char *file, int line, const char *what, const int32_t *got,
                    const int32_t *want, int64_t n);

/* --- statuses -----------------------------------------------------------------------------------*/

#define expect_ok(expr) check_status(__FILE__, __LINE__, #expr, (expr), CMOE_OK, NULL)
/* The call fails with this code and a message that contains `part` (NULL: any message). */
#define expect_error(expr, code, part)                                                             \
    check_status(__FILE__, __LINE__, #expr, (expr), (code), (part))
void check_status(const char *file, int line, const char *expr, cmoe_status got, cmoe_status want,
                  const char *part);

/* Fail the test with a printf-style sentence. */
#define fail_with(...) fail_text(__FILE__, __LINE__, __VA_ARGS__)
void fail_text(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* --- an allocator that counts -------------------------------------------------------------------*/

struct counter {
    _Atomic long live, calls; /* blocks not freed; allocations so far */
    _Atomic long fail_at;     /* this allocation fails, counted from 1; 0: none */
    int from_then_on;         /* and every later one */
    void *inside;             /* the user pointer of a context that has other callbacks, or NULL */
};

void *counter_alloc(void *user, size_t size, size_t align);
void counter_free(void *user, void *ptr);

/* --- contexts -----------------------------------------------------------------------------------*/

/* Context with `threads` threads (0: default) whose allocations go through `counter` if not NULL. */
cmoe_context *test_context(int threads, struct counter *counter);
cmoe_device *test_device(cmoe_context *ctx, const char *name);
/* Problem from its text on top of the defaults; fails the test when it does not parse. */
cmoe_problem test_problem(const char *text);
/* Pins that between them run every row of `stage` alone that p can use on dev: NULL (the planner's
 * choice) first, then names of the device's own rows. Returns their number. */
enum { TEST_PINS = 16 };
int test_pins(cmoe_device *dev, const cmoe_problem *p, cmoe_stage stage, const char **pins);
/* Workspace for a plan: guarded, aligned, poisoned. */
void *test_workspace(struct guard *g, const cmoe_plan *plan);

#endif
