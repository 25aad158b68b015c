/* SPDX-License-Identifier: MIT
 * Golden cases: the manifest's lines, and the inputs they name.
 *
 * Element i of tensor NAME in case SEED is a function of those three, here and in
 * tools/golden/inputs.py, so that only outputs are stored. */
#ifndef CMOE_TESTS_HARNESS_GOLDEN_H
#define CMOE_TESTS_HARNESS_GOLDEN_H

#include "harness.h"

enum golden_kind {
    GOLDEN_LAYER,     /* from ids and routing weights to y */
    GOLDEN_ROUTER,    /* from logits, or x, to ids and routing weights */
    GOLDEN_HF_LAYER,  /* from x through router and experts to y */
    GOLDEN_HF_ROUTER, /* from x to ids and weights, routed slots only, by ascending id */
    GOLDEN_ROWS,      /* activations quantised as the problem's x, and decoded */
    GOLDEN_MATRIX,    /* a weight matrix [t, h] quantised as w, and decoded */
};

struct golden_case {
    enum golden_kind kind;
    char name[96], inputs[16], problem[256];
    uint64_t seed;
    int64_t offset, count; /* in the arrays of outputs */
};

struct golden_list {
    struct golden_case *cases;
    int64_t n;
};

/* Add a manifest's cases to a list; fails the test when it cannot. */
void golden_read(const char *path, struct golden_list *out);
void golden_free(struct golden_list *list);

/* The elements, four bytes each, of a one-dimensional .npy file; free it. */
void *golden_array(const char *path, int64_t *count);

/* Inputs of a case in guarded buffers: every tensor but the outputs, and the experts. y, where the
 * problem accumulates, is a copy to be made from `y0`. */
struct golden_inputs {
    cmoe_tensors tensors;
    cmoe_weights_desc weights;
    const void *y0; /* NULL: nothing to add to */
    int64_t y_count;
};
void golden_inputs_make(struct guard *g, const struct golden_case *c, const cmoe_problem *p,
                        struct golden_inputs *out);

/* What a GOLDEN_ROWS or GOLDEN_MATRIX case quantises, [max_tokens, hidden], and the static scale. */
float *golden_wide(struct guard *g, const struct golden_case *c, const cmoe_problem *p);
float golden_static_scale(const struct golden_case *c, cmoe_dtype dtype);

#endif
