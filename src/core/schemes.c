/* SPDX-License-Identifier: MIT
 * Quantisation schemes: named triples of formats, and the options that vary them.
 *
 * A row lists the options that mean something for it; any other option is an error. */
#include "core/fail.h"
#include "core/keys.h"

#include <stdio.h>
#include <string.h>

enum option_set {
    TYPES = 1 << 0,     /* f32 f16 bf16: type of in, y and whatever is not quantised */
    FP8_KINDS = 1 << 1, /* e5m2 fnuz: instead of e4m3 */
    STATIC = 1 << 2,    /* activation scales given */
    GROUPS = 1 << 3,    /* g16 g32 g64 g128, channel: scope of integer weights' scales */
    ZERO = 1 << 4,      /* zp: zero points, hence unsigned weights */
    SCOPES = 1 << 5,    /* channel tensor b128: scope of fp8 weights' scales */
    TO_FP8 = 1 << 6,    /* fp8: activations e4m3 a token */
    MX = 1 << 7,        /* up down even ceil: rounding of activations' mx scales */
    TO_INT8 = 1 << 8,   /* int8: activations i8 a token */
};

struct scheme {
    const char *name;
    const char *x, *w, *mid;
    unsigned options; /* enum option_set */
};

/* clang-format off */
static const struct scheme schemes[] = {
    {.name = "f32",  .x = "f32",  .w = "f32",  .mid = "f32"},
    {.name = "f16",  .x = "f16",  .w = "f16",  .mid = "f16"},
    {.name = "bf16", .x = "bf16", .w = "bf16", .mid = "bf16"},
    {.name = "fp8-tensor",  .x = "e4m3/tensor", .w = "e4m3/tensor",  .mid = "e4m3/tensor",
     .options = TYPES | FP8_KINDS | STATIC},
    {.name = "fp8-token",   .x = "e4m3/token",  .w = "e4m3/channel", .mid = "e4m3/token",
     .options = TYPES | FP8_KINDS},
    {.name = "fp8-block",   .x = "e4m3/g128",   .w = "e4m3/b128",    .mid = "e4m3/g128",
     .options = TYPES | FP8_KINDS},
    {.name = "fp8-w8a16",   .x = "bf16",        .w = "e4m3/channel", .mid = "bf16",
     .options = TYPES | FP8_KINDS | SCOPES},
    {.name = "int8-w8a8",   .x = "i8/token",    .w = "i8/channel",   .mid = "i8/token",
     .options = TYPES},
    {.name = "int8-smooth", .x = "i8/smooth",   .w = "i8/channel",   .mid = "i8/smooth",
     .options = TYPES},
    {.name = "int8-w8a16",  .x = "bf16",        .w = "i8/channel",   .mid = "bf16",
     .options = TYPES | GROUPS | ZERO},
    {.name = "int4-w4a16",  .x = "bf16",        .w = "i4/g32",       .mid = "bf16",
     .options = TYPES | GROUPS | ZERO},
    {.name = "int4-w4a8",   .x = "i8/token",    .w = "i4/g32",       .mid = "i8/token",
     .options = TYPES | GROUPS | ZERO | TO_FP8},
    {.name = "mxfp4-w4a16", .x = "bf16",        .w = "e2m1/mx32",    .mid = "bf16",
     .options = TYPES},
    {.name = "mxfp4-w4a8",  .x = "e4m3/tensor:static", .w = "e2m1/mx32", .mid = "e4m3/tensor:static",
     .options = TYPES | FP8_KINDS | STATIC | TO_INT8},
    {.name = "mxfp4-mxfp8", .x = "e4m3/mx32",   .w = "e2m1/mx32",    .mid = "e4m3/mx32",
     .options = TYPES | FP8_KINDS | MX},
    {.name = "mxfp4-w4a4",  .x = "e2m1/mx32",   .w = "e2m1/mx32",    .mid = "e2m1/mx32",
     .options = TYPES | MX},
    {.name = "mxfp8",       .x = "e4m3/mx32",   .w = "e4m3/mx32",    .mid = "e4m3/mx32",
     .options = TYPES | FP8_KINDS | MX},
    {.name = "nvfp4-w4a16", .x = "bf16",        .w = "e2m1/nv16",    .mid = "bf16",
     .options = TYPES},
    {.name = "nvfp4-w4a4",  .x = "e2m1/nv16",   .w = "e2m1/nv16",    .mid = "e2m1/nv16",
     .options = TYPES | STATIC},
};

/* An option's name, the set it belongs to, and its value where the set needs one. */
static const struct option {
    const char *name;
    unsigned set; /* any of these sets allows it */
    int value;
} options[] = {
    {"f32", TYPES, CMOE_F32}, {"f16", TYPES, CMOE_F16}, {"bf16", TYPES, CMOE_BF16},
    {"e5m2", FP8_KINDS, CMOE_E5M2}, {"fnuz", FP8_KINDS, CMOE_E4M3FNUZ},
    {"static", STATIC, 0}, {"zp", ZERO, 0}, {"fp8", TO_FP8, 0}, {"int8", TO_INT8, 0},
    {"g16", GROUPS, 16}, {"g32", GROUPS, 32}, {"g64", GROUPS, 64}, {"g128", GROUPS, 128},
    {"channel", GROUPS | SCOPES, CMOE_SCALE_CHANNEL}, {"tensor", SCOPES, CMOE_SCALE_TENSOR},
    {"b128", SCOPES, CMOE_SCALE_BLOCK},
    {"up", MX, CMOE_MX_UP}, {"down", MX, CMOE_MX_DOWN}, {"even", MX, CMOE_MX_EVEN},
    {"ceil", MX, CMOE_MX_CEIL},
};
/* clang-format on */

