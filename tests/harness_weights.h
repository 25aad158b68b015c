/* SPDX-License-Identifier: MIT
 * Expert matrices of random codes in every format and gate layout, for tests of weights. */
#ifndef CMOE_TESTS_HARNESS_WEIGHTS_H
#define CMOE_TESTS_HARNESS_WEIGHTS_H

#include "harness.h"

enum { E = 3, H = 203, I = 130 };
enum {
    WEIGHT_FORMATS = 19,
    FORMAT_BF16 = 2,
    FORMAT_E4M3_TENSOR = 3,
    FORMAT_E4M3_BLOCK = 7,
    FORMAT_U8_ZERO = 9,
    FORMAT_I4_CHANNEL = 13,
    FORMAT_U4_ZERO = 14,
    FORMAT_NV = 18
};
extern const cmoe_format weight_formats[WEIGHT_FORMATS];

/* How matrix 1 is stored. */
enum layout { FUSED, SEPARATE, INTERLEAVED, UNGATED, JOINT, LAYOUTS };

/* One matrix of one expert, with room for the largest. */
struct store {
    uint8_t codes[2 * I * H * 4], scale[2 * I * H], zero[2 * I * H];
    float global, bias[2 * I], smooth[H];
    int64_t rows, cols;
};

/* A problem, its tables, and the memory behind them: gate_up, up and down of every expert. */
struct weights_made {
    cmoe_problem p;
    cmoe_matrix gate_up[E], up[E], down[E];
    cmoe_weights_desc desc;
    struct store *stores;
};

/* Random codes, scales around 1, random zero points. */
void store_fill(struct rng *rng, cmoe_format f, int64_t rows, int64_t cols, struct store *s);
cmoe_matrix store_view(struct store *s);
/* Type of the scales, spelled out. */
cmoe_dtype store_scale_type(cmoe_format f);
/* stores must be NULL or from an earlier call; freed by weights_made_end. */
void weights_make(struct rng *rng, cmoe_format f, enum layout layout, struct weights_made *m);
struct store *weights_store(const struct weights_made *m, int expert, int which);
void weights_made_end(struct weights_made *m);

#endif
