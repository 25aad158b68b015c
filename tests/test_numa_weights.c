/* SPDX-License-Identifier: MIT
 * ctest: labels=threads cost=5
 * Packed weights divided among memory nodes, simulated on this machine: who takes which share, which
 * thread touches which page, and that none of it changes a bit. */
#include "core/context.h"
#include "core/numa.h"
#include "core/weights.h"
#include "harness_call.h"
#include "harness_threads.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#if defined(__SANITIZE_THREAD__)
#    define UNDER_TSAN 1
#elif defined(__has_feature)
#    define UNDER_TSAN __has_feature(thread_sanitizer)
#else
#    define UNDER_TSAN 0
#endif

enum { PAGE = 4096 };

static const int thread_counts[] = {1, 2, 3, 7};
enum { COUNTS = sizeof thread_counts / sizeof *thread_counts };

/* --- threads -------------------------------------------------------------------------------- */

/* Number of the thread in its job, of a job on the test's own threads. */
static _Thread_local int own_rank, own_size;

struct ranked {
    cmoe_body body;
    void *arg;
};

static void keep_rank(void *arg, int i, int n)
{
    const struct ranked *const job = arg;
    own_rank = i;
    own_size = n;
    job->body(job->arg, i, n);
}

static void run_ranked(void *user, int n, cmoe_body body, void *arg)
{
    struct ranked job = {.body = body, .arg = arg};
    test_run_together(user, n, keep_rank, &job);
}

enum executor { OWN_POOL, TOGETHER, IN_TURN };

static cmoe_context *make(int threads, int nodes, enum executor executor)
{
    const cmoe_context_options options = {
        .n_threads = threads,
        .nodes = nodes,
        .run = executor == TOGETHER ? run_ranked : (executor == IN_TURN ? test_run_in_turn : NULL),
        .run_is_concurrent = executor == TOGETHER,
    };
    cmoe_context *ctx;
    expect_ok(cmoe_context_create(&options, &ctx));
    return ctx;
}

struct shares {
    int nodes, n;
    atomic_int taken[256];
    atomic_int strangers; /* items that belong to another node than who took them */
    atomic_int size;
    enum executor executor;
};

static void take_shares(void *arg, struct cmoe_team *team)
{
    struct shares *const s = arg;
    const int near =
        s->executor == OWN_POOL ? team->rank % s->nodes : team->rank * s->nodes / team->size;
    atomic_store(&s->size, team->size);
    for (int item; (item = cmoe__team_take(team, s->nodes, s->n)) >= 0;) {
        assert_in_range(item, 0, s->nodes * s->n - 1);
        atomic_fetch_add(&s->taken[item], 1);
        atomic_fetch_add(&s->strangers, item / s->n != near);
    }
}

static void shares_go_to_their_node(void **state)
{
    (void)state;
    for (int executor = OWN_POOL; executor <= TOGETHER; executor++)
        for (int i = 0; i < COUNTS; i++)
            for (int nodes = 1; nodes <= 3; nodes++) {
                struct shares s = {.nodes = nodes, .n = 50, .executor = (enum executor)executor};
                cmoe_context *const ctx = make(thread_counts[i], nodes, s.executor);
                assert_int_equal(cmoe__threads_nodes(ctx->threads), nodes);
                cmoe__team_run(ctx->threads, 0, take_shares, &s);
                for (int item = 0; item < nodes * s.n; item++)
                    assert_int_equal(s.taken[item], 1);
                assert_int_equal(s.size, thread_counts[i]);
                if (nodes <= thread_counts[i]) assert_int_equal(s.strangers, 0);
                cmoe_context_destroy(ctx);
            }
    cmoe_context *const ctx = make(4, 2, IN_TURN); /* they could not wait for each other */
    assert_int_equal(cmoe__threads_nodes(ctx->threads), 1);
    cmoe_context_destroy(ctx);
}

/* --- bits ----------------------------------------------------------------------------------- */

/* Whole-layer rows, rows of one stage, several blocks of rows, several runs of columns of a share, shares that
 * are smaller than others or empty, padded columns. */
static const char *const layers[] = {
    "t=3 e=4 k=2 h=160 i=80 scheme=bf16 b1 b2", "t=40 e=3 k=2 h=1440 i=240 scheme=bf16 hpad=200",
    "t=5 e=4 k=2 h=32 i=16 scheme=mxfp4-w4a16", "t=130 e=2 k=1 h=288 i=96 scheme=int8-w8a8",
    "t=9 e=5 k=3 h=256 i=96 scheme=int4-w4a8",  "t=20 e=3 k=2 h=256 i=128 scheme=fp8-block",
};
static const char *const formats[] = {"p32", "p32", "p32_mx4", "p32_i8", "p32_u4", "p32_f8"};
enum { LAYERS = sizeof layers / sizeof *layers };

