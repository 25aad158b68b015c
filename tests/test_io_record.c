/* SPDX-License-Identifier: MIT
 * Recorded calls: what a plan records as it runs must compute the same bits when read back, for
 * random problems and for plans that start and end anywhere; a damaged folder is refused in words.
 * ctest: labels=portable */
#include "harness.h"

#include "cli/gen.h"
#include "harness_files.h"
#include "io/memory.h"

#include <cmoe/io.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Where the callback writes to, and what came of it. */
struct recording {
    char dir[600];
    cmoe_status status;
    int calls;
};

static void record(void *user, const cmoe_record *call)
{
    struct recording *const r = user;
    r->calls++;
    r->status = cmoe_record_write(r->dir, call);
}

struct rig {
    struct folder folder;
    struct recording recording;
    cmoe_recorder recorder;
    cmoe_context *ctx;
    cmoe_device *dev;
};

static void rig_open(struct rig *rig)
{
    folder_make(&rig->folder);
    snprintf(rig->recording.dir, sizeof rig->recording.dir, "%s/call", rig->folder.path);
    rig->recording.calls = 0;
    rig->recorder = (cmoe_recorder){.record = record, .user = &rig->recording};
    const cmoe_context_options options = {
        .struct_size = sizeof options, .n_threads = 1, .recorder = &rig->recorder};
    expect_ok(cmoe_context_create(&options, &rig->ctx));
    rig->dev = test_device(rig->ctx, "ref");
}

static void rig_close(struct rig *rig)
{
    cmoe_device_close(rig->dev);
    cmoe_context_destroy(rig->ctx);
    folder_remove(&rig->folder);
}

static void run(struct rig *rig, const cmoe_problem *p, const cmoe_weights_desc *desc,
                const cmoe_tensors *t)
{
    cmoe_plan *plan;
    cmoe_weights *w = NULL;
    if (desc) expect_ok(cmoe_weights_create(rig->dev, p, desc, &w));
    expect_ok(cmoe_plan_create(rig->dev, p, w, NULL, &plan));
    const size_t bytes = cmoe_plan_workspace_size(plan);
    void *const workspace = aligned_alloc(256, (bytes + 256) / 256 * 256);
    assert_non_null(workspace);
    expect_ok(cmoe_execute(plan, t, workspace, bytes, NULL));
    free(workspace);
    cmoe_plan_destroy(plan);
    cmoe_weights_destroy(w);
}

static void remove_files(const char *dir)
{
    struct folder f;
    snprintf(f.path, sizeof f.path, "%s", dir);
    folder_remove(&f);
}

/* Record a generated call as it runs, read it back, run that, and compare the rows of y. */
static void check_round_trip(struct rig *rig, const cmoe_problem *p, enum gen_kind kind,
                             uint64_t seed)
{
    char line[512], back[512];
    struct gen_call call;
    cmoe_replay replay;
    const struct gen_options options = {.kind = kind, .seed = seed};
    expect_ok(gen_call_create(p, &options, &call));
    cmoe_problem_print(p, line, sizeof line);
    rig->recording.calls = 0;
    run(rig, p, &call.weights, &call.tensors);
    if (p->max_tokens == 0) {
        gen_call_free(&call);
        return;
    }
    if (rig->recording.calls != 1 || rig->recording.status != CMOE_OK) {
        fail_with("\"%s\" seed %llu: %d calls, %s", line, (unsigned long long)seed,
                  rig->recording.calls, cmoe_last_error());
    }
    if (cmoe_record_read(rig->recording.dir, &replay) != CMOE_OK) {
        fail_with("\"%s\" seed %llu: %s", line, (unsigned long long)seed, cmoe_last_error());
    }
    cmoe_problem_print(&replay.problem, back, sizeof back);
    if (p->capacity == 0) assert_string_equal(back, line); /* else the plan has a T of its own */

    const size_t bytes = (size_t)(call.y_rows * call.y_row);
    uint8_t *const y = malloc(bytes + 1);
    assert_non_null(y);
    memset(y, 0xff, bytes); /* as the generator poisons: rows nobody writes stay equal */
    if (replay.tensors.y) memcpy(y, replay.tensors.y, bytes);
    assert_int_equal(replay.tensors.y != NULL, p->accumulate != 0);
    replay.tensors.y = y;
    char *const again = strdup(rig->recording.dir);
    strcat(rig->recording.dir, "2");
    run(rig, &replay.problem, &replay.weights, &replay.tensors);
    remove_files(rig->recording.dir);
    strcpy(rig->recording.dir, again);
    free(again);
    for (int64_t r = 0; r < call.y_rows; r++) {
        if (memcmp(y + r * call.y_row, gen_y_row(&call, r), (size_t)call.y_row) != 0) {
            fail_with("\"%s\" seed %llu: row %lld of %lld differs", line, (unsigned long long)seed,
                      (long long)r, (long long)call.y_rows);
        }
    }
    free(y);
    cmoe_replay_free(&replay);
    gen_call_free(&call);
    remove_files(rig->recording.dir);
}

