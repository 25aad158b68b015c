/* SPDX-License-Identifier: MIT
 * safetensors headers: a table of hostile images, each with the code and words it must be refused
 * with, the legal oddities, and files written by Hugging Face's library.
 * ctest: labels=portable */
#include "harness.h"

#include "harness_files.h"
#include "io/memory.h"

#include <cmoe/io.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VECTORS CMOE_TEST_DIR "/vectors/safetensors/"

#define T(name, dtype, shape, begin, end)                                                          \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end \
    "]}"

struct row {
    const char *json;
    size_t data; /* bytes after the header */
    cmoe_status status;
    const char *part;
};

static const struct row rows[] = {
    /* legal */
    {"{}", 0, CMOE_OK, NULL},
    {"{}      ", 0, CMOE_OK, NULL},
    {"{" T("a", "F32", "[2,3]", 0, 24) "}", 24, CMOE_OK, NULL},
    {"{" T("a", "F32", "[]", 0, 4) "}   ", 4, CMOE_OK, NULL},
    {"{" T("a", "F32", "[0,7]", 0, 0) "}", 0, CMOE_OK, NULL},
    {"{" T("a", "U8", "[3]", 0, 3) "," T("b", "F32", "[0]", 3, 3) "," T("c", "U8", "[1]", 3, 4) "}",
     4, CMOE_OK, NULL},
    {"{" T("a", "U8", "[3]", 0, 3) "," T("b", "F32", "[0]", 0, 0) "}", 3, CMOE_OK, NULL},
    {"{" T("b", "U8", "[1]", 3, 4) "," T("a", "U8", "[3]", 0, 3) "}", 4, CMOE_OK, NULL},
    {"{" T("a", "F4", "[4]", 0, 2) "}", 2, CMOE_OK, NULL},
    {"{" T("a", "F6_E2M3", "[4]", 0, 3) "}", 3, CMOE_OK, NULL},
    {"{" T("a", "U8", "[9223372036854775807,0]", 0, 0) "}", 0, CMOE_OK, NULL},
    {"{" T("", "BOOL", "[1]", 0, 1) "}", 1, CMOE_OK, NULL},
    {"{\"__metadata__\":{\"k\":\"v\"}," T("a", "I64", "[1]", 0, 8) "}", 8, CMOE_OK, NULL},
    {"{" T("\\u00e9", "U8", "[1]", 0, 1) "}", 1, CMOE_OK, NULL},

    /* not JSON, or not the right JSON */
    {"", 0, CMOE_ERR_CORRUPT, "'{' at byte 8"},
    {" {}", 0, CMOE_ERR_CORRUPT, "'{' at byte 8"},
    {"[]", 0, CMOE_ERR_CORRUPT, "'{' at byte 8"},
    {"{", 0, CMOE_ERR_CORRUPT, "at byte"},
    {"{} x", 0, CMOE_ERR_CORRUPT, "end of file"},
    {"{\"a\":\"\xff\xfe\"}", 0, CMOE_ERR_CORRUPT, "unable to decode"},
    {"{\"a\":\"\xc0\x80\"}", 0, CMOE_ERR_CORRUPT, "unable to decode"},
    {"{\"a\":\"\\ud800\"}", 0, CMOE_ERR_CORRUPT, "invalid Unicode"},
    {"{\"a\":\"\n\"}", 0, CMOE_ERR_CORRUPT, "unexpected newline"},
    {"{\"a\\u0000b\":{}}", 0, CMOE_ERR_CORRUPT, "\\u0000"},
    {"{" T("a", "U8", "[1]", 0, 1) "," T("a", "U8", "[1]", 1, 2) "}", 2, CMOE_ERR_CORRUPT,
     "duplicate"},
    {"{" T("a", "U8", "[1]", 0, 1) "," T("\\u0061", "U8", "[1]", 1, 2) "}", 2, CMOE_ERR_CORRUPT,
     "duplicate"},
    {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     CMOE_ERR_CORRUPT, "duplicate"},
    {"{\"a\":[[[[1]]]]}", 0, CMOE_ERR_CORRUPT, "nested deeper than 3"},
    {"{\"a\":1}", 0, CMOE_ERR_CORRUPT, "tensor a is not an object"},
    {"{\"a\":{}}", 0, CMOE_ERR_CORRUPT, "no string \"dtype\""},

    /* metadata */
    {"{\"__metadata__\":[]}", 0, CMOE_ERR_CORRUPT, "__metadata__ is not an object"},
    {"{\"__metadata__\":{\"a\":1}}", 0, CMOE_ERR_CORRUPT, "key a is not a string"},
    {"{\"__metadata__\":{\"a\":null}}", 0, CMOE_ERR_CORRUPT, "key a is not a string"},
    {"{\"__metadata__\":{\"a\":{\"b\":\"c\"}}}", 0, CMOE_ERR_CORRUPT, "key a is not a string"},

    /* types */
    {"{" T("a", "F33", "[1]", 0, 4) "}", 4, CMOE_ERR_CORRUPT, "unknown dtype F33"},
    {"{" T("a", "f32", "[1]", 0, 4) "}", 4, CMOE_ERR_CORRUPT, "unknown dtype f32"},
    {"{" T("a", "", "[1]", 0, 4) "}", 4, CMOE_ERR_CORRUPT, "unknown dtype"},
    {"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, CMOE_ERR_CORRUPT, "dtype"},

    /* shapes */
    {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, CMOE_ERR_CORRUPT, "shape"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", 1, CMOE_ERR_CORRUPT, "shape"},
    {"{" T("a", "U8", "[-1]", 0, 1) "}", 1, CMOE_ERR_CORRUPT, "integer >= 0"},
    {"{" T("a", "U8", "[1.0]", 0, 1) "}", 1, CMOE_ERR_CORRUPT, "integer >= 0"},
    {"{" T("a", "U8", "[\\\"1\\\"]", 0, 1) "}", 1, CMOE_ERR_CORRUPT, "at byte"},
    {"{" T("a", "U8", "[true]", 0, 1) "}", 1, CMOE_ERR_CORRUPT, "integer >= 0"},
    {"{" T("a", "U8", "[18446744073709551617]", 0, 1) "}", 1, CMOE_ERR_CORRUPT, "too big integer"},
    {"{" T("a", "U8", "[4294967296,4294967296]", 0, 0) "}", 0, CMOE_ERR_CORRUPT, "overflows"},
    {"{" T("a", "F32", "[4611686018427387904,4]", 0, 0) "}", 0, CMOE_ERR_CORRUPT, "overflows"},
    {"{" T("a", "U8", "[4294967296,4294967296,0]", 0, 0) "}", 0, CMOE_ERR_CORRUPT, "overflows"},
    {"{" T("a", "F4", "[3]", 0, 2) "}", 2, CMOE_ERR_CORRUPT, "whole byte"},
    {"{" T("a", "F6_E3M2", "[3]", 0, 3) "}", 3, CMOE_ERR_CORRUPT, "whole byte"},
    {"{" T("a", "U8", "[1,1,1,1,1,1,1,1,1]", 0, 1) "}", 1, CMOE_ERR_UNSUPPORTED, "9 dimensions"},

    /* offsets */
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, CMOE_ERR_CORRUPT, "data_offsets"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, CMOE_ERR_CORRUPT,
     "data_offsets"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", 1, CMOE_ERR_CORRUPT,
     "data_offsets"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1.0]}}", 1, CMOE_ERR_CORRUPT,
     "data_offsets"},
    {"{" T("a", "U8", "[1]", -1, 0) "}", 1, CMOE_ERR_CORRUPT, "-1 to 0"},
    {"{" T("a", "U8", "[1]", 1, 0) "}", 1, CMOE_ERR_CORRUPT, "1 to 0"},
    {"{" T("a", "U8", "[2]", 0, 2) "}", 1, CMOE_ERR_CORRUPT, "1 bytes of data"},
    {"{" T("a", "U8", "[1]", 9223372036854775806, 9223372036854775807) "}", 1, CMOE_ERR_CORRUPT,
     "9223372036854775807"},
    {"{" T("a", "U8", "[2]", 0, 1) "}", 1, CMOE_ERR_CORRUPT, "shape needs 2"},
    {"{" T("a", "U8", "[1]", 0, 2) "}", 2, CMOE_ERR_CORRUPT, "shape needs 1"},
    {"{" T("a", "U8", "[1]", 1, 2) "}", 2, CMOE_ERR_CORRUPT, "hole after 0"},
    {"{" T("a", "U8", "[1]", 0, 1) "," T("b", "U8", "[1]", 2, 3) "}", 3, CMOE_ERR_CORRUPT,
     "hole after 1"},
    {"{" T("a", "U8", "[2]", 0, 2) "," T("b", "U8", "[2]", 1, 3) "}", 3, CMOE_ERR_CORRUPT,
     "inside the one that ends at 2"},
    {"{" T("a", "U8", "[2]", 0, 2) "," T("b", "U8", "[2]", 0, 2) "}", 2, CMOE_ERR_CORRUPT,
     "inside the one"},
    {"{" T("a", "U8", "[3]", 0, 3) "," T("b", "U8", "[0]", 1, 1) "}", 3, CMOE_ERR_CORRUPT,
     "inside the one"},
    {"{" T("a", "U8", "[1]", 0, 1) "}", 2, CMOE_ERR_CORRUPT, "end at byte 1"},
    {"{}", 1, CMOE_ERR_CORRUPT, "end at byte 0"},

    /* an entry with something cmoe does not know cannot be understood */
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"strides\":[1]}}", 1,
     CMOE_ERR_CORRUPT, "unknown key"},
    /* names are data */
    {"{\"\\u001b[31mred\":1}", 0, CMOE_ERR_CORRUPT, "tensor ?[31mred is"},
};