/* The layer's y (from malloc) on a context; its weights must be in `nodes` shares. */
static unsigned char *run_layer(struct gen_call *call, cmoe_context *ctx, const char *format,
                                int nodes, size_t *size)
{
    const cmoe_plan_options options = {
        .struct_size = sizeof options, .format1 = format, .format2 = format};
    cmoe_device *const dev = test_device(ctx, "cpu");
    struct guard g;
    cmoe_plan *plan;
    cmoe_weights *w;
    guard_init(&g);
    gen_call_reset(call);
    expect_ok(cmoe_plan_create(dev, &call->problem, NULL, &options, &plan));
    expect_ok(call_weights(dev, call, plan, &w));
    assert_int_equal(w->packed[0].nodes, nodes);
    assert_int_equal(w->packed[1].nodes, nodes);
    cmoe_tensors t = call->tensors;
    t.weights = w;
    expect_ok(
        cmoe_execute(plan, &t, test_workspace(&g, plan), cmoe_plan_workspace_size(plan), NULL));
    assert_true(guard_check(&g));
    guard_end(&g);
    cmoe_plan_destroy(plan);
    cmoe_weights_destroy(w);
    cmoe_device_close(dev);
    *size = (size_t)(call->y_rows * call->y_row);
    return call_y(call);
}

static void check_bits(struct gen_call *call, const char *format, const unsigned char *want,
                       enum executor executor)
{
    for (int i = 0; i < COUNTS; i++)
        for (int nodes = 2; nodes <= CMOE_NODES; nodes += 3) {
            size_t size;
            cmoe_context *const ctx = make(thread_counts[i], nodes, executor);
            unsigned char *const got =
                run_layer(call, ctx, format, executor == IN_TURN ? 1 : nodes, &size);
            assert_same_bytes(got, want, size);
            free(got);
            cmoe_context_destroy(ctx);
        }
}

static void divided_weights_give_the_same_bits(void **state)
{
    const struct gen_options options = {.kind = GEN_REAL, .seed = test_seed()};
    (void)state;
    for (int i = 0; i < LAYERS; i++) {
        const cmoe_problem p = test_problem(layers[i]);
        struct gen_call call;
        size_t size;
        expect_ok(gen_call_create(&p, &options, &call));
        cmoe_context *const ctx = make(1, 1, OWN_POOL);
        unsigned char *const want = run_layer(&call, ctx, formats[i], 1, &size);
        cmoe_context_destroy(ctx);
        for (int executor = OWN_POOL; executor <= IN_TURN; executor++)
            check_bits(&call, formats[i], want, (enum executor)executor);
        free(want);
        gen_call_free(&call);
    }
}

/* The last test: the runtime stays in the process. */
static void openmp_takes_shares_too(void **state)
{
    const struct gen_options options = {.kind = GEN_REAL, .seed = test_seed()};
    const cmoe_problem p = test_problem(layers[0]);
    struct gen_call call;
    size_t size;
    (void)state;
    if (UNDER_TSAN) skip(); /* it does not see the runtime's own synchronisation */
    expect_ok(gen_call_create(&p, &options, &call));
    cmoe_context *ctx = make(1, 1, OWN_POOL);
    unsigned char *const want = run_layer(&call, ctx, formats[0], 1, &size);
    cmoe_context_destroy(ctx);
    const bool found = dlopen("libgomp.so.1", RTLD_NOW) || dlopen("libomp.so.5", RTLD_NOW);
    ctx = make(3, 2, OWN_POOL);
    if (found) assert_memory_equal(cmoe_context_executor(ctx), "openmp (lib", 11);
    unsigned char *const got = run_layer(&call, ctx, formats[0], 2, &size);
    assert_same_bytes(got, want, size);
    cmoe_context_destroy(ctx);
    free(want);
    free(got);
    gen_call_free(&call);
    if (!found) skip();
}

/* --- pages ---------------------------------------------------------------------------------- */

/* Blocks that begin at a page, which only packed weights do here. A page faults at its first touch, which is
 * noted. */
enum { BLOCKS = 4, MOST_PAGES = 256, NOBODY = -1 };

static struct block {
    char *data;
    size_t size;
    atomic_int node[MOST_PAGES]; /* of who touched it first */
} blocks[BLOCKS];
static int n_blocks;

static void *alloc_block(void *user, size_t size, size_t align)
{
    (void)user;
    if (align < PAGE) {
        void *ptr = NULL;
        return posix_memalign(&ptr, align, size) == 0 ? ptr : NULL;
    }
    assert_true(n_blocks < BLOCKS && size <= MOST_PAGES * PAGE && size % PAGE == 0);
    struct block *const b = &blocks[n_blocks++];
    b->size = size;
    b->data = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(b->data != MAP_FAILED);
    return b->data;
}

static void free_block(void *user, void *ptr)
{
    (void)user;
    for (int i = 0; i < n_blocks; i++)
        if (blocks[i].data == ptr) {
            munmap(ptr, blocks[i].size);
            return;
        }
    free(ptr);
}