enum {
    N_SCHEMES = sizeof schemes / sizeof schemes[0],
    N_OPTIONS = sizeof options / sizeof options[0],
};

const char *cmoe_scheme_name(int i)
{
    return i >= 0 && i < N_SCHEMES ? schemes[i].name : NULL;
}

/* Formats of the table and types of the options; the fields of a problem that a scheme sets. */
struct formats {
    cmoe_format x, w, mid;
    uint8_t io;
};

static cmoe_format format_of(const char *text)
{
    cmoe_format f = {0};
    char why[160];
    (void)cmoe__format_parse(&f, text, strlen(text), why, sizeof why);
    return f;
}

static void replace_fp8(cmoe_format *f, int dtype)
{
    const bool fp8 = f->dtype == CMOE_E4M3 || f->dtype == CMOE_E5M2 || f->dtype == CMOE_E4M3FNUZ;
    if (fp8) f->dtype = (uint8_t)dtype;
}

static void set_type(struct formats *f, int dtype)
{
    f->io = (uint8_t)dtype;
    if (f->x.scaling == CMOE_SCALE_NONE) f->x.dtype = (uint8_t)dtype;
    if (f->mid.scaling == CMOE_SCALE_NONE) f->mid.dtype = (uint8_t)dtype;
}

static void set_scope(cmoe_format *w, const struct option *option)
{
    const bool group = option->name[0] == 'g';
    w->scaling = (uint8_t)(group ? CMOE_SCALE_GROUP : option->value);
    w->group = (uint16_t)(group ? option->value : 0);
}

static void apply(struct formats *f, const struct option *option)
{
    if (option->set & TYPES) set_type(f, option->value);
    if (option->set & FP8_KINDS) {
        replace_fp8(&f->x, option->value);
        replace_fp8(&f->w, option->value);
        replace_fp8(&f->mid, option->value);
    }
    if (option->set & STATIC) f->x.fixed = f->mid.fixed = 1;
    if (option->set & ZERO) {
        f->w.dtype = (uint8_t)(cmoe_dtype_bits(f->w.dtype) == 4 ? CMOE_U4 : CMOE_U8);
        f->w.zero = 1;
    }
    if (option->set & TO_FP8) f->x = f->mid = format_of("e4m3/token");
    if (option->set & TO_INT8) f->x = f->mid = format_of("i8/token");
    if (option->set & (GROUPS | SCOPES)) set_scope(&f->w, option);
    if (option->set & MX) f->x.mx_rounding = f->mid.mx_rounding = (uint8_t)option->value;
}

static const struct scheme *find_scheme(const char *name, size_t length)
{
    for (int i = 0; i < N_SCHEMES; i++) {
        const size_t n = strlen(schemes[i].name);
        if (n == length && memcmp(schemes[i].name, name, n) == 0) return &schemes[i];
    }
    return NULL;
}

static const struct option *find_option(const char *name, size_t length)
{
    for (int i = 0; i < N_OPTIONS; i++) {
        const size_t n = strlen(options[i].name);
        if (n == length && memcmp(options[i].name, name, n) == 0) return &options[i];
    }
    return NULL;
}

/* The options that `scheme` takes, for a message: " f32 f16 bf16 static". */
static void list_options(const struct scheme *scheme, char *buf, size_t size)
{
    size_t used = 0;
    buf[0] = '\0';
    for (int i = 0; i < N_OPTIONS && used < size; i++) {
        if (!(options[i].set & scheme->options)) continue;
        const int n = snprintf(buf + used, size - used, " %s", options[i].name);
        used += n > 0 ? (size_t)n : 0;
    }
}

cmoe_status cmoe_problem_scheme(cmoe_problem *p, const char *scheme)
{
    if (!p || !scheme) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "The argument %s is NULL.", p ? "scheme" : "p");
    }
    const size_t length = strcspn(scheme, ":,");
    const struct scheme *const row = find_scheme(scheme, length);
    if (!row) {
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "There is no scheme \"%.*s\"; \"cmoe list --schemes\" prints them, "
                         "docs/schemes.md their options.",
                         (int)(length < 60 ? length : 60), scheme);
    }
    struct formats f = {.x = format_of(row->x), .w = format_of(row->w), .mid = format_of(row->mid)};
    const bool plain = row->options == 0;
    f.io = plain ? f.x.dtype : CMOE_BF16;
    for (const char *word = scheme + length; *word; word += strcspn(word, ":,")) {
        word++;
        const size_t n = strcspn(word, ":,");
        const struct option *const option = find_option(word, n);
        if (!option || !(option->set & row->options)) {
            char known[160];
            list_options(row, known, sizeof known);
            return CMOE_FAIL(CMOE_ERR_INVALID, "The scheme %s has no option \"%.*s\"; it has%s.",
                             row->name, (int)(n < 60 ? n : 60), word, known[0] ? known : " none");
        }
        apply(&f, option);
    }
    p->x = f.x;
    p->w = f.w;
    p->mid = f.mid;
    p->in = p->y = f.io;
    return CMOE_OK;
}
