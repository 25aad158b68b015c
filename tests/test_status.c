/* SPDX-License-Identifier: MIT
 * ctest: labels=threads
 * Codes have names and sentences; the last failure's text belongs to its thread. */
#include "core/fail.h"
#include "harness.h"

#include <pthread.h>
#include <string.h>

static void every_code_has_a_name_and_a_sentence(void **state)
{
    (void)state;
    static const struct {
        cmoe_status status;
        const char *name;
    } codes[] = {
#define STATUS(name, value, sentence) {CMOE_##name, "CMOE_" #name},
#include <cmoe/status.def>
#undef STATUS
    };
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        assert_string_equal(cmoe_status_name(codes[i].status), codes[i].name);
        assert_true(strlen(cmoe_status_sentence(codes[i].status)) > 5);
        for (size_t j = 0; j < i; j++)
            assert_int_not_equal(codes[i].status, codes[j].status);
    }
    assert_int_equal(CMOE_OK, 0);
    assert_int_equal(CMOE_ERR_MISMATCH, 12); /* values never change */
    assert_string_equal(cmoe_status_name((cmoe_status)15), "unknown status");
    assert_string_equal(cmoe_status_name((cmoe_status)-1), "unknown status");
    assert_string_equal(cmoe_status_sentence((cmoe_status)1000), "unknown status");
}

static void messages_hold_511_bytes(void **state)
{
    (void)state;
    char text[600];
    memset(text, 'x', sizeof text);
    text[599] = '\0';
    assert_int_equal(CMOE_FAIL(CMOE_ERR_IO, "%s", text), CMOE_ERR_IO);
    assert_int_equal(strlen(cmoe_last_error()), 511);
    cmoe__fail_trace("a/b.c", 7); /* no room left */
    assert_int_equal(strlen(cmoe_last_error()), 511);
    text[505] = '\0';
    CMOE_FAIL(CMOE_ERR_IO, "%s", text);
    cmoe__fail_trace("a/b.c", 7); /* cut */
    assert_int_equal(strlen(cmoe_last_error()), 511);
    assert_string_equal(cmoe_last_error() + 505, " (b.c:");
}

static void a_message_may_quote_the_last_one(void **state)
{
    (void)state;
    CMOE_FAIL(CMOE_ERR_INVALID, "k is %d", 3);
    assert_int_equal(cmoe_set_error(CMOE_ERR_CORRUPT, "%s, in %s", cmoe_last_error(), "f"),
                     CMOE_ERR_CORRUPT);
    assert_string_equal(cmoe_last_error(), "k is 3, in f");
}

static cmoe_status inner(int fail)
{
    if (fail) return CMOE_FAIL(CMOE_ERR_DEVICE, "too late");
    return CMOE_OK;
}

static cmoe_status outer(int fail, int *after)
{
    CMOE_TRY(inner(fail));
    *after = 1;
    return CMOE_OK;
}

static void try_returns_at_the_first_failure(void **state)
{
    (void)state;
    int after = 0;
    expect_error(outer(1, &after), CMOE_ERR_DEVICE, "too late");
    assert_int_equal(after, 0);
    expect_ok(outer(0, &after));
    assert_int_equal(after, 1);
    assert_non_null(strstr(cmoe_last_error(), "too late")); /* success leaves the message */
}

static void *fail_elsewhere(void *arg)
{
    const bool fresh = cmoe_last_error()[0] == '\0';
    CMOE_FAIL(CMOE_ERR_BUSY, "another thread's");
    return fresh && strcmp(cmoe_last_error(), "another thread's") == 0 ? arg : NULL;
}

static void threads_have_their_own_message(void **state)
{
    (void)state;
    pthread_t thread;
    void *result = NULL;
    CMOE_FAIL(CMOE_ERR_INVALID, "mine");
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, &result), 0);
    pthread_join(thread, &result);
    assert_ptr_equal(result, &result);
    assert_string_equal(cmoe_last_error(), "mine");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_has_a_name_and_a_sentence),
        cmocka_unit_test(messages_hold_511_bytes),
        cmocka_unit_test(a_message_may_quote_the_last_one),
        cmocka_unit_test(try_returns_at_the_first_failure),
        cmocka_unit_test(threads_have_their_own_message),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
