/* SPDX-License-Identifier: MIT
 * One weight matrix of a checkpoint in whatever scheme its tensors show: what a layer is read by. */
#ifndef CMOE_IO_LINEAR_H
#define CMOE_IO_LINEAR_H

#include "reading.h"

/* The matrix [rows, cols] of tensors whose names begin with `module`. */
cmoe_status cmoe__linear_read(struct cmoe_reading *r, const char *module, int64_t rows,
                              int64_t cols, cmoe_matrix *out);
/* Columns of a group of packed integers, as far as this matrix tells: 0 when it has one group only,
 * which may be a whole row's scale or a larger group's. */
int cmoe__linear_group(const struct cmoe_reading *r, const char *module, int64_t cols);
/* The same for .qweight (GPTQ, AWQ) and for .weight_packed of integers. */
cmoe_status cmoe__linear_gptq(struct cmoe_reading *r, const char *module, int64_t rows,
                              int64_t cols, cmoe_matrix *out);
cmoe_status cmoe__linear_packed(struct cmoe_reading *r, const char *module, int64_t rows,
                                int64_t cols, cmoe_matrix *out);

#endif
