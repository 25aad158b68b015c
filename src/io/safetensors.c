/* SPDX-License-Identifier: MIT
 * Checking safetensors headers. A tensor is believed only when its type, shape and range of bytes
 * agree, and a file only when its tensors fill its data without a hole or an overlap. */
#include "safetensors.h"

#include "fail.h"
#include "json.h"
#include "memory.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    int bits;
} types[] = {
    {"BOOL", 8}, {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},   {"F8_E5M2", 8},     {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"U16", 16}, {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32}, {"U32", 32},        {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64}, {"U64", 64},
};
enum {
    TYPES = sizeof types / sizeof types[0],
    MAX_RANK = sizeof((cmoe_tensor_info *)0)->shape / sizeof(int64_t),
    DEPTH = 3, /* { tensor: { "shape": [ */
};

static cmoe_status fail_tensor(const char *what, const char *name, const char *clause)
{
    return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: tensor %s %s", what, cmoe__quote(name).text, clause);
}

static cmoe_status parse_type(const char *what, const json_t *json, cmoe_tensor_info *t, int *bits)
{
    const char *const text = json_string_value(json);
    if (!text) return fail_tensor(what, t->name, "has no string \"dtype\"");
    for (int i = 0; i < TYPES; i++) {
        if (strcmp(types[i].name, text) == 0) {
            memcpy(t->dtype, text, strlen(text) + 1);
            *bits = types[i].bits;
            return CMOE_OK;
        }
    }
    return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: tensor %s has the unknown dtype %s", what,
                     cmoe__quote(t->name).text, cmoe__quote(text).text);
}

/* Shape, and the bytes that it and the type's bits make. */
static cmoe_status parse_shape(const char *what, const json_t *json, int bits, cmoe_tensor_info *t)
{
    if (!json_is_array(json)) return fail_tensor(what, t->name, "has no array \"shape\"");
    const size_t rank = json_array_size(json);
    if (rank > MAX_RANK) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "%s: tensor %s has %zu dimensions, at most %d are read", what,
                         cmoe__quote(t->name).text, rank, (int)MAX_RANK);
    }
    uint64_t n = 1;
    bool fits = true;
    for (size_t i = 0; i < rank; i++) {
        const json_t *const item = json_array_get(json, i);
        const json_int_t value = json_integer_value(item);
        if (!json_is_integer(item) || value < 0) {
            return fail_tensor(what, t->name, "has a size that is not an integer >= 0");
        }
        t->shape[i] = value;
        fits = fits && !__builtin_mul_overflow(n, (uint64_t)value, &n);
    }
    fits = fits && !__builtin_mul_overflow(n, (uint64_t)bits, &n);
    if (!fits) return fail_tensor(what, t->name, "has a shape whose size overflows 64 bits");
    if (n % 8 != 0) return fail_tensor(what, t->name, "does not end on a whole byte");
    t->ndim = (int)rank;
    t->bytes = (size_t)(n / 8);
    return CMOE_OK;
}

/* data_offsets, counted from the start of the data, which has data_size bytes. */
static cmoe_status parse_offsets(const char *what, const json_t *json, uint64_t data_size,
                                 struct cmoe_header_tensor *t)
{
    const char *const name = t->info.name;
    const json_t *const first = json_array_get(json, 0), *const second = json_array_get(json, 1);
    if (json_array_size(json) != 2 || !json_is_integer(first) || !json_is_integer(second)) {
        return fail_tensor(what, name, "has no two integers as \"data_offsets\"");
    }
    const json_int_t begin = json_integer_value(first), end = json_integer_value(second);
    if (begin < 0 || end < begin || (uint64_t)end > data_size) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT,
                         "%s: tensor %s has data_offsets %" PRId64 " to %" PRId64
                         ", the file has %" PRIu64 " bytes of data",
                         what, cmoe__quote(name).text, (int64_t)begin, (int64_t)end, data_size);
    }
    if ((uint64_t)(end - begin) != t->info.bytes) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT,
                         "%s: tensor %s has %" PRId64 " bytes of data, its shape needs %zu", what,
                         cmoe__quote(name).text, (int64_t)(end - begin), t->info.bytes);
    }
    t->begin = (size_t)begin;
    return CMOE_OK;
}

static cmoe_status parse_tensor(const char *what, const json_t *json, uint64_t data_size,
                                struct cmoe_header_tensor *t)
{
    int bits = 0;
    if (!json_is_object(json)) return fail_tensor(what, t->info.name, "is not an object");
    CMOE_TRY(parse_type(what, json_object_get(json, "dtype"), &t->info, &bits));
    CMOE_TRY(parse_shape(what, json_object_get(json, "shape"), bits, &t->info));
    CMOE_TRY(parse_offsets(what, json_object_get(json, "data_offsets"), data_size, t));
    if (json_object_size(json) != 3) return fail_tensor(what, t->info.name, "has an unknown key");
    return CMOE_OK;
}

static cmoe_status check_metadata(const char *what, const json_t *json)
{
    const char *key;
    json_t *value;
    if (!json_is_object(json)) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: __metadata__ is not an object", what);
    }
    json_object_foreach((json_t *)(uintptr_t)json, key, value)
    {
        if (!json_is_string(value)) {
            return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: __metadata__ key %s is not a string", what,
                             cmoe__quote(key).text);
        }
    }
    return CMOE_OK;
}

