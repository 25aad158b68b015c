/* SPDX-License-Identifier: MIT
 * Recorded calls: what a plan records as it runs computes the same bits when it is read back, for
 * random problems and for chosen ones.
 * ctest: labels=portable */
#include "record_rig.h"

#include "cli/gen.h"

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
    run_again(rig, &replay, true);
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
        "acc=0.5",
        "acc=-1 y=f32",
        "acc=2 y=f16",
        "acc=0.25 h=33",
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_problems),
        cmocka_unit_test(test_chosen_problems),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
