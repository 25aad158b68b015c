/* SPDX-License-Identifier: MIT
 * Recorded calls by hand: plans that start anywhere, strided memory, the folder's text, and folders
 * that are damaged.
 * ctest: labels=portable */
#include "record_rig.h"

#include "io/memory.h"

#include <unistd.h>

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

static const struct {
    const char *stages;
    bool weights;
    size_t output, bytes; /* of cmoe_tensors */
} steps[] = {
    {"gemm1..gemm1", true, offsetof(cmoe_tensors, gate_up), T *K * 2 * I * sizeof(float)},
    {"act..act", false, offsetof(cmoe_tensors, mid), T *K *I * sizeof(float)},
    {"gemm2..gemm2", true, offsetof(cmoe_tensors, z), T *K *H * sizeof(float)},
    {"combine..combine", false, offsetof(cmoe_tensors, y), T *H * sizeof(float)},
};

static cmoe_problem chain_problem(const char *stages)
{
    cmoe_problem p = test_problem("t=3 e=4 k=2 h=8 i=6 scheme=f32");
    char text[64];
    snprintf(text, sizeof text, "stages=%s", stages);
    expect_ok(cmoe_problem_parse(&p, text));
    return p;
}

static void test_late_starts(void **state)
{
    (void)state;
    struct rig rig;
    struct chain c;
    float whole[T * H];
    rig_open(&rig);
    chain_make(&c);
    cmoe_problem p = chain_problem("quant..combine");
    run(&rig, &p, &c.desc, &c.t);
    memcpy(whole, c.y, sizeof whole);
    p = chain_problem("quant..sort");
    run(&rig, &p, NULL, &c.t);
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        cmoe_replay replay;
        void *out;
        memcpy(&out, (char *)&c.t + steps[i].output, sizeof out);
        remove_files(rig.recording.dir);
        p = chain_problem(steps[i].stages);
        run(&rig, &p, steps[i].weights ? &c.desc : NULL, &c.t);
        expect_ok(rig.recording.status);
        expect_ok(cmoe_record_read(rig.recording.dir, &replay));
        /* The step's output, poisoned, then made from the recorded inputs alone. */
        void *const before = malloc(steps[i].bytes);
        assert_non_null(before);
        memcpy(before, out, steps[i].bytes);
        memset(out, 0xff, steps[i].bytes);
        memcpy((char *)&replay.tensors + steps[i].output, &out, sizeof out);
        run_again(&rig, &replay, steps[i].weights);
        assert_same_bytes(out, before, steps[i].bytes);
        free(before);
        cmoe_replay_free(&replay);
    }
    assert_same_bytes(c.y, whole, sizeof whole);
    rig_close(&rig);
}

/* ---- strided memory, and damage ---- */

static void record_chain(struct rig *rig, struct chain *c)
{
    const cmoe_problem p = chain_problem("quant..combine");
    chain_make(c);
    run(rig, &p, &c->desc, &c->t);
    expect_ok(rig->recording.status);
}

static void test_text_on_disk(void **state)
{
    (void)state;
    struct rig rig;
    struct chain c;
    char path[700];
    size_t size;
    rig_open(&rig);
    record_chain(&rig, &c);
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

/* Weights that only a copy makes tight: columns apart, rows apart, and both halves in one matrix,
 * each with a grid of scales. */
static void test_strided_weights(void **state)
{
    (void)state;
    enum { ROWS = 2 * I, GAP = 5 };
    struct rig rig;
    struct rng rng = {.state = 9};
    static uint8_t gate_up[E][H][ROWS], down[E][H][I + GAP];
    float scale1[E][2], scale2[E], y[T * H] = {0}, back[T * H] = {0};
    cmoe_matrix table1[E] = {{0}}, table2[E] = {{0}};
    struct chain c;
    cmoe_replay replay;
    char path[700];
    cmoe_array a;
    rig_open(&rig);
    chain_make(&c);
    for (int e = 0; e < E; e++) {
        scale1[e][0] = (float)rng_unit(&rng);
        scale1[e][1] = (float)rng_unit(&rng);
        scale2[e] = (float)rng_unit(&rng);
        for (int h = 0; h < H; h++) {
            for (int i = 0; i < ROWS; i++)
                gate_up[e][h][i] = (uint8_t)rng_below(&rng, 0x70);
            for (int i = 0; i < I + GAP; i++)
                down[e][h][i] = (uint8_t)rng_below(&rng, 0x70);
        }
        table1[e] = (cmoe_matrix){
            .data = gate_up[e], .row_stride = 1, .col_stride = ROWS, .scale = scale1[e]};
        table2[e] = (cmoe_matrix){.data = down[e], .row_stride = I + GAP, .scale = &scale2[e]};
    }
    const cmoe_problem p =
        test_problem("t=3 e=4 k=2 h=8 i=6 scheme=fp8-w8a16:b128,f32 stages=quant..combine");
    const cmoe_weights_desc desc = {.struct_size = sizeof desc, .gate_up = table1, .down = table2};
    c.t.y = y;
    run(&rig, &p, &desc, &c.t);
    expect_ok(rig.recording.status);
    snprintf(path, sizeof path, "%s/w_gate_up.npy", rig.recording.dir);
    expect_ok(cmoe_npy_read(path, &a));
    for (int i = 0; i < E * ROWS * H; i++) {
        const int e = i / (ROWS * H), row = i / H % ROWS, h = i % H;
        assert_int_equal(((const uint8_t *)a.data)[i], gate_up[e][h][row]);
    }
    cmoe_array_free(&a);
    snprintf(path, sizeof path, "%s/w_gate_up_scale.npy", rig.recording.dir);
    expect_ok(cmoe_npy_read(path, &a));
    assert_int_equal(a.bytes, sizeof scale1);
    assert_same_bytes(a.data, scale1, sizeof scale1);
    cmoe_array_free(&a);
    expect_ok(cmoe_record_read(rig.recording.dir, &replay));
    replay.tensors.y = back;
    run_again(&rig, &replay, true);
    assert_same_bytes(back, y, sizeof y);
    assert_true(y[0] != 0 && y[T * H - 1] != 0);
    cmoe_replay_free(&replay);
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
    const cmoe_problem p = chain_problem("quant..combine");
    cmoe_weights *w;
    expect_ok(cmoe_weights_create(rig.dev, &p, &c.desc, &w));
    const cmoe_record call = {
        .struct_size = sizeof call, .problem = &p, .tensors = &c.t, .weights = w, .device = "ref"};
    char dir[700];
    snprintf(dir, sizeof dir, "%s/other", rig.folder.path);
    cmoe_record far = call; /* as a GPU's plan records it: nothing of it may be read */
    const cmoe_tensors nowhere = {.struct_size = sizeof nowhere, .x = (void *)64};
    far.far = 1;
    far.device = "cuda";
    far.tensors = &nowhere;
    expect_error(cmoe_record_write(dir, &far), CMOE_ERR_UNSUPPORTED, "memory of device cuda");
    assert_false(file_exists(dir));
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
    cmoe_weights_destroy(w);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_late_starts),          cmocka_unit_test(test_text_on_disk),
        cmocka_unit_test(test_strided_weights),      cmocka_unit_test(test_damage),
        cmocka_unit_test(test_memory_and_disk_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
