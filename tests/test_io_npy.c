/* SPDX-License-Identifier: MIT
 * .npy files: NumPy's own must be read and equalled byte for byte, broken ones refused in words.
 * ctest: labels=portable */
#include "harness.h"

#include "harness_files.h"
#include "io/memory.h"

#include <cmoe/io.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define VECTORS CMOE_TEST_DIR "/vectors/npy/"

/* What tools/gen_npy_vectors.py put into <type>.npy. */
static double value_of(bool is_unsigned, int i)
{
    return 5 * i - (is_unsigned ? 0 : 60);
}

static double load(const cmoe_array *a, int i)
{
    const cmoe_dtype type = a->dtype;
    if (type == CMOE_F32) return (double)((const float *)a->data)[i];
    if (type == CMOE_F16) return (double)cmoe_decode(CMOE_F16, ((const uint16_t *)a->data)[i]);
    if (type == CMOE_BF16) return ((const uint16_t *)a->data)[i]; /* travels as u2: the code */
    if (type == CMOE_I32) return ((const int32_t *)a->data)[i];
    if (type == CMOE_I64) return (double)((const int64_t *)a->data)[i];
    if (type == CMOE_I8) return ((const int8_t *)a->data)[i];
    return ((const uint8_t *)a->data)[i];
}

static const struct {
    const char *name;
    cmoe_dtype dtype;
    int ndim;
    int64_t shape[3];
} vectors[] = {
    {"f4", CMOE_F32, 3, {2, 3, 4}},  {"f2", CMOE_F16, 3, {2, 3, 4}},
    {"u2", CMOE_BF16, 3, {2, 3, 4}}, {"i4", CMOE_I32, 3, {2, 3, 4}},
    {"i8", CMOE_I64, 3, {2, 3, 4}},  {"i1", CMOE_I8, 3, {2, 3, 4}},
    {"u1", CMOE_U8, 3, {2, 3, 4}},   {"scalar", CMOE_F32, 0, {0}},
    {"vector", CMOE_I32, 1, {7}},    {"empty", CMOE_F32, 3, {3, 0, 2}},
    {"version2", CMOE_I32, 1, {5}},  {"version3", CMOE_I32, 1, {5}},
};
enum { VECTOR_COUNT = sizeof vectors / sizeof vectors[0], SAME_BYTES = 10 };

static const char *vector_path(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, VECTORS "%s.npy", name);
    return path;
}

static void test_reads_numpy(void **state)
{
    (void)state;
    for (int v = 0; v < VECTOR_COUNT; v++) {
        cmoe_array a;
        expect_ok(cmoe_npy_read(vector_path(vectors[v].name), &a));
        assert_int_equal(a.dtype, vectors[v].dtype);
        assert_int_equal(a.ndim, vectors[v].ndim);
        int64_t n = 1;
        for (int d = 0; d < a.ndim; d++) {
            assert_int_equal(a.shape[d], vectors[v].shape[d]);
            n *= a.shape[d];
        }
        assert_int_equal(a.bytes, n * cmoe_dtype_bits(a.dtype) / 8);
        for (int i = 0; i < n; i++) {
            const bool is_unsigned = vectors[v].name[0] == 'u';
            double want = n == 24 ? value_of(is_unsigned, i) : i;
            if (n == 1) want = 2.5;
            if (load(&a, i) != want) fail_with("%s[%d]", vectors[v].name, i);
        }
        cmoe_array_free(&a);
        assert_null(a.data);
    }
}

static void test_writes_what_numpy_writes(void **state)
{
    (void)state;
    struct folder f;
    folder_make(&f);
    for (int v = 0; v < SAME_BYTES; v++) {
        cmoe_array a;
        size_t got_size, want_size;
        expect_ok(cmoe_npy_read(vector_path(vectors[v].name), &a));
        expect_ok(cmoe_npy_write(folder_path(&f, "a.npy"), &a));
        void *const got = file_bytes(folder_path(&f, "a.npy"), &got_size);
        void *const want = file_bytes(vector_path(vectors[v].name), &want_size);
        assert_int_equal(got_size, want_size);
        assert_same_bytes(got, want, want_size);
        free(got);
        free(want);
        cmoe_array_free(&a);
    }
    assert_int_equal(folder_count(&f), 1);
    folder_remove(&f);
}

static void test_refuses_other_numpy_files(void **state)
{
    (void)state;
    cmoe_array a;
    expect_error(cmoe_npy_read(vector_path("fortran"), &a), CMOE_ERR_UNSUPPORTED, "Fortran");
    expect_error(cmoe_npy_read(vector_path("double"), &a), CMOE_ERR_UNSUPPORTED, "<f8");
    expect_error(cmoe_npy_read(vector_path("object"), &a), CMOE_ERR_UNSUPPORTED, "|O");
    assert_null(a.data);
}