static void test_random_problems(void **state)
{
    (void)state;
    struct rig rig;
    const int64_t n = test_env("TEST_CASES", 60);
    struct rng rng = {.state = test_seed() + 7};
    rig_open(&rig);
    for (int64_t i = 0; i < n; i++) {
        cmoe_problem p;
        const uint64_t seed = rng_u64(&rng);
        gen_problem(seed, &p);
        check_round_trip(&rig, &p, GEN_REAL, seed);
    }
    rig_close(&rig);
}

/* Every scheme, and what random problems reach rarely. */
static void test_chosen_problems(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "rx shsigmoid shared=2 b1 b2",
        "rx rbias route=sigmoid",
        "hash",
        "map local=2",
        "stages=quant..combine",
        "stages=sort..combine scheme=f32",
        "stages=quant..combine scheme=int8-smooth b1 gate=interleaved",
        "stages=quant..combine scheme=fp8-token xq",
        "stages=quant..combine scheme=nvfp4-w4a4 xq",
        "stages=quant..combine scheme=fp8-tensor xq",
        "stages=quant..combine scheme=mxfp8 xq",
        "scheme=fp8-tensor:static",
        "scheme=mxfp4-w4a8",
        "scheme=nvfp4-w4a4:static",
        "stages=quant..combine cap=4 sort=batched scheme=fp8-block",
        "scheme=fp8-block joint",
        "scheme=fp8-block gate=interleaved",
        "scheme=int4-w4a16:g16,zp gate=none act=relu2",
        "acc=0.5 noreduce=0",
        "noreduce",
        "first=1 local=2",
        "won=input",
        "won=gemm1 stages=quant..combine",
        "won=act stages=quant..combine",
        "lg=f32 in=f16 x=f16 y=f32",
    };
    struct rig rig;
    rig_open(&rig);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        cmoe_problem p = test_problem("t=6 e=5 k=2 h=40 i=24");
        expect_ok(cmoe_problem_parse(&p, texts[i]));
        expect_ok(cmoe_problem_check(&p));
        check_round_trip(&rig, &p, GEN_REAL, 1000 + i);
    }
    for (int i = 0; cmoe_scheme_name(i); i++) {
        cmoe_problem p = test_problem("t=5 e=4 k=2 h=136 i=72");
        expect_ok(cmoe_problem_scheme(&p, cmoe_scheme_name(i)));
        check_round_trip(&rig, &p, GEN_REAL, 2000 + (uint64_t)i);
    }
    rig_close(&rig);
}

/* ---- plans that start late: each is fed with what an earlier plan ended with ---- */

enum { T = 3, K = 2, E = 4, H = 8, I = 6 };

struct chain {
    cmoe_tensors t;
    int32_t ids[T * K], rows[T * K], offsets[E + 1];
    float weights[T * K], gate_up[T * K * 2 * I], mid[T * K * I], z[T * K * H], y[T * H];
    float x[T * H], w[E * 3 * H * I];
    cmoe_matrix gate[E], up[E], down[E];
    cmoe_weights_desc desc;
};

