/* SPDX-License-Identifier: MIT
 * The parser of GGUF. A cursor knows how much is left; every length is compared with that before it
 * is used, so time follows the bytes that are there and memory the tensors that have bytes. */
#include "gguf.h"

#include "fail.h"
#include "memory.h"

#include <inttypes.h>
#include <string.h>

enum {
    VERSION = 3,
    ALIGNMENT = 32, /* of data, where the metadata does not say */
    MAX_ALIGNMENT = 1 << 16,
    MAX_DIMS = 4,
    NAME_LIMIT = 256,
    TENSOR_BYTES = 24, /* the least that a tensor info takes */
    ENTRY_BYTES = 13,  /* and an entry of the metadata */
};

enum value_type {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    BOOL,
    STRING,
    ARRAY,
    U64,
    I64,
    F64,
    VALUE_TYPES,
};
static const uint8_t value_bytes[VALUE_TYPES] = {
    [U8] = 1,  [I8] = 1,   [U16] = 2, [I16] = 2, [U32] = 4, [I32] = 4,
    [F32] = 4, [BOOL] = 1, [U64] = 8, [I64] = 8, [F64] = 8,
};

/* Element types: those that are not here cannot be measured, so their files are not read. */
static const struct {
    uint32_t id;
    const char *name;
    int elements, bytes; /* of a block */
} types[] = {
    {0, "F32", 1, 4},       {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},
    {3, "Q4_1", 32, 20},    {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},
    {8, "Q8_0", 32, 34},    {10, "Q2_K", 256, 84},    {11, "Q3_K", 256, 110},
    {12, "Q4_K", 256, 144}, {13, "Q5_K", 256, 176},   {14, "Q6_K", 256, 210},
    {20, "IQ4_NL", 32, 18}, {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},
    {25, "I16", 1, 2},      {26, "I32", 1, 4},        {27, "I64", 1, 8},
    {28, "F64", 1, 8},      {30, "BF16", 1, 2},       {39, "MXFP4", 32, 17},
};
enum { TYPES = sizeof types / sizeof types[0] };

struct cursor {
    const uint8_t *data;
    size_t size, at;
    const char *what;
};

static cmoe_status corrupt(const struct cursor *c, const char *problem)
{
    return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: %s at byte %zu", c->what, problem, c->at);
}

static cmoe_status skip(struct cursor *c, uint64_t n)
{
    if (n > c->size - c->at) return corrupt(c, "the file ends too early");
    c->at += (size_t)n;
    return CMOE_OK;
}