/* From now on every page is untouched. */
static void hide_blocks(void)
{
    for (int i = 0; i < n_blocks; i++) {
        assert_int_equal(mprotect(blocks[i].data, blocks[i].size, PROT_NONE), 0);
        for (int page = 0; page < MOST_PAGES; page++)
            atomic_store(&blocks[i].node[page], NOBODY);
    }
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    const char *const at = info->si_addr;
    (void)context;
    for (int i = 0; i < n_blocks; i++) {
        struct block *const b = &blocks[i];
        if (at < b->data || at >= b->data + b->size) continue;
        const size_t page = (size_t)(at - b->data) / PAGE;
        int nobody = NOBODY;
        atomic_compare_exchange_strong(&b->node[page], &nobody, 2 * own_rank / own_size);
        mprotect(b->data + page * PAGE, PAGE, PROT_READ | PROT_WRITE);
        return;
    }
    signal(number, SIG_DFL);
}

static int toucher(const char *at)
{
    for (int i = 0; i < n_blocks; i++)
        if (at >= blocks[i].data && at < blocks[i].data + blocks[i].size)
            return atomic_load(&blocks[i].node[(at - blocks[i].data) / PAGE]);
    fail_with("%p lies in no block", (const void *)at);
    return NOBODY;
}

/* Every page of every panel was touched first by a thread of the node that owns the panel. */
static void assert_touched_by_owners(const cmoe_weights *w, const char *when)
{
    int of[2] = {0};
    for (int matrix = 1; matrix <= 2; matrix++) {
        const struct cmoe_packed *const p = &w->packed[matrix - 1];
        const int64_t half = p->panels / 2; /* the second node has one more where it is odd */
        for (int e = 0; e < w->experts; e++)
            for (int64_t panel = 0; panel < p->panels; panel++) {
                const char *const data = cmoe__weights_panel(w, matrix, e, panel);
                for (size_t at = 0; at < p->panel_bytes; at += 64) {
                    const int node = toucher(data + at);
                    if (node != (panel >= half))
                        fail_with("%s: panel %d of matrix %d of expert %d was touched by node %d",
                                  when, (int)panel, matrix, e, node);
                    of[node]++;
                }
            }
    }
    assert_true(of[0] > 0 && of[1] > 0);
}

static void run_watched(const char *text, const char *format)
{
    const struct gen_options inputs = {.kind = GEN_REAL, .seed = test_seed(), .plain = true};
    const cmoe_context_options options = {.alloc = alloc_block,
                                          .free = free_block,
                                          .run = run_ranked,
                                          .run_is_concurrent = 1,
                                          .n_threads = 4,
                                          .nodes = 2};
    const cmoe_plan_options plan_options = {
        .struct_size = sizeof plan_options, .format1 = format, .format2 = format};
    const cmoe_problem p = test_problem(text);
    struct gen_call call;
    struct guard g;
    cmoe_context *ctx;
    cmoe_plan *plan;
    cmoe_weights *w;
    n_blocks = 0;
    own_size = 1; /* of the main thread, should it touch anything: node 0 */
    guard_init(&g);
    expect_ok(gen_call_create(&p, &inputs, &call));
    expect_ok(cmoe_context_create(&options, &ctx));
    cmoe_device *const dev = test_device(ctx, "cpu");
    expect_ok(cmoe_plan_create(dev, &p, NULL, &plan_options, &plan));
    void *const workspace = test_workspace(&g, plan);
    for (int i = 0; i < BLOCKS; i++)
        for (int page = 0; page < MOST_PAGES; page++)
            atomic_store(&blocks[i].node[page], NOBODY);
    expect_ok(call_weights(dev, &call, plan, &w));
    assert_int_equal(n_blocks, 2);
    assert_touched_by_owners(w, "packing");
    call.tensors.weights = w;
    for (int run = 0; run < 5; run++) { /* a stranger would be first in half of them */
        hide_blocks();
        expect_ok(
            cmoe_execute(plan, &call.tensors, workspace, cmoe_plan_workspace_size(plan), NULL));
        assert_touched_by_owners(w, "execute");
    }
    cmoe_plan_destroy(plan);
    cmoe_weights_destroy(w);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
    gen_call_free(&call);
    guard_end(&g);
}

static void pages_are_touched_by_their_node(void **state)
{
    struct sigaction old, action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    (void)state;
    assert_int_equal(sigaction(SIGSEGV, &action, &old), 0);
    run_watched("t=4 e=2 k=2 h=352 i=144 scheme=bf16", "p32");  /* one fork a layer */
    run_watched("t=40 e=2 k=2 h=352 i=144 scheme=bf16", "p32"); /* a fork a stage */
    run_watched("t=4 e=2 k=2 h=512 i=224 scheme=int8-w8a8", "p32_i8");
    run_watched("t=4 e=2 k=2 h=512 i=224 scheme=mxfp4-w4a16", "p32_mx4");
    assert_int_equal(sigaction(SIGSEGV, &old, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shares_go_to_their_node),
        cmocka_unit_test(divided_weights_give_the_same_bits),
        cmocka_unit_test(pages_are_touched_by_their_node),
        cmocka_unit_test(openmp_takes_shares_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
