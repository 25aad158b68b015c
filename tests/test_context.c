/* SPDX-License-Identifier: MIT
 * Contexts: options old and new, the environment, the log, and every allocation failing in turn. */
#include "core/context.h"
#include "harness.h"
#include "harness_files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const variables[] = {"CMOE_THREADS", "CMOE_CPU", "CMOE_TUNED",
                                        "CMOE_DEVICE",  "CMOE_LOG", "CMOE_NODES"};

static int clear_environment(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++)
        unsetenv(variables[i]);
    return 0;
}

static cmoe_context *create(const cmoe_context_options *options)
{
    cmoe_context *ctx = NULL;
    expect_ok(cmoe_context_create(options, &ctx));
    return ctx;
}

static void refuse(const cmoe_context_options *options, cmoe_status status, const char *part)
{
    cmoe_context *ctx = (cmoe_context *)&ctx;
    expect_error(cmoe_context_create(options, &ctx), status, part);
    assert_null(ctx);
}

static void defaults_need_no_options(void **state)
{
    (void)state;
    cmoe_context *const ctx = create(NULL);
    assert_int_equal(cmoe_context_threads(ctx), cmoe__threads_default());
    assert_string_equal(cmoe_context_executor(ctx), "own pool");
    void *const block = cmoe__alloc(ctx, 0, 256);
    assert_non_null(block);
    assert_int_equal((uintptr_t)block % 256, 0);
    cmoe__free(ctx, block);
    cmoe__free(ctx, NULL);
    char *const text = cmoe__strdup(ctx, "text");
    assert_string_equal(text, "text");
    cmoe__free(ctx, text);
    assert_null(cmoe__strdup(ctx, NULL));
    const unsigned char *const zero = cmoe__calloc(ctx, 100, 1);
    for (int i = 0; i < 100; i++)
        assert_int_equal(zero[i], 0);
    cmoe__free(ctx, (void *)zero);
    cmoe_context_destroy(ctx);
    cmoe_context_destroy(NULL);
    expect_error(cmoe_context_create(NULL, NULL), CMOE_ERR_INVALID, "out is NULL");
}

/* A caller built with an older header has a shorter struct: what lies behind it is not ours. */
static void short_options_take_defaults(void **state)
{
    (void)state;
    cmoe_context_options options = {.n_threads = 3, .cpu = "generic"};
    options.struct_size = offsetof(cmoe_context_options, cpu);
    options.cpu = "not for this version to read";
    cmoe_context *ctx = create(&options);
    assert_int_equal(cmoe_context_threads(ctx), 3);
    assert_null(ctx->cpu);
    cmoe_context_destroy(ctx);
    options.cpu = "generic";
    options.struct_size = sizeof options + 64; /* a later version's, with a tail unknown here */
    ctx = create(&options);
    assert_string_equal(ctx->cpu, "generic");
    cmoe_context_destroy(ctx);
    options.struct_size = 0;
    ctx = create(&options);
    assert_string_equal(ctx->cpu, "generic");
    assert_int_equal(cmoe_context_threads(ctx), 3);
    cmoe_context_destroy(ctx);
}

static void wrong_options_are_named(void **state)
{
    (void)state;
    refuse(&(cmoe_context_options){.n_threads = -1}, CMOE_ERR_INVALID, "n_threads is -1");
    refuse(&(cmoe_context_options){.n_threads = 5000}, CMOE_ERR_INVALID, "4096");
    refuse(&(cmoe_context_options){.nodes = -1}, CMOE_ERR_INVALID, "nodes is -1");
    refuse(&(cmoe_context_options){.nodes = 9}, CMOE_ERR_INVALID, "0 (automatic) to 8");
    refuse(&(cmoe_context_options){.cpu = "sse2"}, CMOE_ERR_INVALID, "sse2");
    refuse(&(cmoe_context_options){.alloc = counter_alloc}, CMOE_ERR_INVALID, "only alloc");
    refuse(&(cmoe_context_options){.free = counter_free}, CMOE_ERR_INVALID, "only free");
    refuse(&(cmoe_context_options){.tuned = "/nowhere/tuned"}, CMOE_ERR_IO, "/nowhere/tuned");
}