static uint8_t *make_image(const char *json, size_t n, size_t data, size_t *size)
{
    uint8_t *const image = calloc(8 + n + data, 1);
    assert_non_null(image);
    for (int i = 0; i < 8; i++)
        image[i] = (uint8_t)((uint64_t)n >> 8 * i);
    memcpy(image + 8, json, n);
    *size = 8 + n + data;
    return image;
}

static void test_table(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct row *const row = &rows[i];
        size_t size;
        const size_t n = strlen(row->json);
        uint8_t *const image = make_image(row->json, n, row->data, &size);
        /* The data need not be there; the image is a copy of just the header, for the sanitizer. */
        uint8_t *const header = malloc(8 + n);
        assert_non_null(header);
        memcpy(header, image, 8 + n);
        if (row->status == CMOE_OK) {
            expect_ok(cmoe_safetensors_check(image, size, size));
            expect_ok(cmoe_safetensors_check(header, 8 + n, size));
        } else {
            expect_error(cmoe_safetensors_check(image, size, size), row->status, row->part);
            expect_error(cmoe_safetensors_check(header, 8 + n, size), row->status, row->part);
        }
        free(header);
        free(image);
    }
}

static void test_lengths(void **state)
{
    (void)state;
    uint8_t image[64] = {0};
    expect_error(cmoe_safetensors_check(image, 0, 0), CMOE_ERR_CORRUPT, "0 bytes");
    expect_error(cmoe_safetensors_check(image, 7, 7), CMOE_ERR_CORRUPT, "7 bytes");
    expect_error(cmoe_safetensors_check(image, 8, 8), CMOE_ERR_CORRUPT, "'{'");
    memcpy(image, "\x03\0\0\0\0\0\0\0{}", 10);
    expect_error(cmoe_safetensors_check(image, 10, 10), CMOE_ERR_CORRUPT,
                 "3 bytes in a file of 10");
    expect_error(cmoe_safetensors_check(image, 10, 11), CMOE_ERR_INVALID, "ends at byte 11");
    memset(image, 0xff, 8);
    expect_error(cmoe_safetensors_check(image, 64, UINT64_MAX), CMOE_ERR_CORRUPT,
                 "18446744073709551615");
    memcpy(image, "\x01\xe1\xf5\x05\0\0\0\0", 8); /* 100,000,001 */
    expect_error(cmoe_safetensors_check(image, 64, UINT64_MAX), CMOE_ERR_CORRUPT, "100000000");
    memcpy(image, "\x00\xe1\xf5\x05\0\0\0\0", 8);
    expect_error(cmoe_safetensors_check(image, 64, UINT64_MAX), CMOE_ERR_INVALID, "100000008");
    static const char lfs[] = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    expect_error(cmoe_safetensors_check(lfs, sizeof lfs - 1, sizeof lfs - 1), CMOE_ERR_CORRUPT,
                 "git lfs pull");
}