static uint64_t little(const uint8_t *p, int bytes)
{
    uint64_t v = 0;
    for (int i = bytes - 1; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

static cmoe_status read_number(struct cursor *c, int bytes, uint64_t *out)
{
    const size_t at = c->at;
    CMOE_TRY(skip(c, (uint64_t)bytes));
    *out = little(c->data + at, bytes);
    return CMOE_OK;
}

static cmoe_status read_string(struct cursor *c, const char **text, uint64_t *length)
{
    CMOE_TRY(read_number(c, 8, length));
    *text = (const char *)c->data + c->at;
    return skip(c, *length);
}

/* The value after an entry's key. */
static cmoe_status read_value(struct cursor *c, struct cmoe_gguf_value *out)
{
    uint64_t type = 0, bits = 0, length = 0;
    *out = (struct cmoe_gguf_value){.kind = CMOE_GGUF_INTEGER};
    CMOE_TRY(read_number(c, 4, &type));
    if (type >= VALUE_TYPES) return corrupt(c, "a value has an unknown type");
    if (type == STRING) {
        CMOE_TRY(read_string(c, &out->text, &length));
        out->kind = CMOE_GGUF_TEXT;
        out->integer = (int64_t)length;
        return CMOE_OK;
    }
    if (type == ARRAY) {
        CMOE_TRY(read_number(c, 4, &type));
        CMOE_TRY(read_number(c, 8, &length));
        if (type >= VALUE_TYPES || type == ARRAY) return corrupt(c, "an array of unknown elements");
        if (length > c->size - c->at) return corrupt(c, "an array is longer than the file");
        out->kind = CMOE_GGUF_ARRAY;
        out->integer = (int64_t)length;
        if (type != STRING) return skip(c, length * value_bytes[type]);
        for (uint64_t i = 0; i < length; i++)
            CMOE_TRY(read_string(c, &out->text, &bits));
        return CMOE_OK;
    }
    CMOE_TRY(read_number(c, value_bytes[type], &bits));
    const int unused = 64 - 8 * value_bytes[type];
    const bool is_signed = type == I8 || type == I16 || type == I32 || type == I64;
    out->integer = is_signed ? (int64_t)(bits << unused) >> unused : (int64_t)bits;
    if (type == BOOL) out->kind = CMOE_GGUF_BOOL;
    if (type == F32) {
        const uint32_t low = (uint32_t)bits;
        float f;
        memcpy(&f, &low, sizeof f);
        out->kind = CMOE_GGUF_REAL;
        out->real = (double)f;
    } else if (type == F64) {
        out->kind = CMOE_GGUF_REAL;
        memcpy(&out->real, &bits, sizeof out->real);
    }
    return CMOE_OK;
}

struct counts {
    uint64_t tensors, entries;
};

static cmoe_status read_counts(struct cursor *c, struct counts *out)
{
    uint64_t version = 0;
    CMOE_TRY(skip(c, 4));
    CMOE_TRY(read_number(c, 4, &version));
    if (version != VERSION) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "%s: GGUF version %" PRIu64 "; %d is read", c->what,
                         version, VERSION);
    }
    CMOE_TRY(read_number(c, 8, &out->tensors));
    CMOE_TRY(read_number(c, 8, &out->entries));
    const size_t left = c->size - c->at;
    if (out->tensors > left / TENSOR_BYTES || out->entries > left / ENTRY_BYTES)
        return corrupt(c, "more tensors or metadata than the file has bytes for");
    return CMOE_OK;
}

static bool same_text(const char *text, uint64_t length, const char *want)
{
    return length == strlen(want) && memcmp(text, want, (size_t)length) == 0;
}

/* Walk the metadata; *found gets the value of `key`. */
static cmoe_status walk(struct cursor *c, uint64_t entries, const char *key,
                        struct cmoe_gguf_value *found)
{
    for (uint64_t i = 0; i < entries; i++) {
        const char *name = NULL;
        uint64_t length = 0;
        struct cmoe_gguf_value value;
        CMOE_TRY(read_string(c, &name, &length));
        CMOE_TRY(read_value(c, &value));
        if (same_text(name, length, key)) *found = value;
    }
    return CMOE_OK;
}

bool cmoe__gguf_is(const void *image, size_t size)
{
    return size >= 4 && memcmp(image, "GGUF", 4) == 0;
}

struct cmoe_gguf_value cmoe__gguf_find(const void *image, size_t size, const char *key)
{
    struct cursor c = {.data = image, .size = size, .what = ""};
    struct counts n = {0};
    struct cmoe_gguf_value value = {.kind = CMOE_GGUF_ABSENT};
    if (read_counts(&c, &n) == CMOE_OK) (void)!walk(&c, n.entries, key, &value);
    return value;
}

/* ---- tensors ---- */

/* Dimensions, innermost first in the file, and the bytes they take. */
static cmoe_status read_dims(struct cursor *c, int ndim, cmoe_tensor_info *info)
{
    uint64_t total = 1, n = 0;
    info->ndim = ndim;
    for (int d = ndim - 1; d >= 0; d--) {
        CMOE_TRY(read_number(c, 8, &n));
        if (n > INT64_MAX || __builtin_mul_overflow(total, n, &total) || total > INT64_MAX / 8)
            return corrupt(c, "a tensor is larger than any memory");
        info->shape[d] = (int64_t)n;
    }
    info->bytes = (size_t)total; /* elements, until the type is known */
    return CMOE_OK;
}