static void the_environment_fills_gaps(void **state)
{
    (void)state;
    setenv("CMOE_THREADS", "5", 1);
    setenv("CMOE_CPU", "generic", 1);
    setenv("CMOE_DEVICE", "ref", 1);
    setenv("CMOE_NODES", "3", 1);
    cmoe_context *ctx = create(NULL);
    assert_int_equal(cmoe__threads_nodes(ctx->threads), 3);
    assert_int_equal(cmoe_context_threads(ctx), 5);
    assert_string_equal(ctx->cpu, "generic");
    assert_string_equal(ctx->device, "ref");
    cmoe_context_destroy(ctx);
    ctx = create(&(cmoe_context_options){.n_threads = 2, .cpu = "avx2", .nodes = 2});
    assert_int_equal(cmoe__threads_nodes(ctx->threads), 2);
    assert_int_equal(cmoe_context_threads(ctx), 2);
    assert_string_equal(ctx->cpu, "avx2");
    cmoe_context_destroy(ctx);
    static const char *const bad[] = {"0", "-3", "x", "3x", "99999", "99999999999999999999"};
    for (int i = 0; i < 6; i++) {
        setenv("CMOE_THREADS", bad[i], 1);
        refuse(NULL, CMOE_ERR_INVALID, "CMOE_THREADS");
    }
    setenv("CMOE_NODES", "9", 1);
    setenv("CMOE_THREADS", "", 1); /* as if it were not set */
    refuse(NULL, CMOE_ERR_INVALID, "CMOE_NODES is \"9\"; it must be 1 to 8");
    setenv("CMOE_NODES", "", 1);
    setenv("CMOE_CPU", "avx1024", 1);
    refuse(NULL, CMOE_ERR_INVALID, "CMOE_CPU is \"avx1024\"");
    clear_environment(NULL);
}

/* --- the log ------------------------------------------------------------------------------------*/

struct lines {
    int n, level;
    char last[600];
};

static void keep_line(void *user, int level, const char *message)
{
    struct lines *const lines = user;
    lines->n++;
    lines->level = level;
    snprintf(lines->last, sizeof lines->last, "%s", message);
}

static void messages_are_single_lines(void **state)
{
    (void)state;
    struct lines lines = {0};
    cmoe_context *ctx = create(&(cmoe_context_options){.log = keep_line, .user = &lines});
    cmoe__log(ctx, 1, "one\ntwo %d", 3);
    assert_int_equal(lines.n, 1);
    assert_int_equal(lines.level, 1);
    assert_string_equal(lines.last, "one two 3");
    char text[700];
    memset(text, 'x', sizeof text);
    text[699] = '\0';
    cmoe__log(ctx, 2, "%s", text);
    assert_int_equal(strlen(lines.last), 511);
    cmoe_context_destroy(ctx);
    ctx = create(NULL); /* silent */
    cmoe__log(ctx, 0, "nobody hears this");
    cmoe_context_destroy(ctx);
}

static void cmoe_log_writes_to_stderr(void **state)
{
    (void)state;
    FILE *const heard = tmpfile();
    assert_non_null(heard);
    char text[256] = "";
    const int file = fileno(heard), old = dup(2);
    setenv("CMOE_LOG", "1", 1);
    cmoe_context *const ctx = create(NULL);
    fflush(stderr);
    dup2(file, 2);
    cmoe__log(ctx, 1, "heard");
    cmoe__log(ctx, 2, "not heard");
    fflush(stderr);
    dup2(old, 2);
    close(old);
    cmoe_context_destroy(ctx);
    assert_true(pread(file, text, sizeof text - 1, 0) > 0);
    assert_string_equal(text, "cmoe: warning: heard\n");
    fclose(heard);
    clear_environment(NULL);
}

/* --- the tuned file -----------------------------------------------------------------------------*/

static void tuned_files_are_read_whole(void **state)
{
    (void)state;
    struct folder f;
    folder_make(&f);
    const char *const path = folder_path(&f, "tuned.csv");
    FILE *const file = fopen(path, "w");
    assert_non_null(file);
    for (int i = 0; i < 40000; i++)
        fprintf(file, "%d\n", i % 10000);
    const long size = ftell(file);
    fclose(file);
    cmoe_context *ctx = create(&(cmoe_context_options){.tuned = path});
    assert_int_equal(strlen(ctx->tuned), size);
    assert_memory_equal(ctx->tuned, "0\n1\n2\n", 6);
    assert_memory_equal(ctx->tuned + size - 5, "9999\n", 5);
    cmoe_context_destroy(ctx);
    setenv("CMOE_TUNED", path, 1);
    ctx = create(NULL);
    assert_int_equal(strlen(ctx->tuned), size);
    cmoe_context_destroy(ctx);
    folder_remove(&f);
    /* The environment may name a file that is not there: said, and no failure. */
    struct lines lines = {0};
    ctx = create(&(cmoe_context_options){.log = keep_line, .user = &lines});
    assert_null(ctx->tuned);
    assert_int_equal(lines.n, 1);
    assert_non_null(strstr(lines.last, path));
    cmoe_context_destroy(ctx);
    refuse(&(cmoe_context_options){.tuned = "/tmp"}, CMOE_ERR_IO, "/tmp");
    clear_environment(NULL);
}