#define DICT(shape) "{'descr': '<f4', 'fortran_order': False, 'shape': " shape "}\n"

/* Header texts, given 24 bytes of data. */
static const struct {
    const char *header;
    cmoe_status status;
    const char *part;
} headers[] = {
    {DICT("(6,)"), CMOE_OK, NULL},
    {DICT("(2, 3)"), CMOE_OK, NULL},
    {DICT("(2,3,)"), CMOE_OK, NULL},
    {"{\"shape\":(6,),\"descr\":\"<f4\",\"fortran_order\":False,}    \n", CMOE_OK, NULL},
    {DICT("(1, 1, 1, 1, 1, 1, 2, 3)"), CMOE_OK, NULL},
    {DICT("(1, 1, 1, 1, 1, 1, 1, 2, 3)"), CMOE_ERR_UNSUPPORTED, "8 dimensions"},
    {DICT("(6)"), CMOE_ERR_CORRUPT, "tuple"},
    {DICT("[6]"), CMOE_ERR_CORRUPT, "'('"},
    {DICT("6"), CMOE_ERR_CORRUPT, "'('"},
    {DICT("(-6,)"), CMOE_ERR_CORRUPT, "a size"},
    {DICT("(6.0,)"), CMOE_ERR_CORRUPT, "','"},
    {DICT("(6L,)"), CMOE_ERR_CORRUPT, "','"},
    {DICT("(,)"), CMOE_ERR_CORRUPT, "a size"},
    {DICT("(2,,3)"), CMOE_ERR_CORRUPT, "a size"},
    {DICT("(2 3)"), CMOE_ERR_CORRUPT, "','"},
    {DICT("(7,)"), CMOE_ERR_CORRUPT, "28 bytes"},
    {DICT("(5,)"), CMOE_ERR_CORRUPT, "20 bytes"},
    {DICT("()"), CMOE_ERR_CORRUPT, "4 bytes"},
    {DICT("(9223372036854775807,)"), CMOE_ERR_CORRUPT, "2^64"},
    {DICT("(9223372036854775808,)"), CMOE_ERR_CORRUPT, "2^63"},
    {DICT("(4294967296, 4294967296)"), CMOE_ERR_CORRUPT, "2^64"},
    {DICT("(4611686018427387904, 4)"), CMOE_ERR_CORRUPT, "2^64"},
    {DICT("(2, 3), 'shape': (2, 3)"), CMOE_ERR_CORRUPT, "repeated key 'shape'"},
    {DICT("(2, 3), 'extra': (2, 3)"), CMOE_ERR_CORRUPT, "unknown key 'extra'"},
    {"{'descr': '<f4', 'shape': (6,)}\n", CMOE_ERR_CORRUPT, "before the end"},
    {"{}\n", CMOE_ERR_CORRUPT, "before the end"},
    {"", CMOE_ERR_CORRUPT, "'{'"},
    {"{'descr': '>f4', 'fortran_order': False, 'shape': (6,)}\n", CMOE_ERR_UNSUPPORTED, ">f4"},
    {"{'descr': 'O', 'fortran_order': False, 'shape': (6,)}\n", CMOE_ERR_UNSUPPORTED, "'O'"},
    {"{'descr': '<f\\x34', 'fortran_order': False, 'shape': (6,)}\n", CMOE_ERR_CORRUPT, "plain"},
    {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6,)}\n", CMOE_ERR_UNSUPPORTED,
     "structured"},
    {"{'descr': \"<f4', 'fortran_order': False, 'shape': (6,)}\n", CMOE_ERR_CORRUPT, "string"},
    {"{'descr': '\x1b[31m', 'fortran_order': False, 'shape': (6,)}\n", CMOE_ERR_UNSUPPORTED,
     "'?[31m'"},
    {"{'descr': '<f4', 'fortran_order': 0, 'shape': (6,)}\n", CMOE_ERR_CORRUPT, "True or False"},
    {"{'descr': '<f4', 'fortran_order': false, 'shape': (6,)}\n", CMOE_ERR_CORRUPT, "True or"},
    {"{'descr': '<f4' 'fortran_order': False, 'shape': (6,)}\n", CMOE_ERR_CORRUPT, "',' or '}'"},
    {"{'descr' '<f4', 'fortran_order': False, 'shape': (6,)}\n", CMOE_ERR_CORRUPT, "':'"},
    {"{descr: '<f4', 'fortran_order': False, 'shape': (6,)}\n", CMOE_ERR_CORRUPT, "a string"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (6,)}", CMOE_ERR_CORRUPT, "newline"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (6,)}\n ", CMOE_ERR_CORRUPT, "newline"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (6,)} x\n", CMOE_ERR_CORRUPT, "newline"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (6", CMOE_ERR_CORRUPT, "in the shape"},
    {"__import__('os').system('true')\n", CMOE_ERR_CORRUPT, "'{'"},
};

