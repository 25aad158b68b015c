/* SPDX-License-Identifier: MIT
 * ctest: labels=threads
 * Loops and teams on every executor: each item once, each barrier whole, whoever runs them. */
#include "core/context.h"
#include "core/cpus.h"
#include "harness.h"
#include "harness_files.h"
#include "harness_threads.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_THREAD__)
#    define UNDER_TSAN 1
#elif defined(__has_feature)
#    define UNDER_TSAN __has_feature(thread_sanitizer)
#else
#    define UNDER_TSAN 0
#endif
#if defined(__SANITIZE_ADDRESS__)
#    define UNDER_ASAN 1
#elif defined(__has_feature)
#    define UNDER_ASAN __has_feature(address_sanitizer)
#else
#    define UNDER_ASAN 0
#endif

enum { ITEMS = 1000, MOST = 16 };

static cmoe_context *make(int threads, void (*run)(void *, int, cmoe_body, void *), int concurrent,
                          atomic_int *calls)
{
    const cmoe_context_options options = {
        .run = run, .run_is_concurrent = concurrent, .user = calls, .n_threads = threads};
    cmoe_context *ctx = NULL;
    expect_ok(cmoe_context_create(&options, &ctx));
    return ctx;
}

/* --- loops --------------------------------------------------------------------------------------*/

struct loop_check {
    atomic_int times[ITEMS];
    atomic_int wrong_n;
    int n;
};

static void count_item(void *arg, int i, int n)
{
    struct loop_check *const check = arg;
    if (n != check->n) atomic_store(&check->wrong_n, 1);
    atomic_fetch_add(&check->times[i], 1);
}

static void check_loop(struct cmoe_threads *threads, int limit, int n)
{
    static struct loop_check check; /* one test at a time */
    memset(&check, 0, sizeof check);
    check.n = n;
    cmoe__parallel(threads, limit, n, count_item, &check);
    assert_int_equal(check.wrong_n, 0);
    for (int i = 0; i < ITEMS; i++)
        assert_int_equal(check.times[i], i < n);
}

static void check_loops(struct cmoe_threads *threads)
{
    static const int counts[] = {0, 1, 2, 3, 16, 17, ITEMS};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        for (int limit = 0; limit < 4; limit++)
            check_loop(threads, limit, counts[i]);
    }
}

static void loops_run_every_item_once(void **state)
{
    (void)state;
    for (int n = 1; n <= MOST; n++) {
        cmoe_context *const ctx = test_context(n, NULL);
        assert_int_equal(cmoe_context_threads(ctx), n);
        assert_string_equal(cmoe_context_executor(ctx), "own pool");
        check_loops(ctx->threads);
        cmoe_context_destroy(ctx);
    }
}

static void loops_use_the_callers_executor(void **state)
{
    (void)state;
    for (int concurrent = 0; concurrent < 2; concurrent++) {
        for (int n = 1; n <= MOST; n += 3) {
            atomic_int calls = 0;
            cmoe_context *const ctx =
                make(n, concurrent ? test_run_together : test_run_in_turn, concurrent, &calls);
            assert_string_equal(cmoe_context_executor(ctx), "caller");
            check_loops(ctx->threads);
            assert_int_equal(calls > 0, n > 1);
            cmoe_context_destroy(ctx);
        }
    }
}

/* --- teams --------------------------------------------------------------------------------------*/

enum { ROUNDS = 50 };

struct team_check {
    int rounds;
    int items[ROUNDS][ITEMS]; /* who took it: each item by exactly one member */
    long sums[MOST];          /* written before a barrier, read by all after it */
    atomic_int size, bad;
};

static void take_rounds(void *arg, struct cmoe_team *team)
{
    struct team_check *const check = arg;
    atomic_store(&check->size, team->size);
    for (int round = 0; round < check->rounds; round++) {
        const int counter = round % 8;
        for (int i; (i = cmoe__team_next(team, counter)) < ITEMS;)
            check->items[round][i]++;
        check->sums[team->rank] = round + team->rank;
        if (team->rank == 0) cmoe__team_reset(team, counter);
        cmoe__team_barrier(team);
        long sum = 0;
        for (int i = 0; i < team->size; i++)
            sum += check->sums[i];
        if (sum != (long)team->size * round + team->size * (team->size - 1) / 2) {
            atomic_store(&check->bad, 1);
        }
        cmoe__team_barrier(team);
    }
}

static int check_team(struct cmoe_threads *threads, int limit)
{
    struct team_check *const check = calloc(1, sizeof *check);
    check->rounds = ROUNDS;
    cmoe__team_run(threads, limit, take_rounds, check);
    assert_int_equal(check->bad, 0);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < ITEMS; i++)
            assert_int_equal(check->items[round][i], 1);
    }
    const int size = check->size;
    free(check);
    return size;
}