static void test_every_truncation(void **state)
{
    (void)state;
    size_t size;
    static const char json[] = "{" T("a", "F32", "[2,3]", 0, 24) "}";
    uint8_t *const image = make_image(json, sizeof json - 1, 24, &size);
    expect_ok(cmoe_safetensors_check(image, size, size));
    for (size_t cut = 0; cut < size; cut++) {
        uint8_t *const copy = malloc(cut + 1);
        assert_non_null(copy);
        memcpy(copy, image, cut);
        expect_error(cmoe_safetensors_check(copy, cut, cut), CMOE_ERR_CORRUPT, "safetensors: ");
        free(copy);
    }
    expect_error(cmoe_safetensors_check(image, size, size + 1), CMOE_ERR_CORRUPT, "end at byte 24");
    free(image);
}

/* What jansson has allocated, for the promise that memory follows the file's real size. */
static size_t json_bytes, json_most;

static void *counted_malloc(size_t size)
{
    size_t *const block = malloc(size + sizeof(size_t));
    if (!block) return NULL;
    *block = size;
    json_bytes += size;
    if (json_bytes > json_most) json_most = json_bytes;
    return block + 1;
}

static void counted_free(void *ptr)
{
    if (!ptr) return;
    size_t *const block = (size_t *)ptr - 1;
    json_bytes -= *block;
    free(block);
}

