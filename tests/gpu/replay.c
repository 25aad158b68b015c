/* SPDX-License-Identifier: MIT
 * Plans on an NVIDIA GPU inside CUDA graphs: 100 replays of a captured call give the bits of the call
 * itself, alone, beside another plan on a second stream, and after x, ids and their skew changed in
 * place. Every workspace and output starts as NaN. Run by tools/gpu_check.sh determinism; problems on
 * the command line replace those below, and "ROW: PROBLEM" pins a row. */
#include "cli/gen.h"
#include "cli/mirror.h"

#include <cuda.h>
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPLAYS = 100, EXIT_SKIPPED = 77 };

/* clang-format off */
#define DRIVER_FUNCTIONS(F) \
    F(cuInit) F(cuDeviceGet) F(cuDevicePrimaryCtxRetain) F(cuCtxSetCurrent) F(cuMemsetD8Async) F(cuStreamCreate) \
    F(cuStreamDestroy) \
    F(cuStreamSynchronize) F(cuStreamBeginCapture) F(cuStreamEndCapture) F(cuGraphInstantiate) \
    F(cuGraphLaunch) F(cuGraphExecDestroy) F(cuGraphDestroy)
/* clang-format on */
#define TEXT_OF(x) #x
#define TEXT(x)    TEXT_OF(x)

static struct {
#define FIELD(name) __typeof__(name) *name;
    DRIVER_FUNCTIONS(FIELD)
#undef FIELD
} cu;

static const char *const problems[] = {
    "t=1 e=32 k=4 h=512 i=256 renorm scheme=bf16",
    "t=24 e=32 k=4 h=512 i=256 renorm scheme=bf16",
    "t=300 e=16 k=4 h=512 i=256 renorm scheme=bf16",
    "t=5 e=32 k=4 h=512 i=256 renorm scheme=fp8-block",
    "t=200 e=16 k=4 h=512 i=256 renorm scheme=fp8-block",
    "t=40 e=16 k=4 h=512 i=256 renorm reduced scheme=bf16",
    "t=60 e=24 k=4 h=1024 i=384 renorm reduced scheme=fp8-block",
    "t=90 e=24 k=4 h=512 i=768 renorm reduced scheme=fp8-token",
    "t=112 e=8 k=2 h=768 i=2176 renorm reduced scheme=fp8-token",
    "gemm1combine*: t=60 e=16 k=4 h=1536 i=128 renorm reduced scheme=bf16",
    "gemm1combine*: t=60 e=16 k=4 h=1536 i=128 renorm reduced scheme=fp8-block",
    "gemm1combine*: t=60 e=16 k=4 h=1536 i=128 renorm reduced scheme=fp8-token",
    "t=1024 e=2 k=2 h=2048 i=2048 renorm reduced scheme=fp8-block",
    "t=1024 e=2 k=2 h=2048 i=2048 renorm reduced scheme=fp8-token",
    "t=1024 e=2 k=2 h=2048 i=2048 renorm reduced fastsums scheme=fp8-token",
    "t=4 e=16 k=4 h=512 i=384 renorm scheme=fp8-token",
    "t=2 e=16 k=4 h=512 i=384 renorm scheme=mxfp4-w4a16",
    "t=1 e=16 k=4 h=512 i=384 renorm scheme=int8-w8a8",
    "t=3 e=16 k=4 h=512 i=384 renorm scheme=mxfp8",
    "t=4 e=16 k=4 h=512 i=384 renorm scheme=nvfp4-w4a4",
    "t=9 e=16 k=2 h=512 i=384 renorm scheme=fp8-token",
    "t=9 e=16 k=2 h=512 i=384 renorm scheme=mxfp4-w4a16",
    "t=9 e=16 k=2 h=512 i=384 renorm scheme=nvfp4-w4a4",
    "t=9 e=16 k=2 h=512 i=384 renorm scheme=int4-w4a8",
    "t=200 e=8 k=4 h=512 i=384 renorm scheme=mxfp4-w4a8",
    "t=200 e=8 k=4 h=512 i=384 renorm reduced scheme=int8-w8a8",
    "t=200 e=8 k=4 h=512 i=384 renorm scheme=int4-w4a8",
    "t=200 e=8 k=4 h=512 i=384 renorm scheme=int4-w4a8:fp8",
    "*_slices__*: t=1 e=8 k=4 h=512 i=1024 renorm stages=quant..combine scheme=fp8-block",
    "*_slices__*: t=8 e=12 k=4 h=512 i=512 renorm stages=quant..combine scheme=fp8-block",
    "*_slices__*: t=5 e=12 k=4 h=512 i=384 renorm stages=quant..combine scheme=bf16",
    "t=17 e=24 k=3 h=256 i=264 first=3 local=9 stages=quant..combine scheme=bf16",
};