static void teams_meet_at_barriers(void **state)
{
    (void)state;
    for (int n = 1; n <= MOST; n++) {
        cmoe_context *const ctx = test_context(n, NULL);
        assert_int_equal(check_team(ctx->threads, 0), n);
        assert_int_equal(check_team(ctx->threads, 1), 1);
        assert_int_equal(check_team(ctx->threads, 2), n < 2 ? n : 2);
        cmoe_context_destroy(ctx);
    }
}

static void teams_on_the_callers_executor(void **state)
{
    (void)state;
    atomic_int calls = 0;
    cmoe_context *ctx = make(5, test_run_together, 1, &calls);
    assert_int_equal(check_team(ctx->threads, 0), 5);
    assert_int_equal(calls, 1);
    cmoe_context_destroy(ctx);
    /* Bodies that run in turn would wait for ever at a barrier. */
    ctx = make(5, test_run_in_turn, 0, &calls);
    assert_int_equal(check_team(ctx->threads, 0), 1);
    assert_int_equal(calls, 1);
    cmoe_context_destroy(ctx);
}

/* --- calls that find the pool busy --------------------------------------------------------------*/

struct nest {
    struct cmoe_threads *threads;
    atomic_int inner;
};

static void count_inner(void *arg, int i, int n)
{
    (void)i, (void)n;
    atomic_fetch_add((atomic_int *)arg, 1);
}

static void nest_loop(void *arg, int i, int n)
{
    (void)i, (void)n;
    struct nest *const nest = arg;
    cmoe__parallel(nest->threads, 0, 10, count_inner, &nest->inner);
}

static void nested_loops_finish(void **state)
{
    (void)state;
    cmoe_context *const ctx = test_context(4, NULL);
    struct nest nest = {.threads = ctx->threads};
    cmoe__parallel(ctx->threads, 0, 20, nest_loop, &nest);
    assert_int_equal(nest.inner, 200);
    cmoe_context_destroy(ctx);
}

static void *call_often(void *arg)
{
    struct cmoe_threads *const threads = arg;
    for (int i = 0; i < 200; i++) {
        atomic_int items = 0;
        cmoe__parallel(threads, 0, 64, count_inner, &items);
        if (items != 64) return arg;
    }
    return NULL;
}

static void two_callers_share_a_context(void **state)
{
    (void)state;
    cmoe_context *const ctx = test_context(3, NULL);
    pthread_t other[3];
    for (int i = 0; i < 3; i++) {
        assert_int_equal(pthread_create(&other[i], NULL, call_often, ctx->threads), 0);
    }
    assert_null(call_often(ctx->threads));
    for (int i = 0; i < 3; i++) {
        void *failed;
        pthread_join(other[i], &failed);
        assert_null(failed);
    }
    cmoe_context_destroy(ctx);
}

static void workers_that_sleep_wake_up(void **state)
{
    (void)state;
    cmoe_context *const ctx = test_context(3, NULL);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(check_team(ctx->threads, 0), 3);
        usleep(3000); /* far longer than idle threads spin */
    }
    cmoe_context_destroy(ctx);
}

/* --- processes ----------------------------------------------------------------------------------*/