static void chain_make(struct chain *c)
{
    struct rng rng = {.state = 5};
    *c = (struct chain){0};
    for (int i = 0; i < T * H; i++)
        c->x[i] = (float)rng_normal(&rng);
    for (int i = 0; i < E * 3 * H * I; i++)
        c->w[i] = (float)rng_normal(&rng);
    for (int i = 0; i < T * K; i++) {
        c->ids[i] = (i * 3 + i / 2) % E;
        c->weights[i] = (float)rng_unit(&rng);
    }
    for (int e = 0; e < E; e++) {
        c->gate[e].data = c->w + 3 * e * H * I;
        c->up[e].data = c->w + (3 * e + 1) * H * I;
        c->down[e].data = c->w + (3 * e + 2) * H * I;
    }
    c->desc = (cmoe_weights_desc){
        .struct_size = sizeof c->desc, .gate_up = c->gate, .up = c->up, .down = c->down};
    c->t = (cmoe_tensors){.struct_size = sizeof c->t,
                          .n_tokens = T,
                          .topk_ids = c->ids,
                          .topk_weights = c->weights,
                          .x = c->x,
                          .sorted_ids = c->rows,
                          .expert_offsets = c->offsets,
                          .gate_up = c->gate_up,
                          .mid = c->mid,
                          .z = c->z,
                          .y = c->y};
}

static void test_late_starts(void **state)
{
    (void)state;
    static const char *const steps[] = {"quant..sort", "gemm1..gemm1", "act..act", "gemm2..gemm2",
                                        "combine..combine"};
    struct rig rig;
    struct chain c;
    float whole[T * H];
    char text[128];
    rig_open(&rig);
    chain_make(&c);
    cmoe_problem p = test_problem("t=3 e=4 k=2 h=8 i=6 scheme=f32 stages=quant..combine");
    run(&rig, &p, &c.desc, &c.t);
    memcpy(whole, c.y, sizeof whole);
    remove_files(rig.recording.dir);
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        cmoe_replay replay;
        snprintf(text, sizeof text, "t=3 e=4 k=2 h=8 i=6 scheme=f32 stages=%s", steps[i]);
        p = test_problem(text);
        const bool weights = i == 1 || i == 3;
        const bool last = i == 4;
        run(&rig, &p, weights ? &c.desc : NULL, &c.t);
        expect_ok(rig.recording.status);
        expect_ok(cmoe_record_read(rig.recording.dir, &replay));
        /* Outputs of the step, poisoned, then made from the recorded inputs alone. */
        float *const out = i == 1 ? c.gate_up : i == 2 ? c.mid : i == 3 ? c.z : c.y;
        const size_t n = i == 1 ? sizeof c.gate_up : i == 2 ? sizeof c.mid : sizeof c.z;
        const size_t bytes = last ? sizeof c.y : n;
        float *const before = malloc(bytes);
        assert_non_null(before);
        if (i > 0) {
            memcpy(before, out, bytes);
            memset(out, 0xff, bytes);
            if (i == 1) replay.tensors.gate_up = out;
            if (i == 2) replay.tensors.mid = out;
            if (i == 3) replay.tensors.z = out;
            if (last) replay.tensors.y = out;
            char *const slash = rig.recording.dir + strlen(rig.recording.dir);
            strcpy(slash, "2");
            run(&rig, &p, weights ? &replay.weights : NULL, &replay.tensors);
            remove_files(rig.recording.dir);
            *slash = '\0';
            assert_same_bytes(out, before, bytes);
        }
        free(before);
        cmoe_replay_free(&replay);
        remove_files(rig.recording.dir);
    }
    assert_same_bytes(c.y, whole, sizeof whole);
    rig_close(&rig);
}

/* ---- strided memory, and damage ---- */

static void record_chain(struct rig *rig, struct chain *c)
{
    const cmoe_problem p = test_problem("t=3 e=4 k=2 h=8 i=6 scheme=f32 stages=quant..combine");
    chain_make(c);
    run(rig, &p, &c->desc, &c->t);
    expect_ok(rig->recording.status);
}