/* --- memory and devices -------------------------------------------------------------------------*/

static void every_allocation_may_fail(void **state)
{
    (void)state;
    setenv("CMOE_DEVICE", "cpu", 1);
    long at = 1;
    for (; at < 50; at++) {
        struct counter counter = {.fail_at = at, .from_then_on = at % 2 == 0};
        const cmoe_context_options options = {.alloc = counter_alloc,
                                              .free = counter_free,
                                              .user = &counter,
                                              .n_threads = 3,
                                              .cpu = "generic",
                                              .tuned = "/dev/null"};
        cmoe_context *ctx = NULL;
        const cmoe_status status = cmoe_context_create(&options, &ctx);
        if (status == CMOE_OK) {
            cmoe_context_destroy(ctx);
            assert_int_equal(counter.live, 0);
            break;
        }
        assert_int_equal(status, CMOE_ERR_NO_MEMORY);
        assert_null(ctx);
        assert_int_equal(counter.live, 0);
    }
    assert_in_range(at, 6, 20);
    clear_environment(NULL);
}

static void devices_open_whole_or_not_at_all(void **state)
{
    (void)state;
    static const char *const names[] = {"cpu", "ref"};
    for (int i = 0; i < 2; i++) {
        struct counter counter = {0};
        cmoe_context *const ctx = test_context(1, &counter);
        const long before = counter.live;
        cmoe_device *dev = NULL;
        cmoe_status status = CMOE_ERR_NO_MEMORY;
        int failures = 0;
        for (; status != CMOE_OK && failures < 20; failures += status != CMOE_OK) {
            counter.fail_at = counter.calls + 1 + failures;
            status = cmoe_device_open(ctx, names[i], &dev);
            if (status == CMOE_OK) break;
            assert_int_equal(status, CMOE_ERR_NO_MEMORY);
            assert_null(dev);
            assert_int_equal(counter.live, before);
        }
        assert_in_range(failures, 1, 19);
        cmoe_device_close(dev);
        assert_int_equal(counter.live, before);
        cmoe_context_destroy(ctx);
        assert_int_equal(counter.live, 0);
    }
}

static void devices_that_are_not_there_say_why(void **state)
{
    (void)state;
    cmoe_context *const ctx = create(NULL);
    cmoe_device *dev = NULL;
    expect_error(cmoe_device_open(ctx, "tpu", &dev), CMOE_ERR_INVALID, "\"tpu\"");
    expect_error(cmoe_device_open(ctx, "", &dev), CMOE_ERR_INVALID, "\"\"");
    expect_error(cmoe_device_open(ctx, "cpu:", &dev), CMOE_ERR_INVALID, "cpu:");
    expect_error(cmoe_device_open(ctx, "cpu:x", &dev), CMOE_ERR_INVALID, "cpu:x");
    expect_error(cmoe_device_open(ctx, "cuda:99999", &dev), CMOE_ERR_INVALID, "cuda:99999");
    /* Left out of the build, without a driver, or there. */
    const cmoe_status cuda = cmoe_device_open(ctx, "cuda", &dev);
    if (cuda == CMOE_OK) {
        cmoe_device_close(dev);
        dev = NULL;
    } else {
        expect_error(cuda, CMOE_ERR_NO_DEVICE, "\"cuda\" is not there: cuda ");
    }
    expect_error(cmoe_device_open(NULL, "cpu", &dev), CMOE_ERR_INVALID, "ctx is NULL");
    expect_error(cmoe_device_open(ctx, "cpu", NULL), CMOE_ERR_INVALID, "out is NULL");
    assert_null(dev);
    cmoe_device_close(NULL);
    cmoe_context_destroy(ctx);
}