/* `unit` repeated with commas between to about 1 MB, in `open` and `close`; '#' is a number. */
static void check_cost(const char *open, const char *unit, const char *close, cmoe_status status)
{
    enum { BYTES = 1 << 20 };
    char *const json = malloc(BYTES + 256);
    assert_non_null(json);
    size_t n = (size_t)sprintf(json, "%s", open), size;
    for (unsigned i = 0; n < BYTES; i++) {
        if (i) json[n++] = ',';
        for (const char *c = unit; *c; c++) {
            n += (size_t)(*c == '#' ? sprintf(json + n, "%x", i) : sprintf(json + n, "%c", *c));
        }
    }
    n += (size_t)sprintf(json + n, "%s", close);
    uint8_t *const image = make_image(json, n, 0, &size);
    json_most = 0;
    const cmoe_status got = cmoe_safetensors_check(image, size, size);
    if (got != status) fail_with("%s: %s", unit, cmoe_last_error());
    if (json_most > 32 * size) fail_with("%s: %zu bytes of memory for %zu", unit, json_most, size);
    free(json);
    free(image);
}

static void test_memory_follows_size(void **state)
{
    (void)state;
    json_set_alloc_funcs(counted_malloc, counted_free);
    check_cost("{", "\"#\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}", "}", CMOE_OK);
    check_cost("{", "\"#\":{\"dtype\":\"U8\",\"shape\":[0,1,1,1,1,1,1,1],\"data_offsets\":[0,0]}",
               "}", CMOE_OK);
    check_cost("{\"__metadata__\":{", "\"#\":\"\"", "}}", CMOE_OK);
    check_cost("{", "\"#\":{}", "}", CMOE_ERR_CORRUPT);
    check_cost("{\"a\":[", "[]", "]}", CMOE_ERR_CORRUPT);
    check_cost("{\"a\":[", "1", "]}", CMOE_ERR_CORRUPT);
    check_cost("{", "\"#\":1", "}", CMOE_ERR_CORRUPT);
    check_cost("{\"a\":", "[[[[[[[[", "}", CMOE_ERR_CORRUPT);
    json_set_alloc_funcs(malloc, free);
}

static long json_left;

static void *failing_malloc(size_t size)
{
    return json_left-- > 0 ? malloc(size) : NULL;
}

static void test_every_allocation_fails(void **state)
{
    (void)state;
    static const char json[] = "{\"__metadata__\":{\"k\":\"v\"}," T("a", "F32", "[2,3]", 0, 24) "}";
    size_t size;
    uint8_t *const image = make_image(json, sizeof json - 1, 24, &size);
    for (int n = 1; n <= 2; n++) {
        cmoe__io_alloc_fail(n);
        expect_error(cmoe_safetensors_check(image, size, size), CMOE_ERR_NO_MEMORY, "no memory");
    }
    cmoe__io_alloc_fail(0);
    /* jansson calls some of its failures syntax errors; none may be a success or a leak. */
    json_set_alloc_funcs(failing_malloc, free);
    long n = 0;
    cmoe_status status = CMOE_ERR_NO_MEMORY;
    while (status == CMOE_ERR_NO_MEMORY || status == CMOE_ERR_CORRUPT) {
        json_left = n++;
        status = cmoe_safetensors_check(image, size, size);
    }
    json_set_alloc_funcs(malloc, free);
    free(image);
    expect_ok(status);
    assert_true(n > 20);
}

/* ---- files of Hugging Face's library ---- */

static const cmoe_tensor_info *find(const cmoe_checkpoint *c, const char *name, const char *dtype,
                                    int ndim, size_t bytes)
{
    const cmoe_tensor_info *const t = cmoe_checkpoint_find(c, name);
    if (!t) fail_with("no tensor %s", name);
    assert_string_equal(t->dtype, dtype);
    assert_int_equal(t->ndim, ndim);
    assert_int_equal(t->bytes, bytes);
    assert_string_equal(t->name, name);
    return t;
}