/* The child's verdict as its exit status: an assertion there would run on in the wrong process. */
static int child_loop(struct cmoe_threads *threads)
{
    const pid_t child = fork();
    if (child == 0) {
        atomic_int items = 0;
        alarm(20);
        for (int i = 0; i < 20; i++)
            cmoe__parallel(threads, 0, 50, count_inner, &items);
        _exit(items == 1000 ? 0 : 1);
    }
    int status = -1;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

static void forked_children_restart_the_pool(void **state)
{
    (void)state;
    if (UNDER_TSAN) skip(); /* TSan ends a forked child that starts threads */
    cmoe_context *const ctx = test_context(4, NULL);
    assert_int_equal(child_loop(ctx->threads), 0); /* before the pool ever ran */
    check_loop(ctx->threads, 0, ITEMS);
    assert_int_equal(child_loop(ctx->threads), 0);
    check_loop(ctx->threads, 0, ITEMS);
    assert_int_equal(check_team(ctx->threads, 0), 4);
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        cmoe_context_destroy(ctx);
        _exit(0);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    cmoe_context_destroy(ctx);
}

static void *hold(void *arg)
{
    (void)arg;
    pause();
    return NULL;
}

/* In a child, because there is no way back from the limit. */
static void no_threads_to_be_had(void **state)
{
    (void)state;
    if (UNDER_TSAN || UNDER_ASAN) skip(); /* their own memory would not fit either */
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        const struct rlimit space = {.rlim_cur = 1 << 20, .rlim_max = 1 << 20};
        cmoe_context *const ctx = test_context(4, NULL);
        setrlimit(RLIMIT_AS, &space); /* no stack for another thread fits */
        atomic_int items = 0;
        int held = 0; /* stacks kept from earlier threads can still be had: take them all */
        for (pthread_t thread; held < 100; held++) {
            if (pthread_create(&thread, NULL, hold, NULL) != 0) break;
        }
        if (held == 100) _exit(2);
        cmoe__parallel(ctx->threads, 0, 100, count_inner, &items);
        cmoe__parallel(ctx->threads, 0, 100, count_inner, &items);
        _exit(items == 200 ? 0 : 1);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* --- CPU counts ---------------------------------------------------------------------------------*/

/* A file and the folders it lies in. */
static void write_file(struct folder *f, const char *name, const char *text)
{
    folder_path(f, name);
    char *const full = f->scratch;
    for (char *c = full + strlen(f->path) + 1; (c = strchr(c, '/')); *c++ = '/') {
        *c = '\0';
        mkdir(full, 0700);
    }
    folder_text(f, name, text);
}

static void quotas_of_control_groups(void **state)
{
    (void)state;
    struct folder f;
    folder_make(&f);
    const char *const root = f.path;
    assert_int_equal(cmoe__cpu_quota(root), 0); /* no control groups at all */
    write_file(&f, "proc/self/cgroup", "0::/a/b\n");
    assert_int_equal(cmoe__cpu_quota(root), 0);
    write_file(&f, "sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    assert_int_equal(cmoe__cpu_quota(root), 0);
    write_file(&f, "sys/fs/cgroup/a/b/cpu.max", "350000 100000\n");
    assert_int_equal(cmoe__cpu_quota(root), 4);
    write_file(&f, "sys/fs/cgroup/a/cpu.max", "200000 100000\n"); /* tighter, and above it */
    assert_int_equal(cmoe__cpu_quota(root), 2);
    write_file(&f, "sys/fs/cgroup/cpu.max", "1000 100000\n");
    assert_int_equal(cmoe__cpu_quota(root), 1);
    write_file(&f, "proc/self/cgroup", "5:cpuset:/\n4:cpu,cpuacct:/x\nrubbish\n");
    assert_int_equal(cmoe__cpu_quota(root), 0);
    write_file(&f, "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "-1\n");
    write_file(&f, "sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n");
    assert_int_equal(cmoe__cpu_quota(root), 0);
    write_file(&f, "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "600000\n");
    assert_int_equal(cmoe__cpu_quota(root), 6);
    folder_remove(&f);
}

static void affinity_limits_the_default(void **state)
{
    (void)state;
    cpu_set_t old, one;
    assert_int_equal(sched_getaffinity(0, sizeof old, &old), 0);
    assert_in_range(cmoe__threads_default(), 1, CPU_COUNT(&old));
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++) {
        if (CPU_ISSET(i, &old)) CPU_SET(i, &one);
    }
    if (sched_setaffinity(0, sizeof one, &one) != 0) skip();
    assert_int_equal(cmoe__threads_default(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof old, &old), 0);
}

/* --- a borrowed runtime -------------------------------------------------------------------------*/

/* The last test: the runtime stays in the process. */
static void openmp_is_borrowed_when_loaded(void **state)
{
    (void)state;
    if (UNDER_TSAN) skip(); /* it does not see the runtime's own synchronisation */
    if (!dlopen("libgomp.so.1", RTLD_NOW) && !dlopen("libomp.so.5", RTLD_NOW)) skip();
    cmoe_context *const ctx = test_context(4, NULL);
    assert_memory_equal(cmoe_context_executor(ctx), "openmp (lib", 11);
    check_loops(ctx->threads);
    assert_in_range(check_team(ctx->threads, 0), 1, 4);
    assert_null(call_often(ctx->threads));
    struct nest nest = {.threads = ctx->threads};
    cmoe__parallel(ctx->threads, 0, 20, nest_loop, &nest);
    assert_int_equal(nest.inner, 200);
    assert_int_equal(child_loop(ctx->threads), 0); /* the runtime would hang in the child */
    cmoe_context_destroy(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loops_run_every_item_once),
        cmocka_unit_test(loops_use_the_callers_executor),
        cmocka_unit_test(teams_meet_at_barriers),
        cmocka_unit_test(teams_on_the_callers_executor),
        cmocka_unit_test(nested_loops_finish),
        cmocka_unit_test(two_callers_share_a_context),
        cmocka_unit_test(workers_that_sleep_wake_up),
        cmocka_unit_test(forked_children_restart_the_pool),
        cmocka_unit_test(no_threads_to_be_had),
        cmocka_unit_test(quotas_of_control_groups),
        cmocka_unit_test(affinity_limits_the_default),
        cmocka_unit_test(openmp_is_borrowed_when_loaded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