static void devices_describe_themselves(void **state)
{
    (void)state;
    static const char *const names[] = {"cpu", "ref", "cpu:0"};
    cmoe_context *const ctx = create(&(cmoe_context_options){.n_threads = 2});
    for (int i = 0; i < 3; i++) {
        cmoe_device *dev = NULL;
        cmoe_device_info info = {.struct_size = sizeof info}, part;
        expect_ok(cmoe_device_open(ctx, names[i], &dev));
        cmoe_device_describe(dev, &info);
        assert_true(strlen(info.name) > 0 && strlen(info.isa) > 0);
        assert_int_equal(info.threads, 2);
        assert_int_equal(info.host, 1);
        assert_true(info.l1d >= 0 && info.memory >= 0);
        memset(&part, 0xa5, sizeof part); /* an older caller's struct ends early */
        part.struct_size = offsetof(cmoe_device_info, threads);
        cmoe_device_describe(dev, &part);
        assert_string_equal(part.isa, info.isa);
        assert_int_equal(part.threads, (int)0xa5a5a5a5);
        cmoe_device_close(dev);
    }
    cmoe_device *dev = NULL;
    expect_error(cmoe_device_open(ctx, "cpu:7", &dev), CMOE_ERR_NO_DEVICE, "cpu:7");
    cmoe_context_destroy(ctx);
    setenv("CMOE_DEVICE", "tpu", 1);
    cmoe_context *const other = create(NULL);
    expect_error(cmoe_device_open(other, NULL, &dev), CMOE_ERR_INVALID, "\"tpu\"");
    cmoe_context_destroy(other);
    clear_environment(NULL);
}

static void backends_are_described(void **state)
{
    (void)state;
    const char *name = NULL;
    char text[128];
    int n = 0;
    bool cuda = false;
    for (; cmoe_backend_describe(n, &name, text, sizeof text); n++) {
        assert_true(strlen(text) > 5);
        if (strcmp(name, "cuda") != 0) continue;
        cuda = true;
        assert_true(strncmp(text, "left out", 8) == 0 ||
                    strncmp(text, "not available: ", 15) == 0 ||
                    strncmp(text, "available", 9) == 0);
        char cut[8] = "xxxxxxx";
        assert_int_equal(cmoe_backend_describe(n, &name, cut, 5), 1); /* cut, not overrun */
        assert_memory_equal(cut, text, 4);
        assert_memory_equal(cut + 4, "\0xx", 3);
        assert_int_equal(cmoe_backend_describe(n, &name, NULL, 0), 1);
    }
    assert_true(cuda);
    assert_int_equal(cmoe_backend_describe(-1, &name, text, sizeof text), 0);
}

static void host_devices_have_memory_but_no_streams(void **state)
{
    (void)state;
    cmoe_context *const ctx = create(NULL);
    cmoe_device *dev;
    void *memory, *handle = ctx;
    char back[4] = "";
    double us;
    expect_ok(cmoe_device_open(ctx, "cpu", &dev));
    expect_ok(cmoe_device_alloc(dev, 0, &memory));
    assert_non_null(memory);
    cmoe_device_free(dev, memory);
    expect_ok(cmoe_device_alloc(dev, 4, &memory));
    expect_ok(cmoe_device_fill(dev, memory, 0x1ff, 4, NULL));
    expect_ok(cmoe_device_copy(dev, back, memory, 3, CMOE_COPY_FROM_DEVICE, NULL));
    expect_ok(cmoe_device_sync(dev, NULL));
    assert_memory_equal(back, "\xff\xff\xff", 4);
    cmoe_device_free(dev, memory);
    expect_error(cmoe_device_copy(dev, NULL, back, 1, CMOE_COPY_TO_DEVICE, NULL), CMOE_ERR_INVALID,
                 "dst");
    expect_error(cmoe_stream_create(dev, &handle), CMOE_ERR_UNSUPPORTED, "no streams");
    assert_null(handle);
    handle = ctx;
    expect_error(cmoe_event_create(dev, &handle), CMOE_ERR_UNSUPPORTED, "no streams");
    assert_null(handle);
    handle = ctx;
    expect_error(cmoe_graph_end(dev, ctx, &handle), CMOE_ERR_UNSUPPORTED, "no streams");
    assert_null(handle);
    expect_error(cmoe_graph_begin(dev, NULL), CMOE_ERR_INVALID, "stream");
    expect_error(cmoe_event_elapsed(dev, ctx, NULL, &us), CMOE_ERR_INVALID, "last");
    cmoe_stream_destroy(dev, NULL);
    cmoe_event_destroy(dev, NULL);
    cmoe_graph_destroy(dev, NULL);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_need_no_options),
        cmocka_unit_test(short_options_take_defaults),
        cmocka_unit_test(wrong_options_are_named),
        cmocka_unit_test(the_environment_fills_gaps),
        cmocka_unit_test(messages_are_single_lines),
        cmocka_unit_test(cmoe_log_writes_to_stderr),
        cmocka_unit_test(tuned_files_are_read_whole),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(devices_open_whole_or_not_at_all),
        cmocka_unit_test(devices_that_are_not_there_say_why),
        cmocka_unit_test(devices_describe_themselves),
        cmocka_unit_test(backends_are_described),
        cmocka_unit_test(host_devices_have_memory_but_no_streams),
    };
    return cmocka_run_group_tests(tests, clear_environment, NULL);
}
