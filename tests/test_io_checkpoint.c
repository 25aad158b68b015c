/* SPDX-License-Identifier: MIT
 * Checkpoints in a temporary folder: whole, in shards, and in every way that they come broken.
 * ctest: labels=portable */
#include "harness.h"

#include "harness_files.h"
#include "io/memory.h"

#include <cmoe/io.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define VECTORS CMOE_TEST_DIR "/vectors/safetensors/"
#define INDEX   "model.safetensors.index.json"

/* A file with one U8 tensor of n bytes: first, first + 1, ... */
static void write_shard(struct folder *f, const char *file, const char *tensor, int n, int first)
{
    char image[512];
    const int length = snprintf(
        image + 8, sizeof image - 8,
        "{\"%s\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[0,%d]}}", tensor, n, n);
    memset(image, 0, 8);
    image[0] = (char)length;
    for (int i = 0; i < n; i++)
        image[8 + length + i] = (char)(first + i);
    folder_write(f, file, image, (size_t)(8 + length + n));
}

static void write_two_shards(struct folder *f)
{
    folder_make(f);
    write_shard(f, "one.safetensors", "a", 3, 10);
    write_shard(f, "two.safetensors", "b", 5, 20);
}

static void check_two_shards(const char *path)
{
    cmoe_checkpoint *c;
    expect_ok(cmoe_checkpoint_open(path, &c));
    assert_int_equal(cmoe_checkpoint_count(c), 2);
    const cmoe_tensor_info *const a = cmoe_checkpoint_find(c, "a");
    const cmoe_tensor_info *const b = cmoe_checkpoint_find(c, "b");
    assert_non_null(a);
    assert_non_null(b);
    assert_ptr_equal(a, cmoe_checkpoint_at(c, 0));
    assert_ptr_equal(b, cmoe_checkpoint_at(c, 1));
    assert_string_equal(a->file, "one.safetensors");
    assert_string_equal(b->file, "two.safetensors");
    assert_same_bytes(a->data, "\x0a\x0b\x0c", 3);
    assert_same_bytes(b->data, "\x14\x15\x16\x17\x18", 5);
    cmoe_checkpoint_close(c);
}

static void test_single_file(void **state)
{
    (void)state;
    struct folder f;
    cmoe_checkpoint *c;
    folder_make(&f);
    write_shard(&f, "model.safetensors", "x", 4, 1);
    const char *const paths[] = {"model.safetensors", "."};
    for (int i = 0; i < 2; i++) {
        expect_ok(cmoe_checkpoint_open(folder_path(&f, paths[i]), &c));
        assert_int_equal(cmoe_checkpoint_count(c), 1);
        assert_same_bytes(cmoe_checkpoint_find(c, "x")->data, "\1\2\3\4", 4);
        assert_string_equal(cmoe_checkpoint_at(c, 0)->file, "model.safetensors");
        cmoe_checkpoint_close(c);
    }
    folder_remove(&f);
    cmoe_checkpoint_close(NULL);
}

static void test_relative_path(void **state)
{
    (void)state;
    struct folder f;
    char before[512];
    write_two_shards(&f);
    folder_text(&f, INDEX,
                "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}");
    assert_non_null(getcwd(before, sizeof before));
    assert_int_equal(chdir(f.path), 0);
    check_two_shards(INDEX);
    check_two_shards(".");
    assert_int_equal(chdir(before), 0);
    folder_remove(&f);
}

static void test_shards(void **state)
{
    (void)state;
    struct folder f;
    write_two_shards(&f);
    folder_text(&f, INDEX,
                "{\"metadata\":{\"total_size\":8,\"x\":[{\"y\":{}}]},"
                "\"weight_map\":{\"b\":\"two.safetensors\",\"a\":\"one.safetensors\"}}");
    check_two_shards(f.path);
    check_two_shards(folder_path(&f, INDEX));
    /* As in a download cache: the files are links. */
    struct folder blobs;
    folder_make(&blobs);
    write_shard(&blobs, "blob", "a", 3, 10);
    assert_int_equal(unlink(folder_path(&f, "one.safetensors")), 0);
    assert_int_equal(symlink(folder_path(&blobs, "blob"), folder_path(&f, "one.safetensors")), 0);
    check_two_shards(f.path);
    folder_remove(&blobs);
    folder_remove(&f);
}

#define MAP(a, b) "{\"weight_map\":{\"a\":\"" a "\",\"b\":\"" b "\"}}"

