/* SPDX-License-Identifier: MIT
 * Seeded inputs for any problem: weights, routing, activations and buffers of one call.
 *
 * Used by check and bench, and by the tests. Everything follows from (problem, options), so that a
 * failure is one line of text. Two kinds of values:
 *   REAL   normal values with outliers, rows of zeros, skewed and partly invalid routing
 *   EXACT  small integers, placed so that every partial sum, scale and rounding is exact whatever
 *          the order of operations: kernel and reference must agree to the bit
 * Every buffer lies between guard bytes; columns that count as zero hold NaN where they can. */
#ifndef CMOE_CLI_GEN_H
#define CMOE_CLI_GEN_H

#include <cmoe/cmoe.h>
#include <stdbool.h>

enum gen_kind { GEN_REAL, GEN_EXACT };

struct gen_options {
    enum gen_kind kind;
    uint64_t seed;
    bool plain;   /* tight strides, aligned buffers, valid ids, no ties: for benchmarks */
    bool aligned; /* buffers start at 64 bytes (on devices: 256), rows at 16 */

    /* For big weights (REAL, plain): all experts are one expert in memory, and all rows of x and of
     * a matrix repeat the first few hundred. */
    bool one_expert;

    /* Where buffers come from; NULL: malloc, between guard bytes. The owner of `alloc` frees them,
     * checks them, and aligns them to what divides their size. */
    void *(*alloc)(void *user, size_t bytes, bool input);
    void *user;
};

struct gen_block;

struct gen_call {
    cmoe_problem problem;
    cmoe_weights_desc weights;
    cmoe_tensors tensors;

    /* The result of COMBINE: y_rows rows of y_row bytes, y_block of them (the slots of a token)
     * contiguous and tensors.y_stride bytes from block to block. 0 rows: the plan ends before. */
    int64_t y_rows, y_row, y_block;

    /* The same result as a problem that cmoe_reference takes: plans that start at GEMM1, and
     * batched ones, begin at SORT or QUANT here. */
    cmoe_problem reference;
    cmoe_tensors reference_tensors;

    const int32_t *ids; /* [T, S], given or (after the call) written by ROUTE */
    struct gen_block *blocks;
    int n_blocks, capacity;
    void *y_before; /* what y holds before the call; NULL: poison */
};

/* How a problem is checked: one kind of its inputs is aligned, so that kernels which copy by engines do, the
 * other is not. Which of them changes from problem to problem and with the seed. */
struct gen_options gen_check_options(const cmoe_problem *p, enum gen_kind kind, uint64_t seed);

/* Whether EXACT inputs exist for p; else a clause says why not. */
bool gen_exact_possible(const cmoe_problem *p, const char **why);

/* Make the inputs of a call of p->max_tokens tokens and its outputs, poisoned.
 * p must pass cmoe_problem_check and start at GEMM1 or before. @return CMOE_OK, CMOE_ERR_NO_MEMORY, or what a conversion returned. */
cmoe_status gen_call_create(const cmoe_problem *p, const struct gen_options *options,
                            struct gen_call *out);
void gen_call_free(struct gen_call *call);

/* Poison the outputs again (y: restore what accumulate adds to). */
void gen_call_reset(struct gen_call *call);
/* What a call must not have touched: NULL, or what it did touch, in words. */
const char *gen_call_damage(const struct gen_call *call);

/* A random problem of the whole pipeline that cmoe_problem_check accepts: T <= 64, H, I <= 192,
 * E <= 33; sometimes its second half alone, from an order in another format. */
void gen_problem(uint64_t seed, cmoe_problem *out);

/* The call's i-th buffer; false past the last. */
struct gen_span {
    unsigned char *data;
    size_t size;
    bool input;
};
bool gen_span_at(const struct gen_call *call, int i, struct gen_span *out);

/* Row r of y, and whether the call defines it (batched: rows past an expert's count are not). */
void *gen_y_row(const struct gen_call *call, int64_t r);
bool gen_y_row_counts(const struct gen_call *call, int64_t r);

/* Plans that end at SORT: NULL when the order in the tensors is the one that the ids give, else
 * what differs. */
const char *gen_sort_difference(const struct gen_call *call);

/* ---- numbers ---- */

struct gen_rng {
    uint64_t state;
};

/* A generator of its own for each purpose of a seed. */
struct gen_rng gen_rng_make(uint64_t seed, uint64_t purpose);
uint64_t gen_u64(struct gen_rng *rng);
int64_t gen_below(struct gen_rng *rng, int64_t n); /* 0 .. n-1; n >= 1 */
bool gen_chance(struct gen_rng *rng, int one_in);
double gen_unit(struct gen_rng *rng);   /* [0, 1) */
double gen_normal(struct gen_rng *rng); /* mean 0, variance 1, |v| < 3.5 */

#endif
