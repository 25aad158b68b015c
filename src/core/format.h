/* SPDX-License-Identifier: MIT
 * What a format (element type x scaling) implies for storage. */
#ifndef CMOE_CORE_FORMAT_H
#define CMOE_CORE_FORMAT_H

#include <cmoe/problem.h>
#include <stdbool.h>

/* Refuse formats that have no meaning. `weight`: of a weight matrix, else of activation rows. */
cmoe_status cmoe__format_check(cmoe_format f, bool weight);

/* Consecutive columns of a row that share a scale; `cols` where a row has one or none. */
int64_t cmoe__format_span(cmoe_format f, int64_t cols);
/* Element type of the scales; CMOE_NONE when there are none. */
cmoe_dtype cmoe__format_scale_dtype(cmoe_format f);
/* Scales of one row of `cols` columns, where rows have their own (not TENSOR, not BLOCK). */
int64_t cmoe__format_row_scales(cmoe_format f, int64_t cols);
/* Zero point that codes of a dtype have when none is given. */
int cmoe__format_zero_point(cmoe_dtype dtype);

#endif