static void test_hugging_face_types(void **state)
{
    (void)state;
    static const struct {
        const char *name, *dtype;
        size_t bytes; /* of an element */
    } types[] = {
        {"bool", "BOOL", 1}, {"u8", "U8", 1},   {"i8", "I8", 1},   {"u16", "U16", 2},
        {"i16", "I16", 2},   {"f16", "F16", 2}, {"i32", "I32", 4}, {"u32", "U32", 4},
        {"f32", "F32", 4},   {"f64", "F64", 8}, {"i64", "I64", 8}, {"u64", "U64", 8},
        {"bf16", "BF16", 2},
    };
    cmoe_checkpoint *c;
    expect_ok(cmoe_checkpoint_open(VECTORS "types.safetensors", &c));
    assert_int_equal(cmoe_checkpoint_count(c), 17);
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        const cmoe_tensor_info *const t =
            find(c, types[i].name, types[i].dtype, 2, 6 * types[i].bytes);
        assert_int_equal(t->shape[0], 2);
        assert_int_equal(t->shape[1], 3);
        assert_string_equal(t->file, "types.safetensors");
    }
    static const float f32[] = {0, 1, 2, 3, 4, 5};
    static const int64_t i64[] = {0, 1, 2, 3, 4, 5};
    static const uint16_t bf16[] = {0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0};
    static const uint8_t u8[] = {0, 1, 2, 3, 4, 5};
    assert_same_bytes(find(c, "f32", "F32", 2, 24)->data, f32, sizeof f32);
    assert_same_bytes(find(c, "i64", "I64", 2, 48)->data, i64, sizeof i64);
    assert_same_bytes(find(c, "bf16", "BF16", 2, 12)->data, bf16, sizeof bf16);
    assert_same_bytes(find(c, "u8", "U8", 2, 6)->data, u8, sizeof u8);
    static const float scalar = 3.5f;
    assert_same_bytes(find(c, "scalar", "F32", 0, 4)->data, &scalar, 4);
    assert_int_equal(find(c, "empty", "F32", 2, 0)->shape[1], 5);
    find(c, "bytes", "U8", 1, 3);
    find(c, "name \"with\" \\ and \n and \xc3\xa9", "F32", 1, 4);
    for (int64_t i = 1; i < cmoe_checkpoint_count(c); i++) {
        assert_true(strcmp(cmoe_checkpoint_at(c, i - 1)->name, cmoe_checkpoint_at(c, i)->name) < 0);
    }
    assert_null(cmoe_checkpoint_at(c, 17));
    assert_null(cmoe_checkpoint_at(c, -1));
    assert_null(cmoe_checkpoint_find(c, "none"));
    cmoe_checkpoint_close(c);
}

static void test_hugging_face_others(void **state)
{
    (void)state;
    static const uint8_t codes[] = {0, 1, 2, 3, 4, 5, 6, 7};
    cmoe_checkpoint *c;
    expect_ok(cmoe_checkpoint_open(VECTORS "none.safetensors", &c));
    assert_int_equal(cmoe_checkpoint_count(c), 0);
    assert_null(cmoe_checkpoint_find(c, "a"));
    cmoe_checkpoint_close(c);
    expect_ok(cmoe_checkpoint_open(VECTORS "float8.safetensors", &c));
    assert_int_equal(cmoe_checkpoint_count(c), 3);
    assert_same_bytes(find(c, "e4m3", "F8_E4M3", 2, 8)->data, codes, 8);
    assert_same_bytes(find(c, "e5m2", "F8_E5M2", 1, 8)->data, codes, 8);
    assert_same_bytes(find(c, "e8m0", "F8_E8M0", 1, 8)->data, codes, 8);
    cmoe_checkpoint_close(c);
}

/* One flipped byte anywhere in a real header is refused or still describes the same bytes. */
static void test_flipped_bytes(void **state)
{
    (void)state;
    size_t size;
    uint8_t *const image = file_bytes(VECTORS "float8.safetensors", &size);
    int refused = 0;
    for (size_t i = 0; i < size - 24; i++) {
        for (int bit = 0; bit < 8; bit++) {
            image[i] ^= (uint8_t)(1 << bit);
            refused += cmoe_safetensors_check(image, size, size) != CMOE_OK;
            image[i] ^= (uint8_t)(1 << bit);
        }
    }
    expect_ok(cmoe_safetensors_check(image, size, size));
    assert_true(refused > 1000);
    free(image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_every_truncation),
        cmocka_unit_test(test_memory_follows_size),
        cmocka_unit_test(test_every_allocation_fails),
        cmocka_unit_test(test_hugging_face_types),
        cmocka_unit_test(test_hugging_face_others),
        cmocka_unit_test(test_flipped_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