static cmoe_status apply_type(const struct cursor *c, uint64_t id, cmoe_tensor_info *info)
{
    size_t i = 0;
    while (i < TYPES && types[i].id != id)
        i++;
    if (i == TYPES) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "%s: tensor %s has the element type %" PRIu64 ", which is not read",
                         c->what, cmoe__quote(info->name).text, id);
    }
    strcpy(info->dtype, types[i].name);
    const int64_t inner = info->ndim > 0 ? info->shape[info->ndim - 1] : 1;
    if (inner % types[i].elements != 0) return corrupt(c, "a row is no whole number of blocks");
    const size_t blocks = info->bytes / (size_t)types[i].elements;
    if (__builtin_mul_overflow(blocks, (size_t)types[i].bytes, &info->bytes))
        return corrupt(c, "a tensor is larger than any memory");
    return CMOE_OK;
}

static cmoe_status read_tensor(struct cursor *c, char **names, struct cmoe_header_tensor *out)
{
    const char *name = NULL;
    uint64_t length = 0, ndim = 0, type = 0, offset = 0;
    CMOE_TRY(read_string(c, &name, &length));
    if (length >= NAME_LIMIT || memchr(name, '\0', (size_t)length))
        return corrupt(c, "a tensor's name is too long or has a zero byte");
    memcpy(*names, name, (size_t)length);
    out->info.name = *names;
    *names += length + 1;
    CMOE_TRY(read_number(c, 4, &ndim));
    if (ndim > MAX_DIMS) return corrupt(c, "a tensor has more than 4 dimensions");
    CMOE_TRY(read_dims(c, (int)ndim, &out->info));
    CMOE_TRY(read_number(c, 4, &type));
    CMOE_TRY(apply_type(c, type, &out->info));
    CMOE_TRY(read_number(c, 8, &offset));
    if (offset > c->size) return corrupt(c, "a tensor lies behind the end of the file");
    out->begin = (size_t)offset;
    return CMOE_OK;
}

/* Offsets count from the end of the infos, rounded up to the alignment. */
static cmoe_status place(const struct cursor *c, size_t alignment, struct cmoe_header *out)
{
    const size_t start = (c->at + alignment - 1) / alignment * alignment;
    for (int64_t i = 0; i < out->count; i++) {
        struct cmoe_header_tensor *const t = &out->tensors[i];
        if (t->begin % alignment != 0) return corrupt(c, "a tensor's offset is not aligned");
        t->begin += start;
        if (t->begin > c->size || t->info.bytes > c->size - t->begin) {
            return CMOE_FAIL(CMOE_ERR_CORRUPT,
                             "%s: tensor %s has %zu bytes at byte %zu of a file of %zu", c->what,
                             cmoe__quote(t->info.name).text, t->info.bytes, t->begin, c->size);
        }
    }
    return CMOE_OK;
}

static cmoe_status parse(struct cursor *c, struct cmoe_header *out)
{
    struct counts n = {0};
    struct cmoe_gguf_value align = {.kind = CMOE_GGUF_ABSENT};
    CMOE_TRY(read_counts(c, &n));
    CMOE_TRY(walk(c, n.entries, "general.alignment", &align));
    const int64_t alignment = align.kind == CMOE_GGUF_ABSENT ? ALIGNMENT : align.integer;
    if (alignment < 1 || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)) != 0)
        return corrupt(c, "general.alignment is no power of two up to 65536");
    if (n.tensors > (c->size - c->at) / TENSOR_BYTES)
        return corrupt(c, "more tensors than the file has bytes for");
    out->tensors = cmoe__io_alloc((size_t)n.tensors * sizeof out->tensors[0]);
    out->names = cmoe__io_alloc(c->size - c->at < (size_t)n.tensors * NAME_LIMIT
                                    ? c->size - c->at
                                    : (size_t)n.tensors * NAME_LIMIT);
    if (!out->tensors || !out->names)
        return cmoe__fail_memory((size_t)n.tensors * sizeof out->tensors[0], "tensor infos");
    char *names = out->names;
    for (uint64_t i = 0; i < n.tensors; i++) {
        CMOE_TRY(read_tensor(c, &names, &out->tensors[i]));
        out->count++;
    }
    return place(c, (size_t)alignment, out);
}

cmoe_status cmoe__gguf_parse(const void *image, size_t size, const char *what,
                             struct cmoe_header *out)
{
    struct cursor c = {.data = image, .size = size, .what = what};
    *out = (struct cmoe_header){0};
    const cmoe_status status = parse(&c, out);
    if (status != CMOE_OK) cmoe__header_free(out);
    return status;
}