static size_t make_image(const char *header, size_t data, uint8_t *image)
{
    const size_t n = strlen(header);
    memcpy(image, "\x93NUMPY\x01\x00", 8);
    image[8] = (uint8_t)(n & 0xff);
    image[9] = (uint8_t)(n >> 8);
    memcpy(image + 10, header, n);
    for (size_t i = 0; i < data; i++)
        image[10 + n + i] = (uint8_t)(i + 1);
    return 10 + n + data;
}

static void test_header_grammar(void **state)
{
    (void)state;
    struct folder f;
    uint8_t image[512];
    folder_make(&f);
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        cmoe_array a = {0}, b = {0};
        const size_t n = make_image(headers[i].header, 24, image);
        folder_write(&f, "a.npy", image, n);
        if (headers[i].status == CMOE_OK) {
            expect_ok(cmoe_npy_parse(image, n, &a));
            expect_ok(cmoe_npy_read(folder_path(&f, "a.npy"), &b));
            assert_ptr_equal(a.data, image + n - 24);
            assert_same_bytes(b.data, image + n - 24, 24);
        } else {
            expect_error(cmoe_npy_parse(image, n, &a), headers[i].status, headers[i].part);
            expect_error(cmoe_npy_read(folder_path(&f, "a.npy"), &b), headers[i].status,
                         headers[i].part);
        }
        cmoe_array_free(&b);
    }
    folder_remove(&f);
}

static void test_broken_prefix(void **state)
{
    (void)state;
    struct folder f;
    uint8_t image[512];
    cmoe_array a;
    folder_make(&f);
    const size_t n = make_image(DICT("(6,)"), 24, image);
    /* Every truncation, by both readers. */
    for (size_t cut = 0; cut < n; cut++) {
        uint8_t *const copy = malloc(cut + 1);
        assert_non_null(copy);
        memcpy(copy, image, cut);
        expect_error(cmoe_npy_parse(copy, cut, &a), CMOE_ERR_CORRUPT, "npy: ");
        free(copy);
        folder_write(&f, "cut.npy", image, cut);
        expect_error(cmoe_npy_read(folder_path(&f, "cut.npy"), &a), CMOE_ERR_CORRUPT, "npy: ");
    }
    expect_error(cmoe_npy_parse(image, n + 1, &a), CMOE_ERR_CORRUPT, "25");
    image[6] = 4;
    expect_error(cmoe_npy_parse(image, n, &a), CMOE_ERR_CORRUPT, "version 4.0");
    image[6] = 1;
    image[7] = 1;
    expect_error(cmoe_npy_parse(image, n, &a), CMOE_ERR_CORRUPT, "version 1.1");
    memcpy(image + 6, "\x02\x00\xff\xff\xff\x7f", 6);
    expect_error(cmoe_npy_parse(image, n, &a), CMOE_ERR_CORRUPT, "2147483647 bytes");
    image[0] = 'x';
    expect_error(cmoe_npy_parse(image, n, &a), CMOE_ERR_CORRUPT, "byte 0");
    folder_remove(&f);
}

static void test_huge_shape_takes_no_memory(void **state)
{
    (void)state;
    uint8_t image[512];
    struct folder f;
    cmoe_array a;
    folder_make(&f);
    const size_t n = make_image(DICT("(1000000000000000,)"), 24, image);
    folder_write(&f, "huge.npy", image, n);
    cmoe__io_alloc_fail(1); /* would be NO_MEMORY if it tried */
    expect_error(cmoe_npy_read(folder_path(&f, "huge.npy"), &a), CMOE_ERR_CORRUPT,
                 "4000000000000000 bytes");
    cmoe__io_alloc_fail(0);
    folder_remove(&f);
}

static void test_not_a_file(void **state)
{
    (void)state;
    struct folder f;
    cmoe_array a;
    folder_make(&f);
    expect_error(cmoe_npy_read(folder_path(&f, "none"), &a), CMOE_ERR_IO, "No such file");
    expect_error(cmoe_npy_read(f.path, &a), CMOE_ERR_IO, "not a regular file");
    assert_int_equal(mkfifo(folder_path(&f, "fifo"), 0600), 0);
    expect_error(cmoe_npy_read(folder_path(&f, "fifo"), &a), CMOE_ERR_IO, "not a regular file");
    folder_remove(&f);
}