static void die(const char *what)
{
    fprintf(stderr, "gpu_replay: %s: %s\n", what, cmoe_last_error());
    exit(1);
}

static void driver(CUresult result, const char *what)
{
    if (result == CUDA_SUCCESS) return;
    fprintf(stderr, "gpu_replay: %s failed with CUDA error %d\n", what, (int)result);
    exit(1);
}
#define CU(call) driver(cu.call, #call)

static bool load_driver(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) return false;
#define FIELD(name)                                                                                \
    *(void **)&cu.name = dlsym(library, TEXT(name));                                               \
    if (!cu.name) return false;
    DRIVER_FUNCTIONS(FIELD)
#undef FIELD
    return cu.cuInit(0) == CUDA_SUCCESS;
}

/* A generated call on the device, planned and captured. */
struct layer {
    cmoe_device *dev;
    bool aligned; /* so that a pinned row need not leave it to another */
    struct gen_call call;
    struct cli_mirror mirror;
    cmoe_weights *w;
    cmoe_plan *plan;
    void *workspace;
    size_t workspace_size;
    CUstream stream;
    CUgraph graph;
    CUgraphExec exec;
    unsigned char *expected; /* the outputs of a plain call */
    size_t bytes;
};

#define CMOE(call)                                                                                 \
    do {                                                                                           \
        if ((call) != CMOE_OK) die(#call);                                                         \
    } while (0)

static void make_inputs(const cmoe_problem *p, uint64_t seed, bool aligned, struct gen_call *out)
{
    const struct gen_options options = {.kind = GEN_REAL, .seed = seed, .aligned = aligned};
    CMOE(gen_call_create(p, &options, out));
}

/* text: a problem, or a row to pin, a colon with a space, and a problem. */
static void layer_open(cmoe_device *dev, const char *text, uint64_t seed, struct layer *l)
{
    cmoe_problem p;
    char pin[64] = "";
    const char *const colon = strstr(text, ": ");
    if (colon) snprintf(pin, sizeof pin, "%.*s", (int)(colon - text), text);
    const cmoe_plan_options options = {.struct_size = sizeof options, .pin = colon ? pin : NULL};
    cmoe_problem_init(&p);
    *l = (struct layer){.dev = dev, .aligned = colon != NULL};
    CMOE(cmoe_problem_parse(&p, colon ? colon + 2 : text));
    make_inputs(&p, seed, l->aligned, &l->call);
    CMOE(cli_mirror_open(dev, &l->call, &l->mirror));
    CMOE(cmoe_weights_create(dev, &l->call.problem, &l->mirror.weights, &l->w));
    CMOE(cmoe_plan_create(dev, &l->call.problem, l->w, &options, &l->plan));
    l->workspace_size = cmoe_plan_workspace_size(l->plan);
    CMOE(cmoe_device_alloc(dev, l->workspace_size, &l->workspace));
    CU(cuStreamCreate(&l->stream, CU_STREAM_NON_BLOCKING));
    CU(cuStreamBeginCapture(l->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    CMOE(cmoe_execute(l->plan, &l->mirror.tensors, l->workspace, l->workspace_size, l->stream));
    CU(cuStreamEndCapture(l->stream, &l->graph));
    CU(cuGraphInstantiate(&l->exec, l->graph, 0));
    struct gen_span span;
    for (int i = 0; gen_span_at(&l->call, i, &span); i++)
        l->bytes += span.input ? 0 : span.size;
    l->expected = malloc(l->bytes);
    if (!l->expected) die("out of memory");
}

static void layer_close(struct layer *l)
{
    free(l->expected);
    CU(cuGraphExecDestroy(l->exec));
    CU(cuGraphDestroy(l->graph));
    CU(cuStreamDestroy(l->stream));
    cmoe_device_free(l->dev, l->workspace);
    cmoe_plan_destroy(l->plan);
    cmoe_weights_destroy(l->w);
    cli_mirror_close(&l->mirror);
    gen_call_free(&l->call);
}

/* Outputs and workspace are poison again, on the device too. */
static void reset(struct layer *l)
{
    gen_call_reset(&l->call);
    CMOE(cli_mirror_send(&l->mirror));
    CU(cuMemsetD8Async((CUdeviceptr)(uintptr_t)l->workspace, 0xff, l->workspace_size, l->stream));
}

/* Outputs from the device, kept (keep) or compared with the kept ones. */
static bool fetch(struct layer *l, bool keep)
{
    const char *damage = NULL;
    struct gen_span span;
    size_t at = 0;
    bool same = true;
    CU(cuStreamSynchronize(l->stream));
    CMOE(cli_mirror_fetch(&l->mirror, &damage));
    for (int i = 0; gen_span_at(&l->call, i, &span); i++) {
        if (span.input) continue;
        if (keep)
            memcpy(l->expected + at, span.data, span.size);
        else
            same = same && memcmp(l->expected + at, span.data, span.size) == 0;
        at += span.size;
    }
    return same && !damage;
}

static void run_plainly(struct layer *l)
{
    reset(l);
    CMOE(cmoe_execute(l->plan, &l->mirror.tensors, l->workspace, l->workspace_size, l->stream));
    if (!fetch(l, true)) die("a call wrote beside its outputs");
}

/* 100 replays, of both layers at once when there is another; how many differ. */
static int replay(struct layer *l, struct layer *other)
{
    int differ = 0;
    for (int i = 0; i < REPLAYS; i++) {
        reset(l);
        if (other) reset(other);
        for (int again = 0; other && again < 4; again++)
            CU(cuGraphLaunch(other->exec, other->stream));
        CU(cuGraphLaunch(l->exec, l->stream));
        if (other) CU(cuGraphLaunch(other->exec, other->stream));
        differ += !fetch(l, false);
        if (other) differ += !fetch(other, false);
    }
    return differ;
}

/* The inputs of another seed in the same places: other data, other ids, another skew. */
static void change_inputs(struct layer *l, uint64_t seed)
{
    struct gen_call other;
    struct gen_span from, to;
    make_inputs(&l->call.problem, seed, l->aligned, &other);
    for (int i = 0; gen_span_at(&l->call, i, &to) && gen_span_at(&other, i, &from); i++)
        if (to.input && to.size == from.size) memcpy(to.data, from.data, to.size);
    gen_call_free(&other);
}

static int check(cmoe_device *dev, const char *text, struct layer *noise)
{
    struct layer l;
    layer_open(dev, text, 1, &l);
    run_plainly(&l);
    const int alone = replay(&l, NULL), beside = replay(&l, noise);
    int changed = 0;
    for (uint64_t seed = 2; seed < 6; seed++) {
        change_inputs(&l, seed);
        run_plainly(&l);
        changed += replay(&l, NULL);
    }
    char path[1024];
    cmoe_plan_path(l.plan, l.call.tensors.n_tokens, path, sizeof path);
    printf(
        "%s %s\n     %s\n     differ: %d alone, %d beside another stream, %d with other inputs\n",
        alone + beside + changed ? "FAIL" : "ok  ", text, path, alone, beside, changed);
    fflush(stdout);
    layer_close(&l);
    return alone + beside + changed;
}

int main(int argc, char **argv)
{
    CUdevice device = 0;
    CUcontext primary = NULL;
    cmoe_context *ctx;
    cmoe_device *dev;
    struct layer noise;
    int failed = 0;
    if (!load_driver()) return puts("gpu_replay: no CUDA driver or GPU"), EXIT_SKIPPED;
    CU(cuDeviceGet(&device, 0));
    CU(cuDevicePrimaryCtxRetain(&primary, device));
    CU(cuCtxSetCurrent(primary));
    CMOE(cmoe_context_create(NULL, &ctx));
    CMOE(cmoe_device_open(ctx, "cuda:0", &dev));
    layer_open(dev, "t=40 e=32 k=4 h=512 i=512 renorm reduced scheme=bf16", 99, &noise);
    run_plainly(&noise);
    const int n = argc > 1 ? argc - 1 : (int)(sizeof problems / sizeof *problems);
    for (int i = 0; i < n; i++)
        failed += check(dev, argc > 1 ? argv[i + 1] : problems[i], &noise) != 0;
    layer_close(&noise);
    cmoe_device_close(dev);
    cmoe_context_destroy(ctx);
    printf("%d problems, %d failed\n", n, failed);
    return failed != 0;
}
