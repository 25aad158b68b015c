/* SPDX-License-Identifier: MIT
 * gpu_batch DEVICE TOKENS: with the flag binv, a token's result has the same bits alone and in calls
 * of 7, 64 and TOKENS tokens, at any place among them, for every scheme that has the flag. Runs on
 * the CPU in every test run and on a GPU by tools/gpu_check.sh determinism. */
#include "cli/gen.h"
#include "cli/mirror.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void die(const char *what)
{
    fprintf(stderr, "gpu_batch: %s: %s\n", what, cmoe_last_error());
    exit(1);
}

static void ok(cmoe_status status, const char *what)
{
    if (status != CMOE_OK) die(what);
}

/* One scheme's call of all tokens, planned; every smaller call runs a part of its tokens. */
struct batch {
    cmoe_device *dev;
    struct gen_call call;
    struct cli_mirror mirror; /* dev NULL: the device takes host memory */
    cmoe_weights *w;
    cmoe_plan *plan;
    void *workspace;
    unsigned char *whole; /* y of all tokens at once */
};

/* Memory as the device has it: plain y, or its copy fetched. */
static void run(struct batch *b, int first, int n)
{
    const bool far = b->mirror.dev != NULL;
    const cmoe_problem *p = &b->call.problem;
    const char *damage = NULL;
    gen_call_reset(&b->call);
    if (far) ok(cli_mirror_send(&b->mirror), "copying");
    cmoe_tensors t = far ? b->mirror.tensors : b->call.tensors;
    t.x = (const char *)t.x + cmoe_dtype_bytes((cmoe_dtype)p->in, (int64_t)first * p->hidden);
    t.logits = (const char *)t.logits +
               cmoe_dtype_bytes((cmoe_dtype)p->logits, (int64_t)first * p->experts);
    t.n_tokens = n;
    t.weights = b->w;
    ok(cmoe_execute(b->plan, &t, b->workspace, cmoe_plan_workspace_size(b->plan), NULL), "a call");
    ok(cmoe_device_sync(b->dev, NULL), "a call");
    if (far) ok(cli_mirror_fetch(&b->mirror, &damage), "copying back");
    if (damage != NULL || gen_call_damage(&b->call) != NULL) die("a call wrote beside its outputs");
}

/* Tokens first .. first + n - 1 by themselves; how many differ from the whole. */
static int compare(struct batch *b, int first, int n)
{
    int differ = 0;
    run(b, first, n);
    for (int i = 0; i < n; i++)
        differ += memcmp(gen_y_row(&b->call, i), b->whole + (first + i) * b->call.y_row,
                         (size_t)b->call.y_row) != 0;
    return differ;
}

static void batch_open(cmoe_device *dev, const cmoe_problem *p, struct batch *b)
{
    const struct gen_options options = {.kind = GEN_REAL, .seed = 11, .plain = true};
    cmoe_device_info info = {.struct_size = sizeof info};
    cmoe_device_describe(dev, &info);
    *b = (struct batch){.dev = dev};
    ok(gen_call_create(p, &options, &b->call), "inputs");
    if (!info.host) ok(cli_mirror_open(dev, &b->call, &b->mirror), "device memory");
    ok(cmoe_plan_create(dev, p, NULL, NULL, &b->plan), "a plan");
    cmoe_weights_desc desc = b->call.weights;
    desc.format1 = cmoe_plan_weight_format(b->plan, 1);
    desc.format2 = cmoe_plan_weight_format(b->plan, 2);
    ok(cmoe_weights_upload(dev, p, &desc, &b->w), "weights");
    ok(cmoe_device_alloc(dev, cmoe_plan_workspace_size(b->plan), &b->workspace), "a workspace");
    b->whole = malloc((size_t)(b->call.y_rows * b->call.y_row));
    if (b->whole == NULL) die("out of memory");
}

static void batch_close(struct batch *b)
{
    free(b->whole);
    cmoe_device_free(b->dev, b->workspace);
    cmoe_weights_destroy(b->w);
    cmoe_plan_destroy(b->plan);
    if (b->mirror.dev != NULL) cli_mirror_close(&b->mirror);
    gen_call_free(&b->call);
}

static int check(cmoe_device *dev, const cmoe_problem *p, const char *scheme)
{
    static const int sizes[] = {1, 7, 64};
    const int tokens = p->max_tokens;
    struct batch b;
    int differ[3] = {0};
    int64_t zeros = 0;
    char path[1024];
    batch_open(dev, p, &b);
    run(&b, 0, tokens);
    for (int64_t r = 0; r < b.call.y_rows; r++)
        memcpy(b.whole + r * b.call.y_row, gen_y_row(&b.call, r), (size_t)b.call.y_row);
    for (int64_t i = 0; i < b.call.y_rows * b.call.y_row; i++)
        zeros += b.whole[i] == 0;
    for (int i = 0; i < 3; i++)
        for (int part = 0; part < 4; part++) /* at the start, in between, at the end */
            differ[i] += compare(&b, (tokens - sizes[i]) * part / 3, sizes[i]);
    const bool empty = zeros > b.call.y_rows * b.call.y_row / 2;
    const bool failed = empty || differ[0] + differ[1] + differ[2] > 0;
    cmoe_plan_path(b.plan, tokens, path, sizeof path);
    printf("%s %-18s tokens that differ alone: %d, in 7: %d, in 64: %d%s\n     %s\n",
           failed ? "FAIL" : "ok  ", scheme, differ[0], differ[1], differ[2],
           empty ? "; most of y is 0" : "", path);
    batch_close(&b);
    return failed;
}

int main(int argc, char **argv)
{
    const char *name;
    const int tokens = argc == 3 ? atoi(argv[2]) : 0;
    cmoe_context *ctx;
    cmoe_device *dev;
    int ran = 0, failed = 0;
    if (tokens < 64) return fputs("usage: gpu_batch DEVICE TOKENS (64 or more)\n", stderr), 64;
    ok(cmoe_context_create(NULL, &ctx), "a context");
    ok(cmoe_device_open(ctx, argv[1], &dev), argv[1]);
    for (int i = 0; (name = cmoe_scheme_name(i)) != NULL; i++) {
        cmoe_problem p;
        cmoe_problem_init(&p);
        ok(cmoe_problem_parse(&p, "e=16 k=4 h=256 i=128 renorm binv"), "the problem");
        ok(cmoe_problem_scheme(&p, name), name);
        /* One dynamic scale of all tokens is another scale in another call: static ones instead. */
        if (p.x.scaling == CMOE_SCALE_TENSOR) p.x.fixed = 1;
        if (p.mid.scaling == CMOE_SCALE_TENSOR) p.mid.fixed = 1;
        p.max_tokens = tokens;
        if (cmoe_problem_check(&p) != CMOE_OK) {
            printf("none %-18s %s\n", name, cmoe_last_error());
            continue;
        }
        ran++;
        failed += check(dev, &p, name);
    }
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
    printf("%d schemes, %d failed\n", ran, failed);
    return failed > 0 || ran < 10;
}
