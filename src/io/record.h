/* SPDX-License-Identifier: MIT
 * What a recorded call consists of: the one list that writing and reading share. */
#ifndef CMOE_IO_RECORD_H
#define CMOE_IO_RECORD_H

#include "file.h"

#include <cmoe/io.h>
#include <stdbool.h>

/* An array that a call reads: where cmoe_tensors points to it, and its shape. */
struct cmoe_field {
    const char *name;
    size_t offset; /* of the pointer in cmoe_tensors */
    cmoe_dtype dtype;
    int64_t rows, cols;
    int64_t stride; /* bytes from row to row in the caller's memory; 0: tight */
};
enum { CMOE_MAX_FIELDS = 24 };

/* The arrays that t's call of p reads; pointers that are NULL in t are listed as well. */
int cmoe__record_fields(const cmoe_problem *p, const cmoe_tensors *t,
                        struct cmoe_field fields[CMOE_MAX_FIELDS]);

/* One matrix of every expert: "w_gate", "w_up", "w_gate_up" (both in one) or "w_down". */
struct cmoe_part {
    const char *name;
    int matrix; /* of cmoe_weights_matrix */
    bool up;    /* its second result */
    int64_t rows, cols;
};
enum { CMOE_MAX_PARTS = 3 };

/* The parts that p's stages read; `split`: gate and up are two matrices. */
int cmoe__record_parts(const cmoe_problem *p, bool split, struct cmoe_part parts[CMOE_MAX_PARTS]);

/* An array of a part, of one expert. */
struct cmoe_part_field {
    const char *suffix;
    size_t offset; /* of the pointer in cmoe_matrix */
    cmoe_dtype dtype;
    int64_t rows, cols;
};
enum { CMOE_MAX_PART_FIELDS = 6 };

cmoe_status cmoe__part_fields(const cmoe_problem *p, const struct cmoe_part *part,
                              struct cmoe_part_field fields[CMOE_MAX_PART_FIELDS], int *n);

#endif