static void test_layout_on_disk(void **state)
{
    (void)state;
    struct rig rig;
    struct chain c;
    char path[700];
    size_t size;
    cmoe_array a;
    rig_open(&rig);
    record_chain(&rig, &c);
    snprintf(path, sizeof path, "%s/w_up.npy", rig.recording.dir);
    expect_ok(cmoe_npy_read(path, &a));
    assert_int_equal(a.dtype, CMOE_U8);
    assert_int_equal(a.ndim, 3);
    assert_int_equal(a.shape[0], E);
    assert_int_equal(a.shape[1], I);
    assert_int_equal(a.shape[2], H * 4);
    for (int e = 0; e < E; e++) {
        assert_same_bytes((uint8_t *)a.data + e * I * H * 4, c.up[e].data, I * H * 4);
    }
    cmoe_array_free(&a);
    snprintf(path, sizeof path, "%s/problem.txt", rig.recording.dir);
    char *const text = file_bytes(path, &size);
    text[size] = '\0';
    assert_non_null(strstr(text, "cmoe record 1\nproblem t=3 e=4 k=2 h=8 i=6 "));
    assert_non_null(strstr(text, "\ntokens 3\n"));
    assert_non_null(strstr(text, "\ndevice ref\n"));
    assert_non_null(strstr(text, "\narray topk_ids\n"));
    assert_null(strstr(text, "sorted_ids"));
    free(text);
    rig_close(&rig);
}

/* An edit of problem.txt or of a file, and what reading then says. */
static const struct {
    const char *from, *to; /* in problem.txt; from NULL: append */
    cmoe_status status;
    const char *part;
} damages[] = {
    {"cmoe record 1", "cmoe record 2", CMOE_ERR_CORRUPT, "line 1 is not"},
    {"tokens 3", "tokens 4", CMOE_ERR_CORRUPT, "tokens is \"4\", not 0 to 3"},
    {"tokens 3", "tokens -1", CMOE_ERR_CORRUPT, "tokens is \"-1\""},
    {"tokens 3", "tokens 3x", CMOE_ERR_CORRUPT, "tokens is \"3x\""},
    {"tokens 3", "tokens", CMOE_ERR_CORRUPT, "tokens is \"\""},
    {"tokens 3", "tokens 99999999999999999999", CMOE_ERR_CORRUPT, "tokens is"},
    {"tokens 3\n", "", CMOE_ERR_CORRUPT, "is missing"},
    {"tokens 3", "tokens 3\ntokens 3", CMOE_ERR_CORRUPT, "line 4 repeats a key"},
    {"tokens 3", "tokens 2", CMOE_ERR_CORRUPT, "topk_ids.npy has i32 in 2 dimensions, 3 x 2"},
    {"h=8", "h=9", CMOE_ERR_CORRUPT, "x.npy has f32 in 2 dimensions, 3 x 8"},
    {"i=6", "i=7", CMOE_ERR_CORRUPT, "w_gate.npy has u8 in 3 dimensions, 4 x 6 x 32"},
    {"e=4", "e=5", CMOE_ERR_CORRUPT, "w_gate.npy"},
    {"e=4", "e=0", CMOE_ERR_CORRUPT, "experts"},
    {"e=4", "e=x", CMOE_ERR_CORRUPT, "problem.txt: "},
    {"array w_gate\n", "", CMOE_ERR_CORRUPT, "array w_gate_up is missing"},
    {"array w_down\n", "", CMOE_ERR_CORRUPT, "array w_down is missing"},
    {NULL, "array z\n", CMOE_ERR_CORRUPT, "array \"z\" is not one"},
    {NULL, "array ../x\n", CMOE_ERR_CORRUPT, "array \"../x\" is not one"},
    {NULL, "array x\n", CMOE_ERR_CORRUPT, "repeats an array"},
    {NULL, "array \x1b\n", CMOE_ERR_CORRUPT, "array \"?\""},
    {NULL, "nothing\n", CMOE_ERR_CORRUPT, "has an unknown key"},
    {NULL, "\n", CMOE_ERR_CORRUPT, "has an unknown key"},
    {NULL, "path x", CMOE_ERR_CORRUPT, "not lines of text"},
};