static cmoe_array some_array(float *values, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        values[i] = (float)(i + 1);
    return (cmoe_array){.dtype = CMOE_F32,
                        .ndim = 1,
                        .shape = {n},
                        .bytes = (size_t)n * sizeof(float),
                        .data = values};
}

static void test_write_refuses(void **state)
{
    (void)state;
    struct folder f;
    float values[6];
    folder_make(&f);
    const char *const path = folder_path(&f, "a.npy");
    const cmoe_array good = some_array(values, 6);
    cmoe_array a = good;
    a.shape[0] = 7;
    expect_error(cmoe_npy_write(path, &a), CMOE_ERR_INVALID, "28 bytes");
    a.shape[0] = -1;
    expect_error(cmoe_npy_write(path, &a), CMOE_ERR_INVALID, "-1");
    a = good;
    a.ndim = 9;
    expect_error(cmoe_npy_write(path, &a), CMOE_ERR_INVALID, "at most 8");
    a = good;
    a.dtype = CMOE_E4M3;
    expect_error(cmoe_npy_write(path, &a), CMOE_ERR_INVALID, "e4m3");
    a = good;
    a.data = NULL;
    expect_error(cmoe_npy_write(path, &a), CMOE_ERR_INVALID, "has 0");
    a = good;
    a.ndim = 2;
    a.shape[0] = a.shape[1] = INT64_MAX;
    expect_error(cmoe_npy_write(path, &a), CMOE_ERR_INVALID, "dimension");
    assert_int_equal(folder_count(&f), 0);
    folder_remove(&f);
}

static void test_failed_write_leaves_the_old_file(void **state)
{
    (void)state;
    enum { LARGE = 4096 };
    struct folder f;
    float *const values = malloc(LARGE * sizeof *values);
    cmoe_array a, back;
    assert_non_null(values);
    folder_make(&f);
    a = some_array(values, 6);
    expect_ok(cmoe_npy_write(folder_path(&f, "a.npy"), &a));

    a = some_array(values, LARGE);
    disk_limit(4096);
    expect_error(cmoe_npy_write(folder_path(&f, "a.npy"), &a), CMOE_ERR_IO, "cannot write");
    disk_limit(0);
    expect_ok(cmoe_npy_read(folder_path(&f, "a.npy"), &back));
    assert_int_equal(back.shape[0], 6);
    cmoe_array_free(&back);

    expect_error(cmoe_npy_write(folder_path(&f, "no/such/a.npy"), &a), CMOE_ERR_IO, "create");
    assert_int_equal(mkdir(folder_path(&f, "folder"), 0700), 0);
    expect_error(cmoe_npy_write(folder_path(&f, "folder"), &a), CMOE_ERR_IO, "rename");
    cmoe__io_alloc_fail(1);
    expect_error(cmoe_npy_write(folder_path(&f, "a.npy"), &a), CMOE_ERR_NO_MEMORY, "path");
    assert_int_equal(folder_count(&f), 2);
    expect_ok(cmoe_npy_write(folder_path(&f, "a.npy"), &a));
    cmoe__io_alloc_fail(1);
    expect_error(cmoe_npy_read(folder_path(&f, "a.npy"), &back), CMOE_ERR_NO_MEMORY, "16384");
    assert_null(back.data);
    folder_remove(&f);
    free(values);
}

static void test_stale_partial(void **state)
{
    (void)state;
    struct folder f;
    float values[6];
    cmoe_array a = some_array(values, 6), back;
    folder_make(&f);
    folder_text(&f, "a.npy.partial", "left by a process that was killed");
    expect_ok(cmoe_npy_write(folder_path(&f, "a.npy"), &a));
    expect_ok(cmoe_npy_read(folder_path(&f, "a.npy"), &back));
    assert_same_bytes(back.data, values, sizeof values);
    cmoe_array_free(&back);
    assert_int_equal(folder_count(&f), 1);
    folder_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_numpy),
        cmocka_unit_test(test_writes_what_numpy_writes),
        cmocka_unit_test(test_refuses_other_numpy_files),
        cmocka_unit_test(test_header_grammar),
        cmocka_unit_test(test_broken_prefix),
        cmocka_unit_test(test_huge_shape_takes_no_memory),
        cmocka_unit_test(test_not_a_file),
        cmocka_unit_test(test_write_refuses),
        cmocka_unit_test(test_failed_write_leaves_the_old_file),
        cmocka_unit_test(test_stale_partial),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
