/* SPDX-License-Identifier: MIT
 * The keys of problem strings, each written once: the parser, the printer and the tests walk this
 * table, so what one writes the other reads. */
#ifndef CMOE_CORE_KEYS_H
#define CMOE_CORE_KEYS_H

#include <cmoe/problem.h>
#include <stdbool.h>
#include <stddef.h>

enum cmoe_key_kind {
    CMOE_KEY_INT,    /* int32_t */
    CMOE_KEY_FLOAT,  /* float */
    CMOE_KEY_NAME,   /* uint8_t, one of `names` */
    CMOE_KEY_FORMAT, /* cmoe_format */
    CMOE_KEY_GROUPS, /* groups and groups_kept: "8/4" */
    CMOE_KEY_STAGES, /* first and last: "gemm1..combine" */
};

struct cmoe_key {
    const char *name;
    enum cmoe_key_kind kind;
    bool always; /* printed even where it has its default */
    size_t offset;
    const char *const *names; /* NULL-terminated; index = value */
};

extern const struct cmoe_key cmoe__keys[]; /* in the canonical order; ends with a NULL name */

struct cmoe_flag_name {
    const char *name;
    uint32_t flag;
};

extern const struct cmoe_flag_name cmoe__flag_names[]; /* by bit; ends with a NULL name */

/* Name lists in the order of their enumerations, NULL-terminated. */
extern const char *const cmoe__dtype_names[];
extern const char *const cmoe__scaling_names[];
extern const char *const cmoe__rounding_names[];
extern const char *const cmoe__mx_rounding_names[];
extern const char *const cmoe__stage_names[];

/* Index of the name text[0..length) in a list, or -1. */
int cmoe__name_find(const char *const *names, const char *text, size_t length);

/* A format's spelling, "e4m3/g128:trunc". Parsing replaces *out only on success; `why` receives
 * the clause that says what is wrong. */
bool cmoe__format_parse(cmoe_format *out, const char *text, size_t length, char *why,
                        size_t why_size);
/* snprintf rules. */
int cmoe__format_print(cmoe_format f, char *buf, size_t len);

#endif