static void test_damage(void **state)
{
    (void)state;
    struct rig rig;
    struct chain c;
    cmoe_replay replay;
    char path[700], edited[4096];
    size_t size;
    rig_open(&rig);
    record_chain(&rig, &c);
    snprintf(path, sizeof path, "%s/problem.txt", rig.recording.dir);
    char *const text = file_bytes(path, &size);
    text[size] = '\0';
    for (size_t i = 0; i < sizeof damages / sizeof damages[0]; i++) {
        const char *const from = damages[i].from ? damages[i].from : "";
        const char *const at = damages[i].from ? strstr(text, from) : text + size;
        if (!at) fail_with("no %s in %s", from, text);
        snprintf(edited, sizeof edited, "%.*s%s%s", (int)(at - text), text, damages[i].to,
                 at + strlen(from));
        folder_text(&rig.folder, "call/problem.txt", edited);
        expect_error(cmoe_record_read(rig.recording.dir, &replay), damages[i].status,
                     damages[i].part);
        assert_null(replay.storage);
    }
    folder_write(&rig.folder, "call/problem.txt", "cmoe record 1\0\n", 15);
    expect_error(cmoe_record_read(rig.recording.dir, &replay), CMOE_ERR_CORRUPT, "not lines");
    folder_write(&rig.folder, "call/problem.txt", text, size);
    expect_ok(cmoe_record_read(rig.recording.dir, &replay));
    cmoe_replay_free(&replay);
    assert_int_equal(unlink(folder_path(&rig.folder, "call/x.npy")), 0);
    expect_error(cmoe_record_read(rig.recording.dir, &replay), CMOE_ERR_IO, "x.npy");
    assert_int_equal(unlink(path), 0);
    expect_error(cmoe_record_read(rig.recording.dir, &replay), CMOE_ERR_IO, "problem.txt");
    free(text);
    rig_close(&rig);
}

static void test_memory_and_disk_fail(void **state)
{
    (void)state;
    struct rig rig;
    struct chain c;
    cmoe_replay replay;
    rig_open(&rig);
    record_chain(&rig, &c);
    int n = 0;
    cmoe_status status = CMOE_ERR_NO_MEMORY;
    while (status == CMOE_ERR_NO_MEMORY) {
        cmoe__io_alloc_fail(++n);
        status = cmoe_record_read(rig.recording.dir, &replay);
        if (status != CMOE_OK) assert_null(replay.storage);
    }
    cmoe__io_alloc_fail(0);
    expect_ok(status);
    assert_true(n > 15);
    cmoe_replay_free(&replay);

    /* The same while writing: problem.txt is last, so a folder that lacks something lacks it too. */
    const cmoe_problem p = test_problem("t=3 e=4 k=2 h=8 i=6 scheme=f32 stages=quant..combine");
    cmoe_weights *w;
    expect_ok(cmoe_weights_create(rig.dev, &p, &c.desc, &w));
    const cmoe_record call = {
        .struct_size = sizeof call, .problem = &p, .tensors = &c.t, .weights = w, .device = "ref"};
    char dir[700];
    snprintf(dir, sizeof dir, "%s/other", rig.folder.path);
    status = CMOE_ERR_NO_MEMORY;
    for (n = 1; status == CMOE_ERR_NO_MEMORY; n++) {
        cmoe__io_alloc_fail(n);
        status = cmoe_record_write(dir, &call);
        if (status != CMOE_OK) {
            assert_false(file_exists(folder_path(&rig.folder, "other/problem.txt")));
        }
        remove_files(dir);
    }
    cmoe__io_alloc_fail(0);
    expect_ok(status);
    disk_limit(200);
    expect_error(cmoe_record_write(dir, &call), CMOE_ERR_IO, "cannot write");
    disk_limit(0);
    assert_false(file_exists(folder_path(&rig.folder, "other/problem.txt")));
    folder_text(&rig.folder, "file", "");
    expect_error(cmoe_record_write(folder_path(&rig.folder, "file"), &call), CMOE_ERR_IO, "folder");
    expect_error(cmoe_record_write(dir, NULL), CMOE_ERR_INVALID, "call is NULL");
    cmoe_weights_destroy(w);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_problems), cmocka_unit_test(test_chosen_problems),
        cmocka_unit_test(test_late_starts),     cmocka_unit_test(test_layout_on_disk),
        cmocka_unit_test(test_damage),          cmocka_unit_test(test_memory_and_disk_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