static const struct {
    const char *index;
    cmoe_status status;
    const char *part;
} indexes[] = {
    {MAP("one.safetensors", "three.safetensors"), CMOE_ERR_IO, "three.safetensors"},
    {MAP("two.safetensors", "one.safetensors"), CMOE_ERR_CORRUPT, "tensor a is not in two.saf"},
    {MAP("one.safetensors", "one.safetensors"), CMOE_ERR_CORRUPT, "tensor b is not in one.saf"},
    {MAP("one.safetensors", "two.safetensors\",\"c\":\"two.safetensors"), CMOE_ERR_CORRUPT,
     "tensor c is not in two"},
    {MAP("one.safetensors", "copy.safetensors"), CMOE_ERR_CORRUPT, "tensor a is in both"},
    {MAP("one.safetensors", "../two.safetensors"), CMOE_ERR_CORRUPT, "tensor b is in \"../two"},
    {MAP("one.safetensors", "/etc/passwd"), CMOE_ERR_CORRUPT, "\"/etc/passwd\""},
    {MAP("one.safetensors", "sub/two.safetensors"), CMOE_ERR_CORRUPT, "\"sub/two"},
    {MAP("one.safetensors", ".."), CMOE_ERR_CORRUPT, "\"..\""},
    {MAP("one.safetensors", "."), CMOE_ERR_CORRUPT, "\".\""},
    {MAP("one.safetensors", ""), CMOE_ERR_CORRUPT, "\"\""},
    {MAP("one.safetensors", "..\\\\two"), CMOE_ERR_CORRUPT, "\"..\\two\""},
    {MAP("one.safetensors", "sub\\\\two"), CMOE_ERR_CORRUPT, "\"sub\\two\""},
    {MAP("one.safetensors", "one\\u0000two"), CMOE_ERR_CORRUPT, "\\u0000"},
    {"{\"weight_map\":{\"a\":\"one.safetensors\",\"a\":\"two.safetensors\"}}", CMOE_ERR_CORRUPT,
     "duplicate"},
    {"{\"weight_map\":{\"a\":1}}", CMOE_ERR_CORRUPT, "key a is not a string"},
    {"{\"weight_map\":[]}", CMOE_ERR_CORRUPT, "no object \"weight_map\""},
    {"{}", CMOE_ERR_CORRUPT, "no object \"weight_map\""},
    {"[]", CMOE_ERR_CORRUPT, "not a JSON object"},
    {"", CMOE_ERR_CORRUPT, INDEX},
    {"{\"weight_map\":", CMOE_ERR_CORRUPT, "at byte"},
    {"{\"a\":[[[[[[[[[[]]]]]]]]]]}", CMOE_ERR_CORRUPT, "nested deeper"},
    {MAP("one.safetensors", "folder"), CMOE_ERR_IO, "not a regular file"},
    {MAP("one.safetensors", "short.safetensors"), CMOE_ERR_CORRUPT, "short.safetensors: tensor b"},
    {MAP("one.safetensors", "empty.safetensors"), CMOE_ERR_CORRUPT, "empty.safetensors: 0 bytes"},
    {MAP("one.safetensors", "lfs.safetensors"), CMOE_ERR_CORRUPT, "git lfs pull"},
    {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", CMOE_ERR_CORRUPT,
     "git lfs pull"},
};

static void test_broken(void **state)
{
    (void)state;
    struct folder f;
    cmoe_checkpoint *c;
    write_two_shards(&f);
    assert_int_equal(mkdir(folder_path(&f, "folder"), 0700), 0);
    write_shard(&f, "copy.safetensors", "a", 3, 10);
    write_shard(&f, "short.safetensors", "b", 5, 20);
    assert_int_equal(truncate(folder_path(&f, "short.safetensors"), 64), 0);
    folder_text(&f, "empty.safetensors", "");
    folder_text(&f, "lfs.safetensors",
                "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n");
    for (size_t i = 0; i < sizeof indexes / sizeof indexes[0]; i++) {
        folder_text(&f, INDEX, indexes[i].index);
        expect_error(cmoe_checkpoint_open(f.path, &c), indexes[i].status, indexes[i].part);
        assert_null(c);
    }
    folder_remove(&f);
}

static void test_nothing_there(void **state)
{
    (void)state;
    struct folder f;
    cmoe_checkpoint *c;
    folder_make(&f);
    expect_error(cmoe_checkpoint_open(f.path, &c), CMOE_ERR_IO, "holds neither");
    expect_error(cmoe_checkpoint_open(folder_path(&f, "x.safetensors"), &c), CMOE_ERR_IO,
                 "No such");
    expect_error(cmoe_checkpoint_open(folder_path(&f, "x.json"), &c), CMOE_ERR_IO, "No such");
    assert_int_equal(mkfifo(folder_path(&f, "model.safetensors"), 0600), 0);
    expect_error(cmoe_checkpoint_open(f.path, &c), CMOE_ERR_IO, "not a regular file");
    folder_remove(&f);
}

/* Shards written by Hugging Face's library. */
static void test_hugging_face_shards(void **state)
{
    (void)state;
    cmoe_checkpoint *c;
    expect_ok(cmoe_checkpoint_open(VECTORS "qwen3_moe", &c));
    assert_int_equal(cmoe_checkpoint_count(c), 2 * (1 + 2 * 3));
    const cmoe_tensor_info *const t =
        cmoe_checkpoint_find(c, "model.layers.1.mlp.experts.1.down_proj.weight");
    assert_non_null(t);
    assert_int_equal(t->ndim, 2);
    assert_int_equal(t->shape[0], 8);
    assert_int_equal(t->shape[1], 4);
    assert_string_equal(t->file, "model-00002-of-00002.safetensors");
    float values[32];
    memcpy(values, t->data, sizeof values);
    for (int i = 0; i < 32; i++)
        assert_true(values[i] == 1200.0f + (float)i / 4);
    cmoe_checkpoint_close(c);
}

static void test_every_allocation_fails(void **state)
{
    (void)state;
    cmoe_checkpoint *c;
    int n = 0;
    cmoe_status status = CMOE_ERR_NO_MEMORY;
    while (status == CMOE_ERR_NO_MEMORY) {
        cmoe__io_alloc_fail(++n);
        status = cmoe_checkpoint_open(VECTORS "qwen3_moe", &c);
        if (status != CMOE_OK) assert_null(c);
    }
    cmoe__io_alloc_fail(0);
    expect_ok(status);
    assert_int_equal(cmoe_checkpoint_count(c), 14);
    cmoe_checkpoint_close(c);
    assert_true(n > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_single_file),
        cmocka_unit_test(test_relative_path),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_broken),
        cmocka_unit_test(test_nothing_there),
        cmocka_unit_test(test_hugging_face_shards),
        cmocka_unit_test(test_every_allocation_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
