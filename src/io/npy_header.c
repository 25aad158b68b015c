/* SPDX-License-Identifier: MIT
 * The header of a .npy file: magic, version, length, and a Python dict with exactly the keys descr,
 * fortran_order and shape. Only that literal is understood; nothing is evaluated. */
#include "npy.h"

#include "fail.h"

#include <stdbool.h>
#include <string.h>

static const struct {
    cmoe_dtype dtype;
    const char *descr;
} types[] = {
    {CMOE_F32, "<f4"}, {CMOE_F16, "<f2"}, {CMOE_BF16, "<u2"}, {CMOE_I32, "<i4"},
    {CMOE_I64, "<i8"}, {CMOE_I8, "|i1"},  {CMOE_U8, "|u1"},
};
enum { TYPES = sizeof types / sizeof types[0] };

const char *cmoe__npy_descr(cmoe_dtype dtype)
{
    for (int i = 0; i < TYPES; i++) {
        if (types[i].dtype == dtype) return types[i].descr;
    }
    return NULL;
}

cmoe_status cmoe__npy_prefix(const uint8_t *image, size_t size, size_t *text, size_t *text_size)
{
    static const uint8_t magic[6] = {0x93, 'N', 'U', 'M', 'P', 'Y'};
    if (size < sizeof magic || memcmp(image, magic, sizeof magic) != 0) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "npy: no \\x93NUMPY at byte 0");
    }
    if (size < 10) return CMOE_FAIL(CMOE_ERR_CORRUPT, "npy: the file ends at byte %zu", size);
    const int major = image[6], minor = image[7];
    if (major < 1 || major > 3 || minor != 0) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "npy: version %d.%d at byte 6, 1.0 to 3.0 are read",
                         major, minor);
    }
    *text = major == 1 ? 10 : 12;
    if (size < *text) return CMOE_FAIL(CMOE_ERR_CORRUPT, "npy: the file ends at byte %zu", size);
    size_t n = (size_t)image[8] | (size_t)image[9] << 8;
    if (major > 1) n |= (size_t)image[10] << 16 | (size_t)image[11] << 24;
    if (n > CMOE_NPY_HEADER_LIMIT) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "npy: a header of %zu bytes, at most %d are read", n,
                         (int)CMOE_NPY_HEADER_LIMIT);
    }
    *text_size = n;
    return CMOE_OK;
}

/* What is left of the header text. */
struct scan {
    const char *begin, *at, *end;
    size_t offset; /* of begin in the file */
};

static cmoe_status fail_at(const struct scan *s, const char *expected)
{
    return CMOE_FAIL(CMOE_ERR_CORRUPT, "npy: expected %s at byte %zu of the header", expected,
                     s->offset + (size_t)(s->at - s->begin));
}

static void skip_blanks(struct scan *s)
{
    while (s->at < s->end && *s->at == ' ')
        s->at++;
}

static bool accept(struct scan *s, char c)
{
    skip_blanks(s);
    if (s->at == s->end || *s->at != c) return false;
    s->at++;
    return true;
}

static bool accept_word(struct scan *s, const char *word)
{
    const size_t n = strlen(word);
    skip_blanks(s);
    if ((size_t)(s->end - s->at) < n || memcmp(s->at, word, n) != 0) return false;
    s->at += n;
    return true;
}

/* A quoted string without escapes. */
static cmoe_status parse_string(struct scan *s, const char **text, size_t *n)
{
    skip_blanks(s);
    if (s->at == s->end || (*s->at != '\'' && *s->at != '"')) return fail_at(s, "a string");
    const char quote = *s->at;
    const char *const first = s->at + 1;
    const char *const last = memchr(first, quote, (size_t)(s->end - first));
    if (!last || memchr(first, '\\', (size_t)(last - first))) return fail_at(s, "a plain string");
    *text = first;
    *n = (size_t)(last - first);
    s->at = last + 1;
    return CMOE_OK;
}

