/* SPDX-License-Identifier: MIT
 * Packed panels of quantised weights: 32 output columns, all of K, one sequential stream.
 *
 * panel  := [globals or sums: 32 x 4 bytes]  group ...
 * group  := [scale of every column] [zero point of every column, int8] unit ...   (`span` k's)
 * unit   := `step` k's of 32 columns: f8 [32] bytes; i8 [32][4] bytes; 4-bit [32] words of 8 codes,
 *           whose bytes hold k, k + 4 in their low and high halves, so that masking gives four k's.
 * Missing columns and k's have code 0; missing columns have scale 0. u8 codes are stored minus 128,
 * i4 codes plus 8, and zero points follow them. */
#ifndef CMOE_BACKENDS_CPU_PANEL_H
#define CMOE_BACKENDS_CPU_PANEL_H

#include "core/weights.h"
#include <cmoe/problem.h>
#include <stdbool.h>

enum cmoe_cpu_code {
    CMOE_CPU_CODE_I8, /* also u8 */
    CMOE_CPU_CODE_E4M3,
    CMOE_CPU_CODE_E4M3FNUZ,
    CMOE_CPU_CODE_E5M2,
    CMOE_CPU_CODE_U4, /* also i4 */
    CMOE_CPU_CODE_E2M1,
};

struct cmoe_cpu_panel {
    enum cmoe_cpu_code code;
    cmoe_dtype
        scale;      /* of the scales in line; f32 of 1 when the weights have none. CMOE_NONE in what
                         decode is given: codes without scales */
    bool zero;      /* zero points in line */
    bool global;    /* head: f32 multiplier of a column */
    bool sums;      /* head: int32 -128 times the sum of a column's codes */
    int step;       /* k's of a unit */
    int64_t unit;   /* bytes of a unit */
    int64_t k;      /* inputs that count */
    int64_t span;   /* k's of a group, a multiple of step; all of k (rounded up) when one */
    int64_t head;   /* bytes before the first group */
    int64_t scales; /* bytes of a group before its units */
    int64_t group;  /* bytes of a whole group */
    int64_t bytes;  /* of a panel */
};

/* Panels of matrix 1 or 2 of a problem that the format of its element type holds. */
void cmoe__cpu_panel_layout(const cmoe_problem *p, int matrix, struct cmoe_cpu_panel *out);

/* The packed format that holds weights of a type; NULL: none of these. */
const struct cmoe_packing_format *cmoe__cpu_panel_format(cmoe_format w);

extern const struct cmoe_packing_format cmoe__cpu_p32_i8;  /* i8, u8 */
extern const struct cmoe_packing_format cmoe__cpu_p32_f8;  /* e4m3, e4m3fnuz, e5m2 */
extern const struct cmoe_packing_format cmoe__cpu_p32_u4;  /* i4, u4 */
extern const struct cmoe_packing_format cmoe__cpu_p32_mx4; /* e2m1 */

#endif