static int by_begin(const void *left, const void *right)
{
    const struct cmoe_header_tensor *const a = left, *const b = right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return (a->info.bytes > b->info.bytes) - (a->info.bytes < b->info.bytes);
}

/* Sort by data, and find holes, overlaps and bytes after the last tensor. */
static cmoe_status check_layout(const char *what, struct cmoe_header *header, uint64_t data_size)
{
    uint64_t end = 0;
    qsort(header->tensors, (size_t)header->count, sizeof header->tensors[0], by_begin);
    for (int64_t i = 0; i < header->count; i++) {
        const struct cmoe_header_tensor *const t = &header->tensors[i];
        if (t->begin != end) {
            return CMOE_FAIL(
                CMOE_ERR_CORRUPT, "%s: tensor %s begins at byte %zu of the data, %s %" PRIu64, what,
                cmoe__quote(t->info.name).text, t->begin,
                t->begin > end ? "leaving a hole after" : "inside the one that ends at", end);
        }
        end += t->info.bytes;
    }
    if (end != data_size) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT,
                         "%s: the tensors end at byte %" PRIu64
                         " of the data, the file at %" PRIu64,
                         what, end, data_size);
    }
    return CMOE_OK;
}

/* Memory for all tensors and their names. */
static cmoe_status allocate(const char *what, const json_t *root, struct cmoe_header *out)
{
    const char *key;
    json_t *value;
    size_t bytes = 0, count = 0;
    json_object_foreach((json_t *)(uintptr_t)root, key, value)
    {
        bytes += strlen(key) + 1;
        count++;
    }
    out->tensors = cmoe__io_alloc(count * sizeof out->tensors[0]);
    out->names = cmoe__io_alloc(bytes);
    if (!out->tensors || !out->names) return cmoe__fail_memory(bytes, what);
    return CMOE_OK;
}

static cmoe_status read_tensors(const char *what, const json_t *root, size_t data_at,
                                uint64_t data_size, struct cmoe_header *out)
{
    const char *key;
    json_t *value;
    CMOE_TRY(allocate(what, root, out));
    char *name = out->names;
    json_object_foreach((json_t *)(uintptr_t)root, key, value)
    {
        if (strcmp(key, "__metadata__") == 0) {
            CMOE_TRY(check_metadata(what, value));
            continue;
        }
        struct cmoe_header_tensor *const t = &out->tensors[out->count++];
        const size_t n = strlen(key) + 1;
        memcpy(name, key, n);
        t->info.name = name;
        name += n;
        CMOE_TRY(parse_tensor(what, value, data_size, t));
    }
    CMOE_TRY(check_layout(what, out, data_size));
    for (int64_t i = 0; i < out->count; i++)
        out->tensors[i].begin += data_at;
    return CMOE_OK;
}

/* The length field; *n bytes of JSON follow it. */
static cmoe_status read_length(const uint8_t *image, size_t size, uint64_t file_size,
                               const char *what, size_t *n)
{
    uint64_t length = 0;
    CMOE_TRY(cmoe__check_not_pointer(image, size, what));
    if (size < 8 || file_size < 8) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: %zu bytes, a header has at least 8", what, size);
    }
    for (int i = 7; i >= 0; i--)
        length = length << 8 | image[i];
    if (length > CMOE_SAFETENSORS_LIMIT) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT,
                         "%s: no safetensors file: its first 8 bytes say a header of %" PRIu64
                         " bytes, the limit is %d",
                         what, length, (int)CMOE_SAFETENSORS_LIMIT);
    }
    if (length > file_size - 8) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT,
                         "%s: a header of %" PRIu64 " bytes in a file of %" PRIu64, what, length,
                         file_size);
    }
    if (length > size - 8) {
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "%s: %zu bytes were given, the header ends at byte %" PRIu64, what, size,
                         length + 8);
    }
    *n = (size_t)length;
    return CMOE_OK;
}

cmoe_status cmoe__header_parse(const void *image, size_t size, uint64_t file_size, const char *what,
                               struct cmoe_header *out)
{
    size_t n = 0;
    json_t *root = NULL;
    *out = (struct cmoe_header){0};
    CMOE_TRY(read_length(image, size, file_size, what, &n));
    const char *const text = (const char *)image + 8;
    if (n == 0 || text[0] != '{') {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: the header does not begin with '{' at byte 8",
                         what);
    }
    CMOE_TRY(cmoe__json_parse(text, n, DEPTH, what, 8, &root));
    const cmoe_status status = read_tensors(what, root, n + 8, file_size - 8 - n, out);
    json_decref(root);
    if (status != CMOE_OK) cmoe__header_free(out);
    return status;
}

void cmoe__header_free(struct cmoe_header *header)
{
    cmoe__io_free(header->tensors);
    cmoe__io_free(header->names);
    *header = (struct cmoe_header){0};
}

cmoe_status cmoe_safetensors_check(const void *image, size_t size, uint64_t file_size)
{
    struct cmoe_header header;
    CMOE_TRY(cmoe__check_argument(image, "cmoe_safetensors_check", "image"));
    CMOE_TRY(cmoe__header_parse(image, size, file_size, "safetensors", &header));
    cmoe__header_free(&header);
    return CMOE_OK;
}