static cmoe_status parse_descr(struct scan *s, cmoe_array *out)
{
    const char *text;
    size_t n;
    skip_blanks(s);
    if (s->at < s->end && *s->at == '[') {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "npy: structured types are not read");
    }
    CMOE_TRY(parse_string(s, &text, &n));
    for (int i = 0; i < TYPES; i++) {
        if (strlen(types[i].descr) == n && memcmp(types[i].descr, text, n) == 0) {
            out->dtype = types[i].dtype;
            return CMOE_OK;
        }
    }
    return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                     "npy: type '%s' is not one of <f4 <f2 <u2 <i4 <i8 |i1 |u1",
                     cmoe__quote_bytes(text, n).text);
}

static cmoe_status parse_order(struct scan *s)
{
    if (accept_word(s, "False")) return CMOE_OK;
    if (accept_word(s, "True")) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "npy: Fortran order is not read, only C order");
    }
    return fail_at(s, "True or False");
}

static cmoe_status parse_dimension(struct scan *s, int64_t *out)
{
    int64_t v = 0;
    if (s->at == s->end || *s->at < '0' || *s->at > '9') return fail_at(s, "a size");
    for (; s->at < s->end && *s->at >= '0' && *s->at <= '9'; s->at++) {
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *s->at - '0', &v)) {
            return fail_at(s, "a size below 2^63");
        }
    }
    *out = v;
    return CMOE_OK;
}

/* "()" or "(2,)" or "(2, 3)", a comma at the end allowed. */
static cmoe_status parse_shape(struct scan *s, cmoe_array *out)
{
    bool comma = true;
    if (!accept(s, '(')) return fail_at(s, "'(' of the shape");
    while (!accept(s, ')')) {
        if (!comma) return fail_at(s, "',' or ')' in the shape");
        if (out->ndim == (int)(sizeof out->shape / sizeof out->shape[0])) {
            return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "npy: more than 8 dimensions");
        }
        skip_blanks(s);
        CMOE_TRY(parse_dimension(s, &out->shape[out->ndim++]));
        comma = accept(s, ',');
    }
    if (out->ndim == 1 && !comma) return fail_at(s, "',' after the only size (a tuple)");
    return CMOE_OK;
}

static cmoe_status parse_item(struct scan *s, unsigned *seen, cmoe_array *out)
{
    static const char *const keys[] = {"descr", "fortran_order", "shape"};
    const char *text;
    size_t n;
    unsigned key = 0;
    CMOE_TRY(parse_string(s, &text, &n));
    while (key < 3 && (strlen(keys[key]) != n || memcmp(keys[key], text, n) != 0))
        key++;
    if (key == 3 || *seen & 1u << key) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "npy: %s key '%s' in the header",
                         key == 3 ? "unknown" : "repeated", cmoe__quote_bytes(text, n).text);
    }
    *seen |= 1u << key;
    if (!accept(s, ':')) return fail_at(s, "':'");
    if (key == 0) return parse_descr(s, out);
    return key == 1 ? parse_order(s) : parse_shape(s, out);
}

static cmoe_status count_bytes(cmoe_array *out)
{
    size_t n = (size_t)cmoe_dtype_bits(out->dtype) / 8;
    for (int i = 0; i < out->ndim; i++) {
        if (__builtin_mul_overflow(n, (uint64_t)out->shape[i], &n)) {
            return CMOE_FAIL(CMOE_ERR_CORRUPT, "npy: the shape has more than 2^64 bytes");
        }
    }
    out->bytes = n;
    return CMOE_OK;
}

cmoe_status cmoe__npy_header_parse(const char *text, size_t size, size_t offset, cmoe_array *out)
{
    struct scan s = {.begin = text, .at = text, .end = text + size, .offset = offset};
    unsigned seen = 0;
    bool comma = true;
    *out = (cmoe_array){0};
    if (!accept(&s, '{')) return fail_at(&s, "'{'");
    while (!accept(&s, '}')) {
        if (!comma) return fail_at(&s, "',' or '}'");
        CMOE_TRY(parse_item(&s, &seen, out));
        comma = accept(&s, ',');
    }
    if (seen != 7) return fail_at(&s, "descr, fortran_order and shape before the end");
    skip_blanks(&s);
    if (s.at == s.end || *s.at != '\n' || s.at + 1 != s.end) {
        return fail_at(&s, "blanks and one newline to the end");
    }
    return count_bytes(out);
}
